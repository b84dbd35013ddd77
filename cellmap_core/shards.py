"""Shards: which of its inner chunks a shard holds, from the index in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.codec import Codec
from zarr.abc.store import ByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, TransposeCodec

from cellmap_core.errors import MetadataError
from cellmap_core.grid import Shape

# Offset and length of a chunk in a shard that has none of it, and the index's checksum.
_EMPTY_ENTRY = np.iinfo(np.uint64).max
_ENTRY_BYTES, _CHECKSUM_BYTES = 16, 4


class Shards:
    """The shards of one array.

    A transpose before the sharding turns the shard: inner chunks and their index are then in
    the order of the turned axes. What is given here is in the array's own.

    Attributes
    ----------
    inner : tuple of int
        Voxels of an inner chunk.
    per_shard : tuple of int
        Inner chunks of a shard.
    where : ByteRequest
        The part of a shard that holds its index.
    """

    def __init__(self, codec: ShardingCodec, order: tuple[int, ...], outer: Shape) -> None:
        self._order = order
        self.inner: Shape = _placed(order, codec.chunk_shape)
        z, y, x = (o // i for o, i in zip(outer, self.inner, strict=True))
        self.per_shard: Shape = (z, y, x)
        checked = any(isinstance(c, Crc32cCodec) for c in codec.index_codecs)
        self._entries = math.prod(self.per_shard)
        size = _ENTRY_BYTES * self._entries + _CHECKSUM_BYTES * checked
        at_end = codec.index_location.value == "end"
        self.where: ByteRequest = SuffixByteRequest(size) if at_end else RangeByteRequest(0, size)

    def held(self, index: bytes) -> NDArray[np.bool_]:
        """Return which inner chunks a shard holds, by its index; of shape ``per_shard``."""
        turned = tuple(self.per_shard[axis] for axis in self._order)
        offsets = np.frombuffer(index, "<u8", 2 * self._entries).reshape(*turned, 2)[..., 0]
        return np.asarray(offsets != _EMPTY_ENTRY).transpose(np.argsort(self._order))


def find_shards(array: zarr.Array[Any]) -> Shards | None:
    """Return the shards of an array; None where each chunk is a file.

    Raises
    ------
    MetadataError
        What its shards hold cannot be told: a shard that is there could be as good as empty.
    """
    codecs = tuple(getattr(array.metadata, "codecs", ()))
    at = next((i for i, c in enumerate(codecs) if isinstance(c, ShardingCodec)), None)
    if at is None:
        return None
    codec, before = codecs[at], codecs[:at]
    if reason := _odd(codec, before, codecs[at + 1 :]):
        raise MetadataError(
            f"{array.store_path} has {reason}: which chunks a shard holds cannot be told",
            "sharding_indexed alone, or after transpose, with the usual index",
            "write the array again in that form",
        )
    order = tuple(range(array.ndim))
    for turn in before:
        order = tuple(order[axis] for axis in turn.order)
    z, y, x = array.shards or array.chunks
    return Shards(codec, order, (z, y, x))


def _odd(codec: ShardingCodec, before: Sequence[Codec], after: Sequence[Codec]) -> str:
    """Say why the index of a shard cannot be read; empty where it can."""
    if strange := [c for c in (*before, *after) if not isinstance(c, TransposeCodec)]:
        return f"shards and {_name(strange[0])} around them"
    if after:
        return f"shards and {_name(after[0])} after them"
    if any(isinstance(c, ShardingCodec) for c in codec.codecs):
        return "shards in shards"
    first, *rest = codec.index_codecs
    plain = isinstance(first, BytesCodec) and getattr(first.endian, "value", None) == "little"
    if not plain or [type(c) for c in rest] not in ([], [Crc32cCodec]):
        names = ", ".join(_name(c) for c in codec.index_codecs)
        return f"shards with an index of {names}"
    return ""


def _name(codec: Codec) -> str:
    return str(codec.to_dict().get("name", type(codec).__name__))


def _placed(order: tuple[int, ...], values: tuple[int, ...]) -> Shape:
    """Values of the turned axes, each at its own axis of the array."""
    placed = [0, 0, 0]
    for axis, value in zip(order, values, strict=True):
        placed[axis] = value
    return placed[0], placed[1], placed[2]

"""The chunks of one array: which are stored under a block, and what they hold.

A download of CellMap data keeps the full-volume metadata and only the chunks near crops;
zarr reads the rest as zeros. What is read here always says how much of it was really there,
and what is not there costs nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numcodecs import Blosc
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, Store
from zarr.codecs import BloscCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.metadata.v2 import ArrayV2Metadata
from zarr.core.sync import sync
from zarr.storage import LocalStore, ObjectStore

from cellmap_core import chunk_keys, remote, stores
from cellmap_core.errors import CellmapError, StoreError
from cellmap_core.grid import Shape
from cellmap_core.shards import Shards, find_shards

# Requests to a store at the same time; an object store answers each in tens of milliseconds.
_AT_ONCE = 32
# It ends with the size of the whole.
_BLOSC_HEADER_BYTES = 16


class Piece(NamedTuple):
    """Some stored values of a block: where in the block they start, and the values."""

    offset: Shape
    values: NDArray[Any]


@dataclass(frozen=True)
class Chunks:
    """The chunks that a block touches, in the array's own axes.

    Attributes
    ----------
    size : tuple of int
        Voxels of a chunk (of an inner chunk, where chunks lie in shards).
    first : tuple of int
        Index of the first chunk the block touches.
    marks : ndarray of object
        For each chunk a digest of its stored bytes, or the object store's own tag of them;
        None where nothing is stored, which zarr reads as the fill value.
    """

    size: Shape
    first: Shape
    marks: NDArray[Any]

    @cached_property
    def stored(self) -> NDArray[np.bool_]:
        """Which chunks are stored."""
        return np.asarray(self.marks != None, dtype=bool)  # noqa: E711 - element by element

    def under(self, start: Shape, stop: Shape) -> list[Shape]:
        """Indices of the stored chunks that a part of the block touches."""
        part = self._part(start, stop)
        z, y, x = (f + p.start for f, p in zip(self.first, part, strict=True))
        return [(z + i, y + j, x + k) for i, j, k in np.argwhere(self.stored[part]).tolist()]

    def complete(self, start: Shape, stop: Shape) -> bool:
        """Whether every chunk that a part of the block touches is stored."""
        return bool(self.stored[self._part(start, stop)].all())

    def _part(self, start: Shape, stop: Shape) -> tuple[slice, ...]:
        rows = zip(start, stop, self.size, self.first, strict=True)
        return tuple(slice(max(a // c - f, 0), -(-b // c) - f) for a, b, c, f in rows)

    def missing(self) -> Iterator[tuple[Shape, Shape]]:
        """Extent (start, stop) of every chunk that is not stored."""
        for index in np.argwhere(~self.stored).tolist():
            z, y, x = ((f + i) * c for f, i, c in zip(self.first, index, self.size, strict=True))
            yield (z, y, x), (z + self.size[0], y + self.size[1], x + self.size[2])


class ChunkReader:
    """Reads the chunks of one array.

    A zarr v2 array on disk is read chunk by chunk through its own codec, which takes a third
    of the time of zarr's general way; all else goes through zarr, several chunks at a time.

    Parameters
    ----------
    array : zarr.Array
        Three axes.

    Raises
    ------
    MetadataError
        The array has shards of which no index tells what they hold.
    """

    def __init__(self, array: stores.Array) -> None:
        self.array = array
        self.dtype: np.dtype[Any] = array.dtype
        self.fill = 0 if array.fill_value is None else array.fill_value
        self._shards = find_shards(array)
        self._keys_checked = False
        metadata, store = array.metadata, array.store_path.store
        self._folder = store.root if isinstance(store, LocalStore) else None
        plain = (
            isinstance(metadata, ArrayV2Metadata)
            and metadata.order == "C"
            and not metadata.filters
            and self.dtype.kind in "uifb"
        )
        self._direct = plain and self._folder is not None
        self._compressor: Any = getattr(metadata, "compressor", None)
        self._prefix = f"{array.store_path.path}/" if array.store_path.path else ""
        self._encode = metadata.encode_chunk_key
        last = self._compressor or (getattr(metadata, "codecs", None) or (None,))[-1]
        self._whole = _whole_blosc if isinstance(last, Blosc | BloscCodec) else _any_bytes

    @property
    def shape(self) -> Shape:
        """Voxels of the array."""
        return _triple(self.array.shape)

    @property
    def chunk_shape(self) -> Shape:
        """Voxels of a chunk (of an inner chunk, where chunks lie in shards)."""
        return self._shards.inner if self._shards else _triple(self.array.chunks)

    @property
    def _file_shape(self) -> Shape:
        """Voxels that one file holds: a chunk, or a shard of chunks."""
        return _triple(self.array.shards or self.array.chunks)

    def survey(self, start: Shape, stop: Shape) -> Chunks:
        """Find what is stored under a block, undecoded.

        Raises
        ------
        StoreError
            The store refuses or fails, or a chunk is truncated.
        ChunkKeyError
            Something seems to be missing, and chunk files lie there under other names.
        """
        outer = self._file_shape
        first = [a // c for a, c in zip(start, outer, strict=True)]
        count = [-(-b // c) - f for b, c, f in zip(stop, outer, first, strict=True)]
        z, y, x = (range(f, f + n) for f, n in zip(first, count, strict=True))
        rows = [[(i, j, k) for k in x] for i, j in itertools.product(z, y)]
        try:
            if self._folder is not None:
                marks = [mark for row in rows for mark in self._local_marks(self._folder, row)]
            else:
                names = [self._key(index) for row in rows for index in row]
                marks = sync(_far_marks(self.array.store_path.store, names))
            found = np.array(marks, dtype=object).reshape(count)
            if None in marks:
                self._check_keys()
            if self._shards:
                found = self._within_shards(self._shards, found, first)
        except Exception as error:
            if isinstance(error, CellmapError) or stores.passing(error):
                raise
            raise StoreError(
                f"{self.array.store_path} cannot be listed ({stores.line(error)})"
            ) from error
        inner = self.chunk_shape
        start_chunk = _triple(
            tuple(f * (o // i) for f, o, i in zip(first, outer, inner, strict=True))
        )
        # A shard may reach beyond the array; chunks that are wholly there are not missing.
        ends = (-(-n // i) for n, i in zip(self.shape, inner, strict=True))
        inside = tuple(slice(end - f) for end, f in zip(ends, start_chunk, strict=True))
        return Chunks(size=inner, first=start_chunk, marks=found[inside])

    def pieces(self, chunks: Chunks, start: Shape, stop: Shape) -> Iterator[Piece]:
        """What is stored of the block ``start`` to ``stop`` (inside the array), piece by piece.

        The rest of the block has the fill value.

        Raises
        ------
        StoreError
            A chunk is truncated or corrupt, or the store failed.
        """
        stored = chunks.under(start, stop)
        if stored and not self._direct:
            yield Piece((0, 0, 0), stores.read(self.array, start, stop))
            return
        for index in stored:
            values = self._decode(index)
            low = [i * c for i, c in zip(index, chunks.size, strict=True)]
            part = tuple(
                slice(max(a - b, 0), min(e - b, c))
                for a, e, b, c in zip(start, stop, low, chunks.size, strict=True)
            )
            z, y, x = (max(b - a, 0) for a, b in zip(start, low, strict=True))
            yield Piece((z, y, x), values[part])

    def _decode(self, index: Shape) -> NDArray[Any]:
        """One whole chunk."""
        stored = _bytes(f"{self._folder}/{self._key(index)}")
        try:
            if stored is None:
                raise FileNotFoundError("it has gone since the crop was opened")  # noqa: TRY301
            raw = stored if self._compressor is None else self._compressor.decode(stored)
            return np.frombuffer(raw, self.dtype).reshape(self.array.chunks)
        except Exception as error:
            raise StoreError(
                f"{self.array.store_path}, chunk {'/'.join(map(str, index))} cannot be read "
                f"({stores.line(error)})",
                "a whole chunk",
                "download the crop again",
            ) from error

    def _key(self, index: tuple[int, ...]) -> str:
        return self._prefix + self._encode(index)

    def _local_marks(self, folder: Path, row: list[Shape]) -> list[str | None]:
        """Digests of the files of neighbours along the last axis, which share a folder.

        A folder that is not there answers for all that would be in it.
        """
        if not _is_folder(f"{folder}/{self._key(row[0])}".rpartition("/")[0]):
            return [None] * len(row)
        marks: list[str | None] = []
        for index in row:
            path = f"{folder}/{self._key(index)}"
            stored = _bytes(path)
            if stored is not None:
                self._whole(stored, path)
            marks.append(None if stored is None else hashlib.sha256(stored).hexdigest())
        return marks

    def _check_keys(self) -> None:
        """Let no chunk count as missing before the files that are there were understood."""
        if not self._keys_checked:
            chunk_keys.check(self.array, self._file_shape)
            self._keys_checked = True

    def _within_shards(self, shards: Shards, marks: NDArray[Any], first: list[int]) -> NDArray[Any]:
        """Marks of the inner chunks, from the index of each shard."""
        inner = shards.per_shard
        result = marks.repeat(inner[0], 0).repeat(inner[1], 1).repeat(inner[2], 2)
        places = np.argwhere(marks != None).tolist()  # noqa: E711 - element by element
        held = [self._key(tuple(f + i for f, i in zip(first, p, strict=True))) for p in places]
        found = iter(sync(_parts(self.array.store_path.store, held, shards.where)))
        for place in places:
            part = tuple(slice(p * n, (p + 1) * n) for p, n in zip(place, inner, strict=True))
            result[part][~shards.held(next(found))] = None
        return result


def _triple(values: tuple[int, ...]) -> Shape:
    z, y, x = values
    return z, y, x


def _any_bytes(_stored: bytes, _path: str) -> None:
    """No check: the codec makes it."""


def _whole_blosc(stored: bytes, path: str) -> None:
    """Refuse a truncated chunk: Blosc's decoder would read on in whatever memory follows."""
    needed = _BLOSC_HEADER_BYTES
    if len(stored) >= needed:
        needed = max(needed, int.from_bytes(stored[12:16], "little"))
    if len(stored) < needed:
        raise StoreError(
            f"{path} cannot be read ({len(stored)} bytes of {needed})",
            "a whole chunk",
            "download the crop again",
        )


def _is_folder(path: str) -> bool:
    """Whether a folder is there; one that may not be looked at raises: it is not missing."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)  # noqa: PTH116 - Path costs as much again
    except (FileNotFoundError, NotADirectoryError):
        return False


def _bytes(path: str) -> bytes | None:
    try:
        with open(path, "rb", buffering=0) as source:  # noqa: PTH123 - Path costs as much again
            return source.read()
    except FileNotFoundError:
        return None


async def _far_marks(store: Store, names: list[str]) -> list[str | None]:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(name: str) -> str | None:
        async with gate:
            if isinstance(store, ObjectStore):
                return await remote.tag(store, name)
            stored = await store.get(name, default_buffer_prototype())
            return None if stored is None else hashlib.sha256(stored.to_bytes()).hexdigest()

    return list(await asyncio.gather(*map(one, names)))


async def _parts(store: Store, names: list[str], where: ByteRequest) -> list[bytes]:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(name: str) -> bytes:
        async with gate:
            part = await store.get(name, default_buffer_prototype(), where)
            return b"" if part is None else part.to_bytes()

    return list(await asyncio.gather(*map(one, names)))

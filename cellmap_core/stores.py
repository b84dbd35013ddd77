"""Zarr groups and arrays, read only where asked, with missing chunks told from zeros.

A download of CellMap data keeps the full-volume metadata and only the chunks near crops;
zarr reads the rest as zeros. What is read here always says how much of it was really there.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import obstore
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.errors import GroupNotFoundError
from zarr.storage import ObjectStore

from cellmap_core import remote
from cellmap_core.errors import CellmapError, MetadataError, StoreError
from cellmap_core.grid import Shape

Array = zarr.Array[Any]


# Requests to a store at the same time; an object store answers each in tens of milliseconds.
_AT_ONCE = 32


def open_group(location: str) -> zarr.Group:
    """Open a zarr group (v2 or v3) for reading.

    Parameters
    ----------
    location : str
        A folder, ``s3://bucket/key`` (anonymous) or ``http(s)://…``.

    Raises
    ------
    StoreError
        Nothing is there, or it may not be read; the message names the deepest folder found.
    MetadataError
        Something is there, but it is not a readable zarr group.
    """
    far = remote.split(location)
    if far is None:
        _require(Path(location))
    try:
        if far is None:
            return zarr.open_group(location, mode="r")
        return zarr.open_group(far[0], path=far[1], mode="r")
    except PermissionError as error:
        raise StoreError(f"{location} may not be read", "read permission") from error
    except (FileNotFoundError, GroupNotFoundError) as error:
        raise StoreError(f"no zarr group at {location}", "a zarr group") from error
    except (obstore.exceptions.BaseError, OSError) as error:
        raise StoreError(f"{location} cannot be read ({_line(error)})", "an open store") from error
    except Exception as error:
        raise MetadataError(
            f"{location} is no zarr group ({_line(error)})", "a zarr group"
        ) from error


def open_array(group: zarr.Group, location: str, name: str) -> Array:
    """Open the array ``name`` of a group; ``location`` is the group's, for messages."""
    try:
        node = group[name]
    except KeyError as error:
        raise StoreError(
            f"no array {name} in {location}", f"one of {', '.join(children(group)) or 'none'}"
        ) from error
    except Exception as error:
        raise MetadataError(f"{location}/{name} has bad metadata ({_line(error)})") from error
    if not isinstance(node, zarr.Array):
        raise MetadataError(f"{location}/{name} is a group", "an array")
    return node


def children(group: zarr.Group, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of what a group holds, sorted; their metadata are not read.

    A store that cannot list (plain HTTP) is asked for each of the ``wanted`` names.
    """

    async def names() -> list[str]:
        listing = group.store_path.store.list_dir(group.store_path.path)
        return [name.rstrip("/") async for name in listing]

    if not remote.can_list(group.store_path.store):
        return tuple(sorted(name for name in set(wanted) if name in group))
    metadata = {".zgroup", ".zattrs", ".zarray", ".zmetadata", "zarr.json"}
    return tuple(sorted(set(sync(names())) - metadata))


def read(array: Array, start: Shape, stop: Shape) -> NDArray[Any]:
    """Read the block ``start`` to ``stop`` (inside the array, in the array's own axes).

    Raises
    ------
    StoreError
        A chunk is truncated or corrupt, or the store failed.
    """
    selection = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    try:
        return np.asarray(array[selection])
    except CellmapError:
        raise
    except Exception as error:
        raise StoreError(
            f"{array.store_path} cannot be read at {start} to {stop} ({_line(error)})",
            "whole chunks",
            "download the crop again",
        ) from error


class Chunk(NamedTuple):
    """One stored unit under a block: its extent, and what tells its content.

    ``mark`` is a digest of the stored bytes, or the object store's own tag of them; None where
    nothing is stored, which zarr reads as zeros.
    """

    low: Shape
    high: Shape
    mark: str | None


def survey(array: Array, start: Shape, stop: Shape) -> tuple[Chunk, ...]:
    """What is stored under a block (in the array's own axes), chunk by chunk, undecoded.

    Raises
    ------
    StoreError
        The store refuses or fails.
    """
    chunks = list(_chunks(array, start, stop))
    try:
        marks = sync(_marks(array.store_path.store, [key for key, *_ in chunks]))
    except Exception as error:
        raise StoreError(f"{array.store_path} cannot be listed ({_line(error)})") from error
    return tuple(Chunk(low, high, mark) for (_, low, high), mark in zip(chunks, marks, strict=True))


async def _marks(store: Store, keys: list[str]) -> list[str | None]:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(key: str) -> str | None:
        async with gate:
            if isinstance(store, ObjectStore):
                return await remote.tag(store, key)
            stored = await store.get(key, default_buffer_prototype())
            return None if stored is None else hashlib.sha256(stored.to_bytes()).hexdigest()

    return list(await asyncio.gather(*map(one, keys)))


def _chunks(array: Array, start: Shape, stop: Shape) -> Iterator[tuple[str, Shape, Shape]]:
    """Store key and extent (cut to the block) of every chunk that the block touches."""
    size = array.shards or array.chunks
    ranges = [range(a // c, -(-b // c)) for a, b, c in zip(start, stop, size, strict=True)]
    for index in itertools.product(*ranges):
        low = tuple(max(i * c, a) for i, c, a in zip(index, size, start, strict=True))
        high = tuple(min((i + 1) * c, b) for i, c, b in zip(index, size, stop, strict=True))
        name = array.metadata.encode_chunk_key(index)
        key = f"{array.store_path.path}/{name}" if array.store_path.path else name
        yield key, (low[0], low[1], low[2]), (high[0], high[1], high[2])


def _require(path: Path) -> None:
    """Name the deepest folder there is and what it holds, where ``path`` is missing."""
    if path.exists():
        return
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    try:
        found = sorted(p.name for p in parent.iterdir() if not p.name.startswith("."))[:12]
    except OSError:
        found = []
    raise StoreError(
        f"{path} does not exist", f"a zarr group; {parent} holds {', '.join(found) or 'nothing'}"
    )


def _line(error: Exception) -> str:
    """One line of a library's message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__

"""The names of chunk files: whether those that lie in an array's place are its chunks.

A chunk that is not found is read as nothing: as a class that is absent, or EM that was not
downloaded. That holds only where the files that are there have the names that the metadata
say. Chunks kept as ``0/0/0`` beside metadata that say ``0.0.0`` are all there, and none is found.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore
import zarr
from zarr.abc.store import Store
from zarr.core.chunk_key_encodings import DefaultChunkKeyEncoding, V2ChunkKeyEncoding
from zarr.core.sync import sync
from zarr.storage import LocalStore

from cellmap_core import remote
from cellmap_core.errors import ChunkKeyError

# Names of every key encoding of zarr: indices with dots or slashes, in v3 after a "c".
_CHUNK_LIKE = re.compile(r"(?:c[./])?[0-9]+(?:[./][0-9]+)*")
_NOT_ALLOWED = (
    obstore.exceptions.PermissionDeniedError,
    obstore.exceptions.UnauthenticatedError,
)
_ENCODINGS = (
    V2ChunkKeyEncoding(separator="."),
    V2ChunkKeyEncoding(separator="/"),
    DefaultChunkKeyEncoding(separator="/"),
    DefaultChunkKeyEncoding(separator="."),
)
# A volume has up to millions of chunk files. These many names tell which form they have, and one
# request to a bucket gives as many.
_MOST_NAMES = 1000
_MOST_FOLDERS = 64
# Folders of a level that are looked into, of those that hold anything: the others are alike.
_ALIKE = 2


def _may_be_data(name: str) -> bool:
    """Whether a file's own name is neither that of zarr's metadata nor hidden."""
    return not name.startswith(".") and name != "zarr.json"


def is_chunk_like(name: str) -> bool:
    """Whether a path inside an array looks like the key of a chunk of any zarr array."""
    return bool(_CHUNK_LIKE.fullmatch(name))


def chunk_files(store: Store, path: str) -> tuple[str, ...]:
    """Return chunk-like files of an array, relative to it; of very many only some.

    Parameters
    ----------
    store : Store
        Of a folder, or of a bucket.
    path : str
        The array's path in the store.

    Returns
    -------
    tuple of str
        Empty too where the store cannot list, or refuses to.
    """
    return tuple(filter(is_chunk_like, _files(store, path)))


def _files(store: Store, path: str) -> tuple[str, ...]:
    """Files of an array without its metadata and hidden ones, relative to it."""
    if isinstance(store, LocalStore):
        return tuple(_walk(Path(store.root, path), "", _Budget(_MOST_FOLDERS)))
    if not remote.can_list(store):
        return ()
    try:
        return sync(_first_keys(store, f"{path}/" if path else ""))
    except (PermissionError, *_NOT_ALLOWED):
        return ()


def check(array: zarr.Array[Any], outer: Sequence[int]) -> None:
    """Refuse an array whose place holds chunk files that its metadata do not name.

    Parameters
    ----------
    array : zarr.Array
        The array.
    outer : sequence of int
        Voxels of what one file holds: a chunk, or a shard.

    Raises
    ------
    ChunkKeyError
        The message says what to set.
    """
    encode = array.metadata.encode_chunk_key
    counts = [math.ceil(n / c) for n, c in zip(array.shape, outer, strict=True)]
    files = _files(array.store_path.store, array.store_path.path)
    names = tuple(filter(is_chunk_like, files))
    if files and not names:
        raise ChunkKeyError(
            f"{array.store_path} holds {files[0]}, which is no name of a chunk, and no chunk",
            f"names like {encode((0,) * len(counts))}",
            "rename its chunks, or remove that file if nothing is stored there",
        )
    for name in names:
        index = tuple(int(part) for part in re.findall(r"[0-9]+", name))
        own = len(index) == len(counts) and encode(index) == name
        if own and all(i < n for i, n in zip(index, counts, strict=True)):
            continue
        if own:
            raise ChunkKeyError(
                f"{array.store_path} holds the chunk {name}, outside its shape "
                f"{tuple(array.shape)} in chunks of {tuple(outer)}",
                f"chunks below {encode(tuple(counts))}",
                "correct shape and chunks in its metadata, or remove that file",
            )
        raise ChunkKeyError(
            f"{array.store_path} holds the chunk file {name}, which its metadata do not name",
            f"names like {encode((0,) * len(counts))}",
            _remedy(name, index, array.metadata.zarr_format),
        )


def _remedy(name: str, index: tuple[int, ...], zarr_format: int) -> str:
    """What to set so that the metadata name the file."""
    written = [e for e in _ENCODINGS if e.encode_chunk_key(index) == name]
    if not written or (zarr_format == 2 and isinstance(written[0], DefaultChunkKeyEncoding)):
        return "these are chunks of another array, or its metadata are: download both again"
    encoding = written[0]
    if zarr_format == 2:
        setting = f'"dimension_separator": "{encoding.separator}" in its .zarray'
    else:
        setting = (
            f'"chunk_key_encoding": {{"name": "{encoding.name}", "configuration": '
            f'{{"separator": "{encoding.separator}"}}}} in its zarr.json'
        )
    return f"if these are its chunks, set {setting}"


@dataclass
class _Budget:
    """How many more folders may be listed."""

    folders: int


def _walk(folder: Path, prefix: str, budget: _Budget) -> Iterator[str]:
    """Files of a folder and of the first of its folders that hold some."""
    budget.folders -= 1
    try:
        with os.scandir(folder) as entries:
            found = [(e.name, e.is_dir()) for e in itertools.islice(entries, _MOST_NAMES)]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # Each chunk that is asked for says itself whether it may be read.
    yield from (f"{prefix}{n}" for n, is_dir in found if not is_dir and _may_be_data(n))
    holding = 0
    for name, is_dir in found:
        inside = prefix + name
        if not is_dir or not (inside == "c" or is_chunk_like(inside)):
            continue
        if budget.folders < 1 or holding == _ALIKE:
            return
        below = list(_walk(folder / name, f"{inside}/", budget))
        holding += bool(below)
        yield from below


async def _first_keys(store: Store, prefix: str) -> tuple[str, ...]:
    names: list[str] = []
    count = 0
    async for key in store.list_prefix(prefix):
        name = key.removeprefix(prefix)
        if all(map(_may_be_data, name.split("/"))):
            names.append(name)
        count += 1
        if count == _MOST_NAMES:
            break
    return tuple(names)

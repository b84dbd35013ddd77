"""Zarr groups and arrays on disk, in a bucket or behind HTTP: opening, listing and reading."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import obstore
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.core.sync import sync
from zarr.errors import GroupNotFoundError
from zarr.storage import LocalStore, StorePath

from cellmap_core import local_v2, remote, zarr_documents, zarr_nodes
from cellmap_core.errors import CellmapError, MetadataError, StoreError, may_pass
from cellmap_core.grid import Shape

Array = zarr.Array[Any]
T = TypeVar("T")

# Entries of a folder that a message names; the rest is counted.
_LISTED = 12


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
    try:
        if far is None:
            _require(Path(location))
            plain = local_v2.open_group(location)
            return _group(LocalStore(location, read_only=True), "", location, plain)
        return _group(*far, location)
    except PermissionError as error:
        raise StoreError(f"{location} may not be read", "read permission") from error
    except CellmapError:
        raise
    except (FileNotFoundError, GroupNotFoundError) as error:
        raise StoreError(f"no zarr group at {location}", "a zarr group") from error
    except (obstore.exceptions.BaseError, OSError) as error:
        if passing(error):
            raise
        raise StoreError(f"{location} cannot be read ({line(error)})", "an open store") from error
    except Exception as error:
        raise MetadataError(
            f"{location} is no zarr group ({line(error)})", "a zarr group"
        ) from error


def _group(store: Store, path: str, location: str, plain: zarr.Group | None = None) -> zarr.Group:
    """Open a group as zarr does, and else by its own document or with what lies there."""
    if plain is not None:
        return plain
    try:
        return zarr.open_group(store, path=path, mode="r")
    except Exception as error:
        if isinstance(error, PermissionError) or passing(error):
            raise
        place = StorePath(store, path)
        group = _tried(partial(zarr_documents.open_group, place))
        if group is not None:
            return group
        if reason := _tried(partial(zarr_nodes.explain_no_group, place, location)):
            raise reason from error
        raise


def _tried(look: Callable[[], T]) -> T | None:
    """What a second look finds; None where it fails too, so that the first error stands."""
    try:
        return look()
    except Exception as error:
        if passing(error):
            raise
        return None


def find_array(group: zarr.Group, location: str, name: str) -> Array | None:
    """The array ``name`` of a group, or None; ``location`` is the group's, for messages.

    Raises
    ------
    StoreError
        It may not be read.
    MetadataError
        Its metadata cannot be understood, or it has none although its chunks are there.
    """
    try:
        node = _array(group, name)
    except PermissionError as error:
        raise StoreError(f"{location}/{name} may not be read", "read permission") from error
    except Exception as error:
        if passing(error):
            raise
        raise MetadataError(f"{location}/{name} has bad metadata ({line(error)})") from error
    if node is None:
        if reason := _tried(
            partial(zarr_nodes.explain_no_array, group, name, f"{location}/{name}")
        ):
            raise reason
        return None
    if not isinstance(node, zarr.Array):
        raise MetadataError(f"{location}/{name} is a group", "an array")
    if min((*node.shape, *node.chunks), default=0) < 1:
        raise MetadataError(
            f"{location}/{name} has shape {node.shape} and chunks {node.chunks}", "at least 1 each"
        )
    return node


def _array(group: zarr.Group, name: str) -> Any:
    """The node ``name`` of a group as zarr opens it, and else by its own document."""
    if (plain := local_v2.find_array(group, name)) is not None:
        return plain
    try:
        return group[name]
    except Exception as error:
        if isinstance(error, PermissionError) or passing(error):
            raise
        found = zarr_documents.find_array(group, name)
        # A key that a document lacks is a KeyError too, but then there is a document.
        if found is not None or isinstance(error, KeyError):
            return found
        raise


def attributes(node: Array | zarr.Group, location: str) -> dict[str, Any]:
    """The attributes of a group or array.

    Raises
    ------
    MetadataError
        They are not a JSON object.
    """
    found: Any = node.metadata.attributes
    if not isinstance(found, dict):
        raise MetadataError(f"{location} has attributes {found!r:.40}", "a JSON object")
    return dict(found)


def children(group: zarr.Group, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of what a group holds, sorted; their metadata are not read.

    A store that cannot list (plain HTTP) is asked for each of the ``wanted`` names.

    Raises
    ------
    StoreError
        The store refuses or fails.
    """

    async def names() -> list[str]:
        listing = group.store_path.store.list_dir(group.store_path.path)
        return [name.rstrip("/") async for name in listing]

    metadata = {".zgroup", ".zattrs", ".zarray", ".zmetadata", "zarr.json"}

    def is_there(name: str) -> bool:
        # A group without its own document is there too, and is refused by name when opened.
        return name in group or sync((group.store_path / name / ".zattrs").exists())

    try:
        if not remote.can_list(group.store_path.store):
            return tuple(sorted(name for name in set(wanted) if is_there(name)))
        return tuple(sorted(set(sync(names())) - metadata))
    except (obstore.exceptions.BaseError, OSError) as error:
        if passing(error):
            raise
        raise StoreError(
            f"{group.store_path} cannot be listed ({line(error)})", "read permission"
        ) from error


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
        if passing(error):
            raise
        raise StoreError(
            f"{array.store_path} cannot be read at {start} to {stop} ({line(error)})",
            "whole chunks",
            "download the crop again",
        ) from error


def passing(error: BaseException) -> bool:
    """Whether reading failed in a way that may pass, so that the whole crop is tried again.

    Codecs too raise an ``OSError`` for what is corrupt (gzip does); those have no number.
    """
    return isinstance(error, OSError) and error.errno is not None and may_pass(error)


def _require(path: Path) -> None:
    """Name the deepest folder there is and what it holds, where ``path`` is missing."""
    if path.exists():
        return
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    if parent.is_file():
        raise zarr_nodes.no_folder(str(parent), f"{path} cannot lie in it")
    try:
        found = sorted(p.name for p in parent.iterdir() if not p.name.startswith("."))
    except OSError:
        found = []
    listed = ", ".join(found[:_LISTED]) or "nothing"
    if len(found) > _LISTED:
        listed += f" and {len(found) - _LISTED} more"
    raise StoreError(f"{path} does not exist", f"a zarr group; {parent} holds {listed}")


def line(error: Exception) -> str:
    """One line of a library's message, for one of ours."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__

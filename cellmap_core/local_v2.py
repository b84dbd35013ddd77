"""Opening zarr v2 groups and arrays on disk, which is how CellMap's crops come.

A crop lists some fifty classes, and zarr's general way asks the disk for each in turn over an
event loop: a tenth of a crop's conversion. The metadata are a file or two. What is not plainly
v2 is left to zarr, which then says what is wrong with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import zarr
from zarr.core.array import AsyncArray
from zarr.core.group import AsyncGroup, GroupMetadata
from zarr.core.metadata.v2 import ArrayV2Metadata
from zarr.storage import LocalStore, StorePath

# Their presence makes a folder something else than a plain v2 node.
_OTHER = ("zarr.json", ".zmetadata")


def open_group(location: str) -> zarr.Group | None:
    """The group in a folder, or None where it is no plain v2 group."""
    folder = Path(location)
    about = _node(folder, ".zgroup")
    if about is None:
        return None
    metadata = GroupMetadata(attributes=about["attributes"], zarr_format=2)
    place = StorePath(LocalStore(folder, read_only=True))
    return zarr.Group(AsyncGroup(metadata=metadata, store_path=place))


def find_array(group: zarr.Group, name: str) -> zarr.Array[Any] | None:
    """The array ``name`` of a group on disk, or None where it is no plain v2 array."""
    store = group.store_path.store
    metadata = group.metadata
    if not isinstance(store, LocalStore) or metadata.zarr_format != 2:
        return None
    if metadata.consolidated_metadata is not None:
        return None
    path = f"{group.store_path.path}/{name}".lstrip("/")
    about = _node(store.root / path, ".zarray")
    if about is None:
        return None
    try:
        return zarr.Array(AsyncArray(ArrayV2Metadata.from_dict(about), StorePath(store, path)))
    except Exception:  # noqa: BLE001 - zarr finds the same, and its error becomes ours
        return None


def _node(folder: Path, name: str) -> dict[str, Any] | None:
    """Metadata and attributes of a folder that is a v2 node and nothing else besides."""
    try:
        about = json.loads((folder / name).read_bytes())
        attributes = _attributes(folder / ".zattrs")
        plain = about["zarr_format"] == 2 and isinstance(attributes, dict)
        plain = plain and not any((folder / other).exists() for other in _OTHER)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return about | {"attributes": attributes} if plain else None


def _attributes(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}

"""What lies where a zarr group or array was expected and none could be opened."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import zarr
from zarr.core.sync import sync
from zarr.storage import LocalStore, StorePath

from cellmap_core import remote
from cellmap_core.chunk_keys import chunk_files
from cellmap_core.errors import MetadataError
from cellmap_core.zarr_documents import read_document

_MARKS = (".zarray", ".zgroup", ".zattrs", "zarr.json", "attributes.json")
# Members that are looked at to tell a group without its own document.
_FEW = 8


def explain_no_group(place: StorePath, location: str) -> MetadataError | None:
    """Return an error that says what lies where a group was expected; None where nothing does.

    Parameters
    ----------
    place : StorePath
        Where no group could be opened.
    location : str
        Its location, for the message.
    """
    if not remote.split(location) and Path(location).is_file():
        return no_folder(location)
    held = _held(place)
    if _is_array(place, held):
        parent = location.rstrip("/").rpartition("/")[0]
        return MetadataError(
            f"{location} is a zarr array",
            "a zarr group: an image with its scale levels, or a crop with its classes",
            f"give the group that holds it ({parent})",
        )
    if {".zgroup", "zarr.json"} & set(held):
        return None
    if ".zattrs" not in held and (images := _images(place)):
        return MetadataError(
            f"{location} is no image, but a folder with the images {', '.join(images)} and without "
            "metadata of its own",
            "an image with its scale levels, or a crop with its classes",
            f"give one of these images ({location.rstrip('/')}/{images[0]}), or, where they are "
            "the classes of a crop, download its .zgroup or zarr.json",
        )
    inside = {mark: name for name in _members(place) for mark in _held(place / name)}
    if _is_n5(place, held) or "attributes.json" in inside:
        return _n5(location)
    if "zarr.json" in inside:
        return MetadataError(
            f"{location} has no zarr.json, though {inside['zarr.json']} in it has",
            "a zarr group",
            "download its zarr.json",
        )
    if ".zattrs" in held or {".zarray", ".zgroup"} & inside.keys():
        return MetadataError(
            f"{location} has no .zgroup, though it holds a zarr group otherwise",
            "a zarr group",
            'download its .zgroup, or write {"zarr_format": 2} into that file',
        )
    return None


def explain_no_array(group: zarr.Group, name: str, location: str) -> MetadataError | None:
    """Return an error where something lies in the place of an array that could not be found.

    Parameters
    ----------
    group : zarr.Group
        The group that has no such array.
    name : str
        The array.
    location : str
        Its location, for the message.
    """
    place = group.store_path / name
    if isinstance(place.store, LocalStore) and not Path(place.store.root, place.path).is_dir():
        return None
    held = _held(place)
    number = group.metadata.zarr_format
    other = "zarr.json" if number == 2 else ".zarray"
    if other in held:
        return MetadataError(
            f"{location} has {other}, while its group is of zarr v{number}",
            f"group and array of zarr v{number}",
            "write both in one format",
        )
    if _is_n5(place, held):
        return _n5(location)
    if files := chunk_files(place.store, place.path):
        document = ".zarray" if number == 2 else "zarr.json"
        return MetadataError(
            f"{location} has chunk files ({files[0]}, …) but no {document}",
            "the metadata of the array",
            f"download its {document}",
        )
    return None


def no_folder(location: str, found: str = "") -> MetadataError:
    """Return the error for a location that is a file; ``found`` adds the consequence."""
    return MetadataError(
        f"{location} is a file" + (f", so {found}" if found else ""),
        "a folder with a zarr group",
        "unpack it if it is an archive",
    )


def _n5(location: str) -> MetadataError:
    return MetadataError(
        f"{location} is N5 (attributes.json)",
        "OME-Zarr, as zarr v2 or v3",
        "convert it to OME-Zarr first",
    )


def _is_n5(place: StorePath, held: list[str]) -> bool:
    """Whether a place without zarr metadata is, or lies in, an N5 container."""
    if {".zarray", ".zgroup", "zarr.json"} & set(held):
        return False
    path = PurePosixPath(place.path)
    if isinstance(place.store, LocalStore):
        path = PurePosixPath(place.store.root, place.path)
        roots = [p / "attributes.json" for p in Path(path).parents]
        if any(p.is_file() and '"n5"' in p.read_text(errors="replace") for p in roots):
            return True
    return "attributes.json" in held or any(part.endswith(".n5") for part in path.parts)


def _is_array(place: StorePath, held: list[str]) -> bool:
    if "zarr.json" in held:
        try:
            return (read_document(place / "zarr.json") or {}).get("node_type") == "array"
        except ValueError:
            return False
    return ".zarray" in held


def _images(place: StorePath) -> list[str]:
    """Names of the images among the members of a place."""
    return sorted(name for name in _members(place) if _is_image(place / name))


def _is_image(place: StorePath) -> bool:
    """Whether a place has multiscales metadata, in the form of zarr v2 or v3."""
    try:
        attributes = read_document(place / ".zattrs")
        if attributes is None:
            attributes = (read_document(place / "zarr.json") or {}).get("attributes")
    except ValueError:
        return False
    document = attributes.get("ome", attributes) if isinstance(attributes, dict) else None
    return isinstance(document, dict) and "multiscales" in document


def _held(place: StorePath) -> list[str]:
    """Which metadata files lie in a place."""
    return [mark for mark in _MARKS if sync((place / mark).exists())]


def _members(place: StorePath) -> list[str]:
    """Some names of what lies in a place, where the store can list."""

    async def names() -> list[str]:
        found: list[str] = []
        async for name in place.store.list_dir(place.path):
            if (name := name.rstrip("/")) not in _MARKS:
                found.append(name)
            if len(found) == _FEW:
                break
        return found

    return sync(names()) if remote.can_list(place.store) else []

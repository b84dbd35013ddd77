"""Crops found in folders: under a data root, by a glob, and the classes that crops store.

Folders are only listed, never opened, so that a root with many datasets is read in moments.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import obstore

from cellmap_core import remote, stores
from cellmap_core.crop_refs import BadRow, CropRef, Datasplit, gather, in_store
from cellmap_core.errors import CellmapError, DatasplitError, RowError, StoreError
from cellmap_core.volume import open_crop_group

#: The raw image that is taken where there are several.
IMAGE = "fibsem-uint8"

_LAYOUT = ("*", "*.zarr", "recon-*", "labels", "groundtruth", "crop*")
_SHOWN = "<dataset>/<dataset>.zarr/recon-*/labels/groundtruth/crop*"
_WILD = re.compile(r"[*?\[]")
# Listings at the same time; an object store answers each in tens of milliseconds.
_AT_ONCE = 32


def is_glob(path: Path) -> bool:
    """Whether a path is a pattern of paths and not the name of what is there."""
    return bool(_WILD.search(str(path))) and not path.exists()


def find_crops(path: Path) -> Datasplit:
    """The crops under a data root, or those that a glob matches; all of them to train on.

    Raises
    ------
    DatasplitError
        There is no crop, or none that can be read.
    """
    pattern = is_glob(path)
    if pattern and "**" in path.parts:
        # It would list every chunk of every volume.
        raise DatasplitError(f"{path} holds **", "one * for each folder", f"as in {_SHOWN}")
    start = Path.cwd() if pattern else path.resolve()
    unread: list[tuple[str, str]] = []
    found = list(_matching(start, path.parts if pattern else _LAYOUT, unread))
    if not found and unread:
        raise DatasplitError(unread[0][1], "read permission")
    if not found:
        what = "no folder matches" if pattern else "no crop under"
        raise DatasplitError(
            f"{what} {path}",
            f"crop folders {'<data root>/' if pattern else ''}{_SHOWN}",
            "check the path; a data root is the folder that holds the datasets",
        )
    datasplit = gather(((n, str(p)) for n, p in enumerate(found, start=1)), _read_folder, path)
    bad = (
        BadRow(line=line, text=text, reason=reason)
        for line, (text, reason) in enumerate(unread, start=len(found) + 1)
    )
    return datasplit.model_copy(update={"bad_rows": (*datasplit.bad_rows, *bad)})


def image_in(em: str, name: str) -> str:
    """The raw image in a folder: ``fibsem-uint8`` where it is there, else the only one.

    Parameters
    ----------
    em : str
        The folder of images of a reconstruction.
    name : str
        The crop it is for, for messages.

    Raises
    ------
    RowError
        There is none, or nothing says which.
    """
    try:
        images = _folders(em)
    except OSError as error:
        raise RowError(f"{name}: {em} cannot be listed ({error.strerror})", IMAGE) from error
    if IMAGE not in images and len(images) != 1:
        held = ", ".join(images) or "nothing"
        raise RowError(f"{name}: {em} holds {held}", f"{IMAGE}, or one image only")
    return f"{em}/{IMAGE if IMAGE in images else images[0]}"


def with_stored_classes(datasplit: Datasplit) -> Datasplit:
    """The datasplit with the classes that its crops store, sorted.

    A crop that cannot be listed becomes a bad row: which classes it has is not known.

    Raises
    ------
    DatasplitError
        No crop stores any class.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        listings = list(pool.map(_listing, datasplit.crops))
    bad = tuple(listing for listing in listings if isinstance(listing, BadRow))
    names = {n for listing in listings if not isinstance(listing, BadRow) for n in listing}
    if not names:
        first = f" ({bad[0].reason})" if bad else ""
        raise DatasplitError(
            f"no class is listed, and none found in the crops{first}",
            "a folder for each class in a crop",
            "check the paths, or give the option classes",
        )
    kept = (
        crop
        for crop, listing in zip(datasplit.crops, listings, strict=True)
        if not isinstance(listing, BadRow)
    )
    return Datasplit(
        crops=tuple(kept),
        bad_rows=(*datasplit.bad_rows, *bad),
        stored_classes=tuple(sorted(names)),
    )


def _listing(ref: CropRef) -> tuple[str, ...] | BadRow:
    try:
        return _stored(ref.labels) if ref.labels else ()
    except (CellmapError, OSError, obstore.exceptions.BaseError) as error:
        # The first line: some stores' errors come with the whole answer of the server.
        why = (str(error).splitlines() or [type(error).__name__])[0]
        reason = f"{ref.name}: its classes cannot be listed ({why})"
        return BadRow(line=ref.line, text=ref.labels, reason=reason)


def _stored(labels: str) -> tuple[str, ...]:
    """Names of the classes in a crop's group."""
    group = open_crop_group(labels)
    if remote.split(labels) is None:
        names: Sequence[str] = _folders(labels)
    else:
        # A plain web server lists nothing: it is asked for the names that the crop gives.
        document: dict[str, Any] = dict(group.attrs)
        annotation = (document.get("cellmap") or {}).get("annotation") or {}
        given = tuple(str(name) for name in annotation.get("class_names") or ())
        if not given and not remote.can_list(group.store_path.store):
            raise StoreError("this server lists nothing", "class_names in the crop's attributes")
        names = stores.children(group, given)
    return tuple(name for name in names if name != "all")


def _matching(folder: Path, parts: Sequence[str], unread: list[tuple[str, str]]) -> Iterator[Path]:
    """Folders whose path under ``folder`` matches the parts one by one.

    The standard library's glob would pass over a folder that may not be read; here it goes
    into ``unread``, with the reason.
    """
    if not parts:
        yield folder
        return
    try:
        if _WILD.search(parts[0]):
            names = [name for name in _folders(str(folder)) if fnmatchcase(name, parts[0])]
        else:
            names = [parts[0]] if (folder / parts[0]).is_dir() else []
    except OSError as error:
        unread.append((str(folder), f"{folder} cannot be listed ({error.strerror})"))
        return
    for name in names:
        yield from _matching(folder / name, parts[1:], unread)


def _folders(folder: str) -> list[str]:
    """Names of the folders in a folder, ``crop2`` before ``crop10``, without hidden ones."""
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if not e.name.startswith(".") and e.is_dir()]
    return sorted(names, key=lambda name: [int(p) if p.isdigit() else p for p in _pieces(name)])


def _pieces(name: str) -> list[str]:
    """Text and digits in turn, beginning with text, so that names can be compared."""
    return re.split(r"([0-9]+)", name)


def _read_folder(location: str) -> CropRef:
    dataset, store, inside = in_store(location)
    if len(inside) < 3 or inside[1] != "labels":
        raise RowError(f"{location} is no crop", _SHOWN)
    alignment, crop = inside[0], inside[-1]
    raw = image_in(f"{store}/{alignment}/em", f"{dataset}/{crop}")
    return CropRef(dataset=dataset, crop=crop, split="train", raw=raw, labels=location, store=store)

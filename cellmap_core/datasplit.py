"""The datasplit: which crops of which volumes, with which classes, for what use.

It is given as ``datasplit.csv``, as a crop manifest, as a data root or as a glob of crop folders;
what is there tells which. Rows of ``datasplit.csv`` have five columns (split, raw store, raw path,
label store, label path with the classes in brackets) or three (the paths joined). Quotes, comments,
a trailing scale level and relative paths are taken as they are met; a row that cannot be read is
kept with its reason.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from cellmap_core import crop_folders, manifests
from cellmap_core.crop_refs import BadRow, CropRef, Datasplit, check_split, gather, in_store
from cellmap_core.csv_rows import absolute, columns, read_rows, refuse_remote, start_of_paths
from cellmap_core.errors import DatasplitError, RowError
from cellmap_core.manifests import read_test_manifest
from cellmap_core.paths import expand

__all__ = ["BadRow", "CropRef", "Datasplit", "parse_row", "read_datasplit", "read_test_manifest"]

_BRACKETS = re.compile(r"\[([^\]]*)\]")
_LEVEL = re.compile(r"/s\d+/?$")
_HEADERS = frozenset({"split", "usage", "use"})


def read_datasplit(path: Path, data_root: str | None = None) -> Datasplit:
    """Read a datasplit in any of its forms.

    Parameters
    ----------
    path : Path
        A datasplit CSV, a crop manifest CSV, a data root, or a glob of crop folders.
    data_root : str or None
        Where relative paths of a CSV start (default: its folder).

    Raises
    ------
    DatasplitError
        It is missing or cannot be read, or there is no crop in it.
    OptionError
        ``data_root`` is no place to start from.
    """
    refuse_remote(path)
    if _is_folder_or_glob(path):
        return crop_folders.find_crops(path)
    rows = read_rows(path, "a datasplit or manifest CSV, a data folder, or a glob of crop folders")
    start = start_of_paths(path, data_root)
    if rows and manifests.header(rows[0][1]):
        return manifests.read_manifest(path, rows, start)
    if rows and columns(rows[0][1])[0].lower() in _HEADERS:
        rows = rows[1:]
    if not rows:
        raise DatasplitError(f"{path} is empty", "at least one row: split, raw, labels[classes]")
    return gather(rows, partial(parse_row, start=start), path)


def parse_row(text: str, start: str) -> CropRef:
    """Read one row of ``datasplit.csv``.

    Parameters
    ----------
    text : str
        The row.
    start : str
        Where relative paths start.

    Raises
    ------
    RowError
        The row has another number of columns, an unknown split or no crop in its label path.
    """
    found = columns(text)
    if len(found) == 5:
        split, raw_store, raw_path, label_store, label_path = found
        raw, labels = f"{raw_store}/{raw_path}", f"{label_store}/{label_path}"
    elif len(found) == 3:
        split, raw, labels = found
    else:
        raise RowError(f"{len(found)} columns", "5 (split, store, raw, store, labels) or 3")
    use = check_split(split)
    labels, classes = _take_classes(labels)
    labels = expand(labels)  # The dataset's name may be a variable's.
    crop = labels.rstrip("/").rsplit("/", 1)[-1]
    if not crop or not raw.strip("/"):
        raise RowError("an empty path", "paths of the raw group and of the crop's labels")
    labels = absolute(labels, start)
    dataset, store, _ = in_store(labels)
    return CropRef(
        dataset=dataset,
        crop=crop,
        split=use,
        raw=absolute(_LEVEL.sub("", raw), start),
        labels=labels,
        classes=classes,
        store=store,
    )


def _is_folder_or_glob(path: Path) -> bool:
    try:
        return path.is_dir() or crop_folders.is_glob(path)
    except OSError as error:
        raise DatasplitError(
            f"{path} cannot be read ({error.strerror})", "a readable path"
        ) from error


def _take_classes(labels: str) -> tuple[str, tuple[str, ...]]:
    """Split ``…/crop1/[nuc,mito]`` into the path and the classes."""
    match = _BRACKETS.search(labels)
    if match is None:
        return _LEVEL.sub("", labels).rstrip("/"), ()
    names = (name.strip() for name in match.group(1).split(","))
    return labels[: match.start()].rstrip("/"), tuple(dict.fromkeys(n for n in names if n))

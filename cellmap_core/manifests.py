"""Crop manifests: CSVs with a header, that name crops or say where they are.

Two forms are read: ``crop_name,dataset,class_label,…`` (one row a class; the places follow from
the names) and ``crop_number,collection,alignment,crop_url,em_url`` (one row a crop). A ``split``
column is followed where there is one; all else is ``train``. The manifest of unlabelled crops
has the first form too, and its grids count.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

from cellmap_core.crop_folders import IMAGE, image_in
from cellmap_core.crop_refs import CropRef, Datasplit, check_split, gather, in_store
from cellmap_core.csv_rows import absolute, columns, read_rows, start_of_paths
from cellmap_core.errors import DatasplitError, RowError
from cellmap_core.grid import Grid

_NAMED = ("crop_name", "dataset")
_PLACED = ("crop_url", "em_url")
# One of these in the first row is enough to know that a manifest is meant.
_TELLING = frozenset({*_NAMED, *_PLACED, "crop_number", "class_label"})


def header(row: str) -> tuple[str, ...] | None:
    """The columns that a CSV's first row names if it is a manifest's header, else None."""
    names = tuple(name.lower() for name in columns(row))
    return names if _TELLING & set(names) else None


def read_manifest(path: Path, rows: Sequence[tuple[int, str]], start: str) -> Datasplit:
    """Read a manifest's rows, the first of which is its header.

    Parameters
    ----------
    path : Path
        The file, for messages.
    rows : sequence of (int, str)
        Number and text of each row.
    start : str
        Where relative paths start.

    Raises
    ------
    DatasplitError
        A column that is needed is missing, or no row can be read.
    """
    names = header(rows[0][1]) or ()
    if not (set(_NAMED) <= set(names) or set(_PLACED) <= set(names)):
        raise DatasplitError(
            f"{path} has columns {', '.join(names)}",
            f"{' and '.join(_NAMED)}, or {' and '.join(_PLACED)}",
            "mend the header",
        )
    # One look into a folder for all of a crop's rows.
    read = partial(_read_row, names=names, start=start, image=cache(_image))
    return gather(rows[1:], read, path)


def read_test_manifest(
    path: Path, crops: Sequence[CropRef], data_root: str | None = None
) -> tuple[CropRef, ...]:
    """Crops to predict from the challenge's ``test_crop_manifest.csv``.

    The raw is that of the same dataset in the datasplit, else the CellMap layout under
    ``data_root`` (default: the manifest's folder). Where classes of a crop have several voxel
    sizes, the finest one's grid counts.

    Raises
    ------
    DatasplitError
        The file is missing, or a row cannot be read.
    """
    # Of several reconstructions the first counts, as in the names of crops.
    raw_of = {crop.dataset: crop.raw for crop in reversed(crops)}
    start = start_of_paths(path, data_root)
    rows = read_rows(path, "a test crop manifest CSV")
    names = header(rows[0][1]) if rows else None
    found: dict[str, CropRef] = {}
    for line, text in rows[1:]:
        try:
            row = dict(zip(names or (), columns(text), strict=False))
            grid = _grid(row)
            dataset, crop = row["dataset"], _crop_name(row["crop_name"])
        except (KeyError, ValueError) as error:
            raise DatasplitError(
                f"{path}, line {line} cannot be read ({error!r})",
                "columns crop_name, dataset, class_label, voxel_size, translation, shape",
            ) from error
        raw = raw_of.get(dataset, f"{_alignment(dataset, row, start)}/em/{IMAGE}")
        new = CropRef(dataset=dataset, crop=crop, split="test", raw=raw, grid=grid, line=line)
        known = found.get(new.name)
        if known is None or (known.grid and grid.voxel_nm < known.grid.voxel_nm):
            found[new.name] = new
    return tuple(found.values())


def _read_row(
    text: str, names: tuple[str, ...], start: str, image: Callable[[str, str], str]
) -> CropRef:
    values = columns(text)
    if len(values) > len(names):
        raise RowError(f"{len(values)} columns", f"{len(names)} as in the header")
    row = dict(zip(names, values, strict=False))
    split = check_split(row.get("split") or "train")
    classes = tuple(name for name in [row.get("class_label", "")] if name)
    if set(_PLACED) <= set(names):
        dataset, crop, raw, labels = _placed(row, start)
    else:
        dataset, crop = _given(row, "dataset"), _crop_name(_given(row, "crop_name"))
        alignment = _alignment(dataset, row, start)
        raw = image(f"{alignment}/em", f"{dataset}/{crop}")
        labels = f"{alignment}/labels/groundtruth/{crop}"
    return CropRef(dataset=dataset, crop=crop, split=split, raw=raw, labels=labels, classes=classes)


def _placed(row: dict[str, str], start: str) -> tuple[str, str, str, str]:
    """Dataset, crop, raw and labels of a row that gives places."""
    labels, raw = (absolute(_without_level(_given(row, name)), start) for name in _PLACED)
    crop = row.get("crop_number") or row.get("crop_name") or labels.rsplit("/", 1)[-1]
    dataset = row.get("collection") or row.get("dataset") or in_store(labels)[0]
    return dataset, _crop_name(crop), raw, labels


def _image(em: str, name: str) -> str:
    """The raw image of a crop that is given by name."""
    # What is not there, or far away, is named when the crop is opened.
    return image_in(em, name) if Path(em).is_dir() else f"{em}/{IMAGE}"


def _given(row: dict[str, str], name: str) -> str:
    if not row.get(name):
        raise RowError(f"no {name}", f"a value in the column {name}")
    return row[name]


def _crop_name(name: str) -> str:
    return f"crop{name}" if name.isdigit() else name


def _alignment(dataset: str, row: dict[str, str], start: str) -> str:
    """Folder of the reconstruction that a row means, in CellMap's layout."""
    return absolute(f"{dataset}/{dataset}.zarr/{row.get('alignment') or 'recon-1'}", start)


def _without_level(location: str) -> str:
    return re.sub(r"/s\d+/?$", "", location)


def _grid(row: dict[str, str]) -> Grid:
    """The grid of a crop from its columns, in nm and voxels.

    Raises
    ------
    KeyError, ValueError
        A column is missing or does not hold three numbers.
    """
    z, y, x = (int(n) for n in _numbers(row["shape"]))
    v_z, v_y, v_x = _numbers(row["voxel_size"])
    t_z, t_y, t_x = _numbers(row["translation"])
    return Grid(shape_vox=(z, y, x), voxel_nm=(v_z, v_y, v_x), translation_nm=(t_z, t_y, t_x))


def _numbers(text: str) -> list[float]:
    """The numbers of ``[96;96;96]`` (also with commas)."""
    return [float(n) for n in re.split(r"[;,\s]+", text.strip().strip("[]()")) if n]

"""Crop manifests: CSVs with a header, that name crops or say where they are.

Two forms are read: ``crop_name,dataset,class_label,…`` (one row a class; the places follow from
the names) and ``crop_number,collection,alignment,crop_url,em_url`` (one row a crop). A ``split``
column is followed where there is one; all else is ``train``. The manifest of unlabelled crops
has the first form too, and its grids count.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

from cellmap_core.crop_folders import IMAGE, image_in
from cellmap_core.crop_refs import (
    CropRef,
    Datasplit,
    check_split,
    gather,
    in_store,
    names_of_stores,
)
from cellmap_core.csv_rows import absolute, columns, named_columns, read_rows, start_of_paths
from cellmap_core.errors import CellmapError, DatasplitError, RowError
from cellmap_core.grid import Grid, Triple

_NAMED = ("crop_name", "dataset")
_PLACED = ("crop_url", "em_url")
# One of these in the first row is enough to know that a manifest is meant.
_TELLING = frozenset({*_NAMED, *_PLACED, "crop_number", "class_label"})
_GRID = ("voxel_size", "translation", "shape")
# No volume is larger; what is, is a mistake.
_LARGEST_NM = 1e9
# pandas and spreadsheets make 1.0 of the number 1 where another row of the column is empty.
_CROP_NUMBER = re.compile(r"(crop)?([0-9]+)(?:\.0*)?")
_NUMBER = re.compile(r"(?:crop)?[-+]?[0-9]*[.,]?[0-9]+(?:[eE][-+]?[0-9]+)?")


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
        The file is missing, a row cannot be read, or rows of one crop are in different places.
    """
    start = start_of_paths(path, data_root)
    rows = read_rows(path, "a test crop manifest CSV")
    names = header(rows[0][1]) if rows else None
    needed = (*_NAMED, *_GRID)
    if missing := sorted(set(needed) - set(names or ())):
        raise DatasplitError(
            f"{path} has no column {', '.join(missing)}",
            f"a header that names {', '.join(needed)}, separated by commas",
        )
    read = partial(_read_test_row, names=names or (), raws=_Raws(crops), start=start)
    found: dict[str, CropRef] = {}
    for line, text in rows[1:]:
        try:
            new = read(text).model_copy(update={"line": line})
            _check_zeros(new, crops)
            found[new.name] = _finer(found.get(new.name), new)
        except CellmapError as error:
            raise DatasplitError(
                f"{path}, line {line}: {error.found}", error.expected, error.do
            ) from error
    return tuple(found.values())


class _Raws:
    """The raws of each dataset of a datasplit."""

    def __init__(self, crops: Sequence[CropRef]) -> None:
        self._raws: dict[str, set[str]] = {}
        for crop in crops:
            self._raws.setdefault(crop.dataset, set()).add(crop.raw)
        self._stores = names_of_stores(crops)

    def of(self, dataset: str, alignment: str | None) -> str | None:
        """The raw of a dataset, or of one of its reconstructions; None where there is none.

        Raises
        ------
        RowError
            Several datasets of the datasplit could be meant.
        """
        several = sorted(self._stores.get(dataset, ()))
        if dataset not in self._raws and several:
            raise RowError(f"dataset {dataset} is in several stores", " or ".join(several))
        # Of several reconstructions the first counts, as in the names of crops.
        raws = sorted(self._raws.get(dataset, ()))
        return next((r for r in raws if alignment is None or f"/{alignment}/" in r), None)


def _read_test_row(text: str, names: tuple[str, ...], raws: _Raws, start: str) -> CropRef:
    row = named_columns(names, text)
    dataset, crop = _given(row, "dataset"), _crop_name(_given(row, "crop_name"))
    known = raws.of(dataset, row.get("alignment"))
    raw = known or f"{_alignment(dataset, row, start)}/em/{IMAGE}"
    return CropRef(dataset=dataset, crop=crop, split="test", raw=raw, grid=_grid(row))


def _without_zeros(digits: str) -> str:
    return digits.lstrip("0") or "0"


def _check_zeros(new: CropRef, crops: Sequence[CropRef]) -> None:
    """Refuse ``crop01`` where no crop is called so: ``crop1`` would be predicted a second time.

    Raises
    ------
    RowError
        The crop's number starts with zeros, and no crop of the datasplit is called so.
    """
    plain = re.sub(r"^crop0+(?=[0-9])", "crop", new.crop)
    if plain != new.crop and new.name not in {crop.name for crop in crops}:
        raise RowError(f"crop_name {new.crop}", f"{plain}, without leading zeros")


def _finer(known: CropRef | None, new: CropRef) -> CropRef:
    """The reference with the finer grid, of two to one crop.

    Raises
    ------
    RowError
        They are not in one place of one volume.
    """
    if known is None or known.grid is None or new.grid is None:
        return new
    if known.raw != new.raw:
        raise RowError(
            f"{new.name} in {new.raw}, and in line {known.line} in {known.raw}",
            "one volume for all classes of a crop",
        )
    one, other = known.grid, new.grid
    coarser = [max(sizes) for sizes in zip(one.voxel_nm, other.voxel_nm, strict=True)]
    ends = ((one.box.low_nm, other.box.low_nm), (one.box.high_nm, other.box.high_nm))
    # A class of coarse voxels may reach a part of one further.
    apart = any(abs(a - b) > v for pair in ends for a, b, v in zip(*pair, coarser, strict=True))
    if apart:
        raise RowError(
            f"{new.name} at {_text(new)}, and in line {known.line} at {_text(known)}",
            "one place for all classes of a crop",
        )
    return new if other.voxel_nm < one.voxel_nm else known


def _text(ref: CropRef) -> str:
    assert ref.grid is not None
    low, high = ref.grid.box.low_nm, ref.grid.box.high_nm
    return ", ".join(f"{a:g} to {b:g}" for a, b in zip(low, high, strict=True)) + " nm (z, y, x)"


def _read_row(
    text: str, names: tuple[str, ...], start: str, image: Callable[[str, str], str]
) -> CropRef:
    row = named_columns(names, text)
    split = check_split(row.get("split") or "train")
    classes = tuple(name for name in [row.get("class_label", "")] if name)
    store = ""
    if set(_PLACED) <= set(names):
        dataset, crop, raw, labels, store = _placed(row, start)
    else:
        dataset, crop = _given(row, "dataset"), _crop_name(_given(row, "crop_name"))
        alignment = _alignment(dataset, row, start)
        raw = image(f"{alignment}/em", f"{dataset}/{crop}")
        labels = f"{alignment}/labels/groundtruth/{crop}"
    return CropRef(
        dataset=dataset,
        crop=crop,
        split=split,
        raw=raw,
        labels=labels,
        classes=classes,
        store=store,
    )


def _placed(row: dict[str, str], start: str) -> tuple[str, str, str, str, str]:
    """Dataset, crop, raw, labels, and the store that names the dataset if the row does not.

    Raises
    ------
    RowError
        A location is missing, or two columns give the crop two numbers.
    """
    labels, raw = (absolute(_without_level(_given(row, name)), start) for name in _PLACED)
    named = [(name, row[name]) for name in ("crop_number", "crop_name") if row.get(name)]
    named.append(("crop_url", labels.rsplit("/", 1)[-1]))
    crop = _crop_name(named[0][1])
    found = [(name, _CROP_NUMBER.fullmatch(text)) for name, text in named]
    numbered = [(name, _without_zeros(match[2])) for name, match in found if match]
    for name, number in numbered[1:]:
        first, known = numbered[0]
        if number != known:
            raise RowError(f"{first} {row[first]} and {name} {row[name]}", "one number for a crop")
    dataset = row.get("collection") or row.get("dataset")
    if dataset:
        return dataset, crop, raw, labels, ""
    dataset, store, _ = in_store(labels)
    return dataset, crop, raw, labels, store


def _image(em: str, name: str) -> str:
    """The raw image of a crop that is given by name."""
    # What is not there, or far away, is named when the crop is opened.
    return image_in(em, name) if Path(em).is_dir() else f"{em}/{IMAGE}"


def _given(row: dict[str, str], name: str) -> str:
    if not row.get(name):
        raise RowError(f"no {name}", f"a value in the column {name}")
    return row[name]


def _crop_name(name: str) -> str:
    """``crop1`` of ``1``, ``01``, ``1.0`` and ``crop1.0``; other names, as ``crop01``, as they are.

    Raises
    ------
    RowError
        It is a number that no crop can have.
    """
    if number := _CROP_NUMBER.fullmatch(name):
        prefix, digits = number.groups()
        # A folder may be called crop01.
        return f"crop{digits if prefix else _without_zeros(digits)}"
    if _NUMBER.fullmatch(name):
        raise RowError(f"crop {name}", "a whole number, or the name of a crop")
    return name


def _alignment(dataset: str, row: dict[str, str], start: str) -> str:
    """Folder of the reconstruction that a row means, in CellMap's layout."""
    return absolute(f"{dataset}/{dataset}.zarr/{row.get('alignment') or 'recon-1'}", start)


def _without_level(location: str) -> str:
    return re.sub(r"/s\d+/?$", "", location)


def _grid(row: dict[str, str]) -> Grid:
    """The grid of a crop from its columns, in nm and voxels.

    Raises
    ------
    RowError
        A column is empty, or does not hold three numbers that can be.
    """
    shape, voxel, translation = (
        _triple(row, name) for name in ("shape", "voxel_size", "translation")
    )
    z, y, x = (int(n) for n in shape)
    if (z, y, x) != shape or min(shape) < 1:
        raise RowError(f"shape {row['shape']}", "three whole numbers above 0")
    if min(voxel) <= 0:
        raise RowError(f"voxel_size {row['voxel_size']}", "three sizes above 0, in nm")
    return Grid(shape_vox=(z, y, x), voxel_nm=voxel, translation_nm=translation)


def _triple(row: dict[str, str], name: str) -> Triple:
    """The three numbers of ``[96;96;96]`` (also with commas or spaces)."""
    text = _given(row, name)
    try:
        numbers = [float(n) for n in re.split(r"[;,\s]+", text.strip("[]() \t")) if n]
        z, y, x = numbers
    except ValueError as error:
        raise RowError(f"{name} {text}", "three numbers, as [8;8;8]") from error
    if not all(math.isfinite(n) and abs(n) < _LARGEST_NM for n in numbers):
        raise RowError(f"{name} {text}", "finite numbers below a metre (in nm)")
    return z, y, x

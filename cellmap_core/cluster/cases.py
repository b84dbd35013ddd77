"""Sizes of the cases of a run, as far as metadata tell before anything is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from statistics import median_low
from typing import Literal, TypeVar

from cellmap_core import nifti, stores
from cellmap_core.classes import UNIONS
from cellmap_core.convert import plan as plan_conversion
from cellmap_core.datalist import Datalist, Entry, read_datalist
from cellmap_core.datasplit import CropRef
from cellmap_core.errors import CellmapError, DatalistError, StoreError
from cellmap_core.folds import FoldItem, assign_folds, specimen_of
from cellmap_core.grid import Grid, Shape, Triple
from cellmap_core.models import Frozen
from cellmap_core.options import ConvertOptions, Spacing
from cellmap_core.volume import open_crop_group, open_labels

# Metadata of a remote crop are a few requests; the waits overlap.
_READERS = 8
# Of an id of the label table, where no datalist tells: some hundreds of combinations are usual.
_ID_BYTES = 2

T = TypeVar("T")


class CaseSize(Frozen):
    """The grid of one case as a training sees it, z, y, x.

    Attributes
    ----------
    fold : int or None
        In which it validates; None for a case to predict.
    """

    name: str
    dataset: str
    shape_vox: Shape
    voxel_nm: Triple
    fold: int | None = None

    @property
    def voxels(self) -> int:
        """How many there are."""
        return math.prod(self.shape_vox)


class CaseSizes(Frozen):
    """All cases of a run.

    Attributes
    ----------
    source : str
        ``datalist``: headers of converted images; ``crops``: metadata of the crops to convert.
    classes : tuple of str
        In the order of their ids.
    id_bytes : int
        Of a voxel of a label volume.
    training, testing : tuple of CaseSize
        To train on in folds, and to predict.
    unread : tuple of str
        Why a case could not be looked at, by name; it counts for nothing.
    """

    source: Literal["datalist", "crops"]
    classes: tuple[str, ...]
    id_bytes: int
    training: tuple[CaseSize, ...]
    testing: tuple[CaseSize, ...]
    unread: tuple[str, ...] = ()

    @property
    def everything(self) -> tuple[CaseSize, ...]:
        """Training and testing cases."""
        return self.training + self.testing

    def split(self, fold: int) -> tuple[tuple[CaseSize, ...], tuple[CaseSize, ...]]:
        """Training and validation cases of one fold."""
        return (
            tuple(c for c in self.training if c.fold != fold),
            tuple(c for c in self.training if c.fold == fold),
        )

    def median_shape_vox(self) -> Triple:
        """Median size of the training cases, axis by axis, by the rule of the statistics."""
        return _medians(c.shape_vox for c in self.training)

    def median_voxel_nm(self) -> Triple:
        """Median voxel size of the training cases, axis by axis."""
        return _medians(c.voxel_nm for c in self.training)


def cases_of_datalist(path: Path, num_fold: int, fold_by: str) -> CaseSizes:
    """Sizes of converted cases, from the headers of their images.

    Raises
    ------
    DatalistError
        The datalist cannot be read, or no image of a training case can.
    """
    datalist = read_datalist(path)
    read = partial(_of_entry, datalist)
    training, lost = _each(read, datalist.training)
    testing, more = _each(read, datalist.testing)
    if datalist.folds() != tuple(range(num_fold)):
        training = _in_folds(training, num_fold, fold_by)
    sizes = CaseSizes(
        source="datalist",
        classes=datalist.classes,
        id_bytes=datalist.table.dtype.itemsize,
        training=training,
        testing=testing,
        unread=lost + more,
    )
    return _checked(sizes, path)


def cases_of_crops(options: ConvertOptions, num_fold: int, fold_by: str) -> CaseSizes:
    """Sizes that the crops of a datasplit will have, from the metadata of their labels.

    Raises
    ------
    DatasplitError, OptionError
        The datasplit cannot be read.
    DatalistError
        Of no crop to train on the metadata can be read.
    """
    datasplit, classes = plan_conversion(options)
    crops = datasplit.crops[: options.max_crops] if options.max_crops else datasplit.crops
    spacing = options.target_spacing
    wanted = tuple(sorted({part for n in classes for part in (n, *UNIONS.get(n, ()))}))
    read = partial(_of_crop, wanted=wanted, spacing=spacing)
    training, lost = _each(read, [c for c in crops if c.split == "train"])
    testing, more = _each(read, [c for c in crops if c.split != "train"])
    sizes = CaseSizes(
        source="crops",
        classes=classes,
        id_bytes=_ID_BYTES,
        training=_in_folds(training, num_fold, fold_by),
        testing=testing,
        unread=lost + more,
    )
    return _checked(sizes, options.datasplit)


def _of_entry(datalist: Datalist, entry: Entry) -> CaseSize:
    geometry = nifti.read_geometry(datalist.path(entry.image))
    return CaseSize(
        name=entry.name,
        dataset=specimen_of(entry),
        shape_vox=geometry.shape_vox,
        voxel_nm=geometry.voxel_nm,
        fold=entry.fold,
    )


# A plan is made when a run is checked and again when it starts: a crop is asked once.
@lru_cache(maxsize=4096)
def _of_crop(ref: CropRef, wanted: tuple[str, ...], spacing: Spacing) -> CaseSize:
    """The output grid of a crop, by the first of its classes: the others rarely differ."""
    grid = ref.grid or _label_grid(ref, wanted)
    grid = grid if spacing == "native" else grid.resampled(spacing)
    return CaseSize(
        name=ref.name, dataset=ref.dataset, shape_vox=grid.shape_vox, voxel_nm=grid.voxel_nm
    )


def _label_grid(ref: CropRef, wanted: tuple[str, ...]) -> Grid:
    names = ref.classes or wanted
    group = open_crop_group(ref.labels)
    stored = [n for n in stores.children(group, names) if n != "all"]
    if not stored:
        raise StoreError(f"no class in {ref.labels}", "an array for each class")
    first = next((n for n in names if n in stored), stored[0])
    return open_labels(f"{ref.labels}/{first}").finest


def _each(
    read: Callable[[T], CaseSize], items: Sequence[T]
) -> tuple[tuple[CaseSize, ...], tuple[str, ...]]:
    """What can be read of some items, and why the others cannot."""

    def one(item: T) -> CaseSize | str:
        try:
            return read(item)
        except (CellmapError, OSError) as error:
            return f"{getattr(item, 'name', item)}: {error}"

    with ThreadPoolExecutor(_READERS) as pool:
        told = list(pool.map(one, items))
    return (
        tuple(t for t in told if isinstance(t, CaseSize)),
        tuple(t for t in told if isinstance(t, str)),
    )


def _in_folds(cases: Sequence[CaseSize], num_fold: int, by: str) -> tuple[CaseSize, ...]:
    """Cases in folds as conversion makes them, but for the classes, which no metadata tell."""
    items = [FoldItem(name=c.name, dataset=c.dataset, present=()) for c in cases]
    folds, _ = assign_folds(items, num_fold, by) if items else ({}, ())
    return tuple(c.model_copy(update={"fold": folds[c.name]}) for c in cases)


def _checked(sizes: CaseSizes, source: Path | None) -> CaseSizes:
    if sizes.training:
        return sizes
    why = f" ({sizes.unread[0]})" if sizes.unread else ""
    raise DatalistError(f"{source} has no case to train on that can be read{why}", "at least one")


def _medians(triples: Iterable[Sequence[float]]) -> Triple:
    z, y, x = (float(median_low(axis)) for axis in zip(*triples, strict=True))
    return z, y, x

"""What is counted in the voxels of one case: intensities by label id, the image's box.

8- and 16-bit unsigned images stream by in slabs and leave a histogram for each label id,
exact and small. Other images (float, signed) are read whole and sorted: exact too, at some
20 bytes a voxel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellmap_core import nifti
from cellmap_core.datastats.components import Components
from cellmap_core.datastats.distribution import Distribution
from cellmap_core.errors import StatisticsError
from cellmap_core.grid import Grid

_SLAB_VOXELS = 4 << 20
# A histogram's index stays in the cache for a block of this many voxels.
_BLOCK_VOXELS = 1 << 16


@dataclass(frozen=True)
class Tally:
    """Counts of one case.

    Attributes
    ----------
    grid : Grid
        Of the image, from its header.
    by_id : dict
        Intensities of the voxels of each label id that occurs.
    box_vox : tuple of int
        Size (z, y, x) of the smallest box around all voxels above 0; the whole volume where
        there is none, for then there is nothing to crop to.
    in_box : Distribution
        Intensities in that box.
    shapes : dict
        Bounding boxes (x, y, z) of the components by label id; None when not asked for.
    """

    grid: Grid
    by_id: dict[int, Distribution]
    box_vox: tuple[int, int, int]
    in_box: Distribution
    shapes: dict[int, list[list[int]]] | None


def tally(image: Path, label: Path, n_ids: int, components: bool) -> Tally:
    """Count one case.

    Parameters
    ----------
    image, label : Path
        NIfTI files of one grid.
    n_ids : int
        Ids of the label table; an id from there on is an error.
    components : bool
        Whether to find connected components.

    Raises
    ------
    StatisticsError
        The grids differ, an id is not in the table, or an intensity is not finite.
    """
    grid = _common_grid(image, label)
    found = Components() if components else None
    if nifti.read_dtype(image) in (np.uint8, np.uint16):
        by_id, box, in_box = _streamed(image, label, grid, n_ids, found)
    else:
        by_id, box, in_box = _whole(image, label, n_ids, found)
    return Tally(grid, by_id, box, in_box, found.shapes() if found else None)


def _common_grid(image: Path, label: Path) -> Grid:
    ours, theirs = nifti.read_grid(image), nifti.read_grid(label)
    if ours.shape_vox != theirs.shape_vox:
        raise StatisticsError(
            f"image {ours.shape_vox} and label {theirs.shape_vox} differ in shape (z, y, x)",
            "one grid for both",
            "convert the crop again",
        )
    # Half a voxel is the most that rounding a header can explain.
    apart = [
        abs(edge) > 0.5 * size
        for a, b in ((ours.box.low_nm, theirs.box.low_nm), (ours.box.high_nm, theirs.box.high_nm))
        for edge, size in zip(np.subtract(a, b), ours.voxel_nm, strict=True)
    ]
    if any(apart):
        raise StatisticsError(
            f"image and label lie apart: {ours.box} and {theirs.box} nm",
            "the same place for both",
            "convert the crop again",
        )
    return ours


class _Box:
    """Extent of the voxels above 0, of slabs in the order of z."""

    def __init__(self) -> None:
        self._z: list[NDArray[np.bool_]] = []
        self._yx: list[NDArray[Any]] = []

    def add(self, image: NDArray[Any]) -> None:
        self._z.append(image.reshape(len(image), -1).max(axis=1) > 0)
        self._yx = [np.max([*self._yx, image.max(axis=0)], axis=0)]

    def slices(self) -> tuple[slice, slice, slice] | None:
        """The box, or None where no voxel is above 0."""
        yx = self._yx[0] > 0
        lines = [np.flatnonzero(a) for a in (np.concatenate(self._z), yx.any(axis=1), yx.any(0))]
        if not len(lines[0]):
            return None
        z, y, x = (slice(int(line[0]), int(line[-1]) + 1) for line in lines)
        return z, y, x


_Counted = tuple[dict[int, Distribution], tuple[int, int, int], Distribution]


def _streamed(
    image: Path, label: Path, grid: Grid, n_ids: int, components: Components | None
) -> _Counted:
    bins = 1 << (8 * nifti.read_dtype(image).itemsize)
    histograms: dict[int, NDArray[np.int64]] = {}
    box = _Box()
    for voxels, raw in _pairs(image, label, grid):
        ids = _checked_ids(raw, n_ids)
        box.add(voxels)
        _count_joint(histograms, voxels, ids, bins)
        if components:
            components.add(ids)
    slices = box.slices()
    size = tuple(s.stop - s.start for s in slices) if slices else grid.shape_vox
    everything = np.sum(list(histograms.values()), axis=0)
    # Outside the box every voxel is 0: nothing needs to be counted twice.
    everything[0] -= int(np.prod(grid.shape_vox)) - int(np.prod(size))
    by_id = {i: Distribution.of_histogram(histograms[i]) for i in sorted(histograms)}
    return by_id, (size[0], size[1], size[2]), Distribution.of_histogram(everything)


def _pairs(image: Path, label: Path, grid: Grid) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Image and label slabs of the same sections."""
    section = grid.shape_vox[1] * grid.shape_vox[2]
    sections = max(1, _SLAB_VOXELS // section)
    slab_bytes = [sections * section * nifti.read_dtype(p).itemsize for p in (image, label)]
    return zip(
        nifti.iter_slabs(image, slab_bytes[0]), nifti.iter_slabs(label, slab_bytes[1]), strict=True
    )


def _count_joint(
    histograms: dict[int, NDArray[np.int64]], image: NDArray[Any], ids: NDArray[Any], bins: int
) -> None:
    """Add a slab to the histograms by id."""
    values, flat = image.ravel(), ids.ravel()
    present = np.arange(int(flat.max()) + 1)
    if len(present) * bins > _BLOCK_VOXELS:
        # Only the ids that occur get a row: tables are long, crops hold few of their ids.
        present = np.flatnonzero(np.bincount(flat))
    row = np.zeros(int(present[-1]) + 1, dtype=np.intp)
    row[present] = np.arange(len(present)) * bins
    joint = np.zeros(len(present) * bins, dtype=np.int64)
    step = max(_BLOCK_VOXELS, 2 * len(joint))
    for start in range(0, len(flat), step):
        index = row[flat[start : start + step]]
        index += values[start : start + step]
        joint += np.bincount(index, minlength=len(joint))
    for i, counts in zip(present.tolist(), joint.reshape(-1, bins), strict=True):
        if counts.any():
            histograms[i] = histograms[i] + counts if i in histograms else counts


def _whole(image: Path, label: Path, n_ids: int, components: Components | None) -> _Counted:
    voxels = nifti.read_volume(image)
    if not np.isfinite(voxels).all():
        raise StatisticsError(
            f"{image.name} holds NaN or infinite intensities", "finite numbers", "convert it again"
        )
    ids = _checked_ids(nifti.read_volume(label), n_ids)
    box = _Box()
    box.add(voxels)
    cut = voxels[box.slices() or (slice(None),) * 3]
    if components:
        components.add(ids)
    by_id = {
        int(i): Distribution.of_samples(voxels[ids == i])
        for i in np.flatnonzero(np.bincount(ids.ravel()))
    }
    return by_id, (cut.shape[0], cut.shape[1], cut.shape[2]), Distribution.of_samples(cut)


def _checked_ids(labels: NDArray[Any], n_ids: int) -> NDArray[Any]:
    """Label ids as unsigned integers, each in the table."""
    low, high = labels.min(), labels.max()
    if not (low >= 0 and high < n_ids):
        raise StatisticsError(
            f"label ids from {low} to {high}",
            f"ids 0 to {n_ids - 1} of the label table",
            "convert the crop again, or correct class_names and label_table in datalist.json",
        )
    if labels.dtype.kind == "u":
        return labels
    ids = labels.astype(np.uint16)
    if labels.dtype.kind == "f" and (ids != labels).any():
        raise StatisticsError("label ids that are not whole numbers", "integer ids")
    return ids

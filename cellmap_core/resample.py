"""Resampling between voxel grids, exact in nanometres, one axis at a time.

Along an axis the output is a sparse matrix times the input. Where voxels shrink in number
the matrix holds the overlap of each output voxel with the input voxels (area average: the
anti-aliasing filter of a box detector); where they grow it interpolates linearly between
input centres. Labels use the overlaps either way, so a majority can be taken.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from cellmap_core.grid import Grid
from cellmap_core.label_table import ABSENT, PRESENT, UNKNOWN

Floats = NDArray[np.float32]

# Overlaps below this part of an output voxel are rounding of the edges, not data.
_NEGLIGIBLE = 1e-6


def overlap_weights(source: Grid, target: Grid, axis: int) -> Any:
    """Part of each target voxel covered by each source voxel along one axis.

    Returns
    -------
    scipy.sparse.csr_array
        Shape (target, source); a row sums to 1 where the target voxel lies inside the
        source, to less where it sticks out.
    """
    low, width, starts = _geometry(source, target, axis)
    first = np.floor(starts + 1e-9).astype(int)
    reach = int(np.ceil(width)) + 1
    rows = np.repeat(np.arange(len(starts)), reach)
    columns = (first[:, None] + np.arange(reach)).ravel()
    begin = np.maximum(np.repeat(starts, reach), columns)
    end = np.minimum(np.repeat(starts + width, reach), columns + 1)
    weights = (end - begin) / width
    keep = (weights > _NEGLIGIBLE) & (columns >= 0) & (columns < low)
    return _matrix(weights, rows, columns, keep, (len(starts), low))


def image_weights(source: Grid, target: Grid, axis: int) -> Any:
    """Weights for an image along one axis: area average when shrinking, linear when growing.

    Rows are normalised: a voxel that sticks out of the source takes what it overlaps, and one
    wholly outside is zero.
    """
    n, width, starts = _geometry(source, target, axis)
    overlaps = overlap_weights(source, target, axis)
    covered = np.asarray(overlaps.sum(axis=1)).ravel()
    if width >= 1 - _NEGLIGIBLE:
        scale = np.divide(1.0, covered, out=np.zeros_like(covered), where=covered > 0)
        return sparse.csr_array(sparse.diags_array(scale) @ overlaps, dtype=np.float32)
    centres = np.clip(starts + width / 2 - 0.5, 0, n - 1)
    left = np.minimum(np.floor(centres).astype(int), max(n - 2, 0))
    fraction = centres - left
    rows = np.repeat(np.arange(len(starts)), 2)
    columns = np.stack([left, np.minimum(left + 1, n - 1)], axis=1).ravel()
    weights = np.stack([1 - fraction, fraction], axis=1).ravel()
    keep = np.repeat(covered > 0, 2) & (weights > 0)
    return _matrix(weights, rows, columns, keep, (len(starts), n))


def needed(source: Grid, target: Grid) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The source block (start, stop) that resampling onto ``target`` reads, with its margin."""
    start, stop = [], []
    for axis in range(3):
        n, width, starts = _geometry(source, target, axis)
        start.append(int(np.clip(np.floor(starts[0]) - 1, 0, n - 1)))
        stop.append(int(np.clip(np.ceil(starts[-1] + width) + 1, start[-1] + 1, n)))
    return (start[0], start[1], start[2]), (stop[0], stop[1], stop[2])


def image(values: NDArray[Any], source: Grid, target: Grid) -> NDArray[Any]:
    """Resample an image (z, y, x) onto ``target``; same type, integers rounded."""
    if _same(source, target):
        return values
    matrices = [image_weights(source, target, axis) for axis in range(3)]
    result = _apply(values.astype(np.float32), matrices)
    if values.dtype.kind in "ui":
        limits = np.iinfo(values.dtype)
        result = np.clip(np.rint(result), limits.min, limits.max)
    return result.astype(values.dtype)


def states(values: NDArray[np.uint8], source: Grid, target: Grid) -> NDArray[np.uint8]:
    """Resample the states of a class by area majority; outside the source is unknown.

    A tie goes to present, then to unknown: a thin membrane is kept, and a voxel of which
    half is unknown is not called absent.
    """
    if _same(source, target):
        return values
    matrices = [overlap_weights(source, target, axis) for axis in range(3)]
    present = _apply((values == PRESENT).astype(np.float32), matrices)
    absent = _apply((values == ABSENT).astype(np.float32), matrices)
    unknown = 1 - present - absent  # What the source does not cover counts as unknown.
    slack = np.float32(1e-5)
    result = np.where(unknown >= absent - slack, UNKNOWN, ABSENT)
    result[(present >= absent - slack) & (present >= unknown - slack)] = PRESENT
    return result.astype(np.uint8)


def inside(source: Grid, target: Grid) -> tuple[slice, slice, slice]:
    """The part of ``target`` at least half covered by ``source``, as slices."""
    slices = []
    for axis in range(3):
        covered = np.asarray(overlap_weights(source, target, axis).sum(axis=1)).ravel()
        indices = np.flatnonzero(covered >= 0.5 - _NEGLIGIBLE)
        slices.append(slice(int(indices[0]), int(indices[-1]) + 1) if len(indices) else slice(0, 0))
    return slices[0], slices[1], slices[2]


def _same(source: Grid, target: Grid) -> bool:
    start = source.edge_index(target.box.low_nm)
    return (
        source.shape_vox == target.shape_vox
        and source.aligned_with(target)
        and all(round(s) == 0 for s in start)
    )


def _geometry(source: Grid, target: Grid, axis: int) -> tuple[int, float, NDArray[Any]]:
    """Source length, target voxel width and target low edges, in source voxels."""
    width = target.voxel_nm[axis] / source.voxel_nm[axis]
    offset = source.edge_index(target.box.low_nm)[axis]
    return source.shape_vox[axis], width, offset + width * np.arange(target.shape_vox[axis])


def _matrix(weights: Any, rows: Any, columns: Any, keep: Any, shape: tuple[int, int]) -> Any:
    data = weights[keep].astype(np.float32)
    return sparse.csr_array((data, (rows[keep], columns[keep])), shape=shape)


def _apply(values: Floats, matrices: list[Any]) -> Floats:
    """Multiply along each axis, the one that shrinks most first: it saves the most work."""
    order = sorted(range(3), key=lambda a: matrices[a].shape[0] / matrices[a].shape[1])
    for axis in order:
        moved = np.moveaxis(values, axis, 0)
        rest = moved.shape[1:]
        flat = matrices[axis] @ np.ascontiguousarray(moved).reshape(moved.shape[0], -1)
        values = np.moveaxis(np.asarray(flat).reshape(-1, *rest), 0, axis)
    return np.ascontiguousarray(values)

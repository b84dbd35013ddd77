"""Resampling between voxel grids, exact in nanometres, one axis at a time.

Along an axis the output is a sparse matrix times the input. Where voxels shrink in number
the matrix holds the overlap of each output voxel with the input voxels (area average: the
anti-aliasing filter of a box detector); where they grow it interpolates linearly between
input centres. Labels use the overlaps either way, so a majority can be taken.

Most crops need no matrix: edges fall on edges and the ratio is whole, so an axis is a sum of
slices, or a repetition. Both ways give the same values; the short one is many times faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from cellmap_core.grid import EDGE_TOLERANCE_VOX, Grid, Shape
from cellmap_core.label_table import ABSENT, PRESENT, UNKNOWN

# Overlaps below this part of an output voxel are rounding of the edges, not data.
_NEGLIGIBLE = 1e-6
# Shares of a voxel that differ by less are a tie.
_SLACK = 1e-5

Kind = Literal["image", "label"]
_Matrix = Any


@dataclass(frozen=True)
class Axis:
    """How one axis is resampled from the source voxels ``start`` to ``stop``.

    Exactly one of the three is set: ``whole`` source voxels summed into one output voxel (1
    takes them as they are), ``repeat`` (the source index of each output voxel), or ``matrix``
    (output × source weights).
    """

    start: int
    stop: int
    whole: int = 0
    repeat: NDArray[np.intp] | None = None
    matrix: _Matrix = None


@dataclass(frozen=True)
class Plan:
    """How a source grid is brought onto a target grid.

    Attributes
    ----------
    start, stop : tuple of int
        The source block that is read (z, y, x).
    axes : tuple of Axis
        Of z, y and x.
    covered : tuple of ndarray
        Of each axis, the part of every output voxel that the source covers.
    """

    start: Shape
    stop: Shape
    axes: tuple[Axis, Axis, Axis]
    covered: tuple[NDArray[np.float32], ...]

    @cached_property
    def inside(self) -> bool:
        """Whether the source covers every output voxel whole."""
        return all(bool((c >= 1 - _NEGLIGIBLE).all()) for c in self.covered)

    @property
    def sums(self) -> Shape:
        """Source voxels summed along each axis before anything else; 1 where it is not whole."""
        z, y, x = (axis.whole or 1 for axis in self.axes)
        return z, y, x

    @property
    def pools(self) -> Shape | None:
        """Source voxels in one output voxel along each axis, where all three are whole."""
        z, y, x = (axis.whole for axis in self.axes)
        return (z, y, x) if z and y and x else None


@lru_cache(maxsize=512)
def plan(source: Grid, target: Grid, kind: Kind) -> Plan:
    """Plan the resampling of an image or of labels from ``source`` onto ``target``."""
    axes = [_axis(source, target, number, kind) for number in range(3)]
    starts, stops = [a.start for a in axes], [a.stop for a in axes]
    return Plan(
        start=(starts[0], starts[1], starts[2]),
        stop=(stops[0], stops[1], stops[2]),
        axes=(axes[0], axes[1], axes[2]),
        covered=tuple(_covered(source, target, number) for number in range(3)),
    )


def image(values: NDArray[Any], how: Plan) -> NDArray[Any]:
    """Resample the image block (z, y, x) that ``how`` reads; same type, integers rounded.

    A voxel that sticks out of the source takes what it overlaps; one wholly outside is zero.
    """
    if how.pools == (1, 1, 1):
        return values
    whole = int(np.prod(how.sums))
    means = _weighted(pool(values, how.sums), how)
    if whole != 1:
        means *= np.float32(1 / whole)
    if values.dtype.kind in "ui":
        limits = np.iinfo(values.dtype)
        np.rint(means, out=means)
        np.clip(means, limits.min, limits.max, out=means)
    return means.astype(values.dtype)


def majority(
    present: NDArray[np.bool_], unknown: NDArray[np.bool_] | None, how: Plan
) -> NDArray[np.uint8]:
    """States by area majority, from where a class is present and where unknown.

    Outside the source is unknown. A tie goes to present, then to unknown: a thin membrane is
    kept, and a voxel of which half is unknown is not called absent.
    """
    if how.pools == (1, 1, 1) and how.inside:
        states = present.astype(np.uint8) * np.uint8(PRESENT)
        if unknown is not None:
            states[unknown] = UNKNOWN
        return states
    return decide(
        pool(present, how.sums), None if unknown is None else pool(unknown, how.sums), how
    )


def decide(present: NDArray[Any], unknown: NDArray[Any] | None, how: Plan) -> NDArray[np.uint8]:
    """States by majority, from source voxels counted over the whole axes (see ``pool``)."""
    full = int(np.prod(how.sums))
    if unknown is None and how.pools is not None and how.inside:
        return (present >= (full + 1) // 2).view(np.uint8) * np.uint8(PRESENT)
    present_part = _weighted(present, how) * np.float32(1 / full)
    covered = 1 if how.inside else _covered_part(how)
    absent = covered - present_part
    if unknown is not None and unknown.any():
        absent -= _weighted(unknown, how) * np.float32(1 / full)
    rest = 1 - present_part - absent
    slack = np.float32(_SLACK)
    result = np.where(rest >= absent - slack, UNKNOWN, ABSENT).astype(np.uint8)
    result[(present_part >= absent - slack) & (present_part >= rest - slack)] = PRESENT
    return _repeated(result, how)


def nearest(values: NDArray[Any], source: Grid, target: Grid, outside: int = 0) -> NDArray[Any]:
    """Put a volume of ids on another grid: each target centre takes the voxel it lies in.

    Ids cannot be averaged, so this is how a label volume or a prediction goes back onto the
    raw's grid; where the grids are the same it comes back as it was.

    Parameters
    ----------
    values : ndarray
        Shape (z, y, x) of ``source``.
    source, target : Grid
        Where the values are, and where they are wanted.
    outside : int
        Value of target voxels whose centre no source voxel holds.
    """
    indices = []
    for axis in range(3):
        n, width, starts = _geometry(source, target, axis)
        index = np.floor(starts + width / 2 + 1e-9).astype(np.intp)
        indices.append(np.where((index >= 0) & (index < n), index, -1))
    result = values[np.ix_(*(np.maximum(i, 0) for i in indices))]
    for axis, index in enumerate(indices):
        hidden: list[Any] = [slice(None)] * 3
        hidden[axis] = index < 0
        result[tuple(hidden)] = outside
    return np.asarray(result)


def inside(source: Grid, target: Grid) -> tuple[slice, slice, slice]:
    """The part of ``target`` at least half covered by ``source``, as slices."""
    slices = []
    for axis in range(3):
        indices = np.flatnonzero(_covered(source, target, axis) >= 0.5 - _NEGLIGIBLE)
        slices.append(slice(int(indices[0]), int(indices[-1]) + 1) if len(indices) else slice(0, 0))
    return slices[0], slices[1], slices[2]


def pool(values: NDArray[Any], sizes: Shape) -> NDArray[Any]:
    """Sums of blocks of ``sizes`` (z, y, x) source voxels, in a type that holds them."""
    if sizes == (1, 1, 1):
        return values
    top = _top(values)
    if values.dtype == np.bool_:
        values = values.view(np.uint8)
    for axis, size in enumerate(sizes):
        top *= size
        values = _pool_axis(values, axis, size, _holds(top, values.dtype))
    return values


def _axis(source: Grid, target: Grid, axis: int, kind: Kind) -> Axis:
    n, width, starts = _geometry(source, target, axis)
    count = len(starts)
    first, whole = round(starts[0]), round(width)
    aligned = abs(starts[0] - first) < EDGE_TOLERANCE_VOX
    if (
        whole >= 1
        and aligned
        and abs(width - whole) * count < EDGE_TOLERANCE_VOX
        and first >= 0
        and first + whole * count <= n
    ):
        return Axis(first, first + whole * count, whole=whole)
    if kind == "label" and (index := _repetition(n, width, starts)) is not None:
        low = int(index[0])
        return Axis(low, int(index[-1]) + 1, repeat=index - low)
    weights = image_weights if kind == "image" else overlap_weights
    matrix = weights(source, target, axis)
    used = np.unique(matrix.indices)
    if not len(used):
        return Axis(0, 1, matrix=matrix[:, :1])
    low, high = int(used[0]), int(used[-1]) + 1
    return Axis(low, high, matrix=sparse.csr_array(matrix[:, low:high]))


def _repetition(n: int, width: float, starts: NDArray[Any]) -> NDArray[np.intp] | None:
    """Source index of each output voxel where every one lies in a single source voxel."""
    times = round(1 / width)
    if times < 2 or abs(1 / width - times) * len(starts) > EDGE_TOLERANCE_VOX:
        return None
    fine = starts * times
    if np.abs(fine - np.rint(fine)).max() > times * EDGE_TOLERANCE_VOX:
        return None
    index = np.floor(starts + width / 2).astype(np.intp)
    return index if index[0] >= 0 and index[-1] < n else None


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


def _geometry(source: Grid, target: Grid, axis: int) -> tuple[int, float, NDArray[Any]]:
    """Source length, target voxel width and target low edges, in source voxels."""
    width = target.voxel_nm[axis] / source.voxel_nm[axis]
    offset = source.edge_index(target.box.low_nm)[axis]
    return source.shape_vox[axis], width, offset + width * np.arange(target.shape_vox[axis])


def _matrix(weights: Any, rows: Any, columns: Any, keep: Any, shape: tuple[int, int]) -> Any:
    data = weights[keep].astype(np.float32)
    return sparse.csr_array((data, (rows[keep], columns[keep])), shape=shape)


def _covered(source: Grid, target: Grid, axis: int) -> NDArray[np.float32]:
    """Part of each target voxel along an axis that lies inside the source."""
    n, width, starts = _geometry(source, target, axis)
    part: NDArray[np.float64] = (np.minimum(starts + width, n) - np.maximum(starts, 0)) / width
    part[np.abs(part - 1) < EDGE_TOLERANCE_VOX] = 1
    return np.clip(part, 0, 1).astype(np.float32)


def _covered_part(how: Plan) -> NDArray[np.float32]:
    """Covered part of each voxel before repetition (repeated voxels are always inside)."""
    z, y, x = (
        np.ones(axis.stop - axis.start, np.float32) if axis.repeat is not None else covered
        for axis, covered in zip(how.axes, how.covered, strict=True)
    )
    return np.asarray(z[:, None, None] * y[:, None] * x, np.float32)


def _weighted(sums: NDArray[Any], how: Plan) -> NDArray[np.float32]:
    """The matrices of the axes that have one, applied. Axes that repeat are left as they are."""
    result = sums.astype(np.float32)
    matrices = {n: axis.matrix for n, axis in enumerate(how.axes) if axis.matrix is not None}
    # The axis that shrinks most first: it saves the most work.
    for axis in sorted(matrices, key=lambda n: matrices[n].shape[0] / matrices[n].shape[1]):
        moved = np.moveaxis(result, axis, 0)
        flat = np.ascontiguousarray(moved).reshape(moved.shape[0], -1)
        product = np.asarray(matrices[axis] @ flat).reshape(-1, *moved.shape[1:])
        result = np.moveaxis(product, 0, axis)
    return np.ascontiguousarray(result)


def _repeated(states: NDArray[np.uint8], how: Plan) -> NDArray[np.uint8]:
    for number, axis in enumerate(how.axes):
        if axis.repeat is not None:
            states = np.take(states, axis.repeat, axis=number)
    return states


def _pool_axis(values: NDArray[Any], axis: int, size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    if size == 1:
        return values
    if size % 2 == 0 and size > 2:
        return _pool_axis(_pool_axis(values, axis, 2, dtype), axis, size // 2, dtype)
    if axis == 2 and size == 2 and values.dtype == np.uint8 and values.flags.c_contiguous:
        # Neighbours in x are the two bytes of one 16-bit word: one add of whole words.
        words = values.view(np.uint16)
        high = words >> 8
        high += words & 0xFF
        return high.astype(dtype, copy=False)
    part: list[Any] = [slice(None)] * 3
    part[axis] = slice(0, None, size)
    first = values[tuple(part)]
    part[axis] = slice(1, None, size)
    sums: NDArray[Any] = np.add(first, values[tuple(part)], dtype=dtype)
    for offset in range(2, size):
        part[axis] = slice(offset, None, size)
        sums += values[tuple(part)]
    return sums


def _top(values: NDArray[Any]) -> int:
    """The largest magnitude; that of masks is 1, so their sums stay in bytes."""
    if values.dtype.kind not in "ui":
        return 1
    return max(1, int(values.max(initial=0)), -int(values.min(initial=0)))


@lru_cache(maxsize=256)
def _holds(top: int, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """A type for sums up to ``top`` of values of ``dtype``."""
    if dtype.kind not in "uib":
        return np.dtype(np.float32)
    if dtype.kind == "i":
        return np.dtype(np.int32 if top < 1 << 31 else np.float64)
    for wide in (np.uint8, np.uint16, np.uint32):
        if top <= np.iinfo(wide).max:
            return np.dtype(wide)
    return np.dtype(np.float64)

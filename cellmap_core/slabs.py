"""A volume as z slabs, made tile by tile in flat memory whatever its size.

NIfTI wants its sections in order; chunks are cubes. So tiles are cut where chunks of the
source end (none is decoded twice), and a slab one chunk deep is put together before it goes
on: in memory while it is small, in a scratch file where a section alone is large.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellmap_core.grid import Grid, Shape
from cellmap_core.volume import Volume

# Voxels of a tile, of the source or of the output, whichever is more.
_TILE_VOXELS = 4 << 20
# A slab larger than this is put together on disk.
_IN_MEMORY_BYTES = 64 << 20
# Sections are handed on about this many bytes at a time.
_HANDED_BYTES = 8 << 20


def z_slabs(
    grid: Grid,
    make: Callable[[Grid], NDArray[Any]],
    *,
    like: Volume,
    dtype: np.dtype[Any],
    scratch: Path,
) -> Iterator[NDArray[Any]]:
    """Make a volume on ``grid``, in consecutive z slabs.

    Parameters
    ----------
    grid : Grid
        Of the whole output.
    make : callable
        Makes the values of a part of the grid.
    like : Volume
        Its chunks tell where tiles are best cut.
    dtype : numpy.dtype
        Of the values.
    scratch : Path
        Folder for a slab that memory should not hold.

    Yields
    ------
    ndarray
        Shape (n, y, x); valid until the next one is asked for.

    Raises
    ------
    OSError
        No space is left for the scratch file.
    """
    z_cuts, y_cuts, x_cuts = tile_cuts(grid, like)
    _, y, x = grid.shape_vox
    depth = max(b - a for a, b in pairwise(z_cuts))
    slab = _Slab((depth, y, x), dtype, scratch)
    for low, high in pairwise(z_cuts):
        for (y0, y1), (x0, x1) in product(pairwise(y_cuts), pairwise(x_cuts)):
            slab.values[: high - low, y0:y1, x0:x1] = make(grid.cut((low, y0, x0), (high, y1, x1)))
            slab.let_go()
        step = max(1, _HANDED_BYTES // max(1, slab.values[0].nbytes))
        for start in range(0, high - low, step):
            yield slab.values[start : min(start + step, high - low)]
            slab.let_go()


class _Slab:
    """Room for one slab, in memory or in an unnamed scratch file."""

    def __init__(self, shape: Shape, dtype: np.dtype[Any], scratch: Path) -> None:
        size = int(np.prod(shape)) * dtype.itemsize
        self._mapped: mmap.mmap | None = None
        if size <= _IN_MEMORY_BYTES:
            self.values = np.empty(shape, dtype)
            return
        with tempfile.TemporaryFile(dir=scratch) as file:
            # Taken up front: on a full disk a mapped page would end the process.
            os.posix_fallocate(file.fileno(), 0, size)
            self._mapped = mmap.mmap(file.fileno(), size)
        self.values = np.frombuffer(self._mapped, dtype).reshape(shape)

    def let_go(self) -> None:
        """Leave what is written to the page cache, which gives way when memory is short."""
        if self._mapped is not None:
            self._mapped.madvise(mmap.MADV_DONTNEED)


def tile_cuts(grid: Grid, like: Volume) -> tuple[list[int], list[int], list[int]]:
    """Where the output is cut along z, y and x, in output voxels, ends included."""
    source, chunk = like.level.grid, like.chunk_shape
    ratios = [t / s for t, s in zip(grid.voxel_nm, source.voxel_nm, strict=True)]
    # Chunks in a tile along each axis: one, then as many along x as fit, then along y and z.
    count = [1, 1, 1]
    room = _TILE_VOXELS / float(np.prod([_cost(c, r) for c, r in zip(chunk, ratios, strict=True)]))
    for axis in (2, 1, 0):
        needed = int(np.ceil(grid.shape_vox[axis] * ratios[axis] / chunk[axis])) + 1
        count[axis] = int(np.clip(room, 1, needed))
        room /= count[axis]
    z, y, x = (
        _cuts(grid, source, axis, chunk[axis] * count[axis], ratios[axis]) for axis in range(3)
    )
    return z, y, x


def _cost(chunk: int, ratio: float) -> float:
    """Voxels of the source or of the output along one axis of a chunk, whichever is more."""
    return max(chunk, chunk / ratio)


def _cuts(grid: Grid, source: Grid, axis: int, step: int, ratio: float) -> list[int]:
    """Output indices nearest to every ``step``-th voxel edge of the source."""
    n = grid.shape_vox[axis]
    first = source.edge_index(grid.box.low_nm)[axis]
    edges = np.arange(np.ceil(first / step), np.floor((first + n * ratio) / step) + 1) * step
    cuts = sorted({0, n, *(round(i) for i in (edges - first) / ratio if 0 < round(i) < n)})
    # Coarse labels grow: what one chunk becomes may still be more than a tile.
    most = max(1, int(_TILE_VOXELS ** (1 / 3) * 2))
    fine = [a + k for a, b in pairwise(cuts) for k in range(0, b - a, most)]
    return [*fine, n]

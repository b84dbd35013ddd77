"""A few planes and the middle of a volume, kept while it streams by.

A crop is written section by section and never held whole; a picture of it and the check of
its alignment need some planes of each orientation, and at times a block. The sampler copies
those and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellmap_core.errors import CellmapError
from cellmap_core.grid import Shape

#: Planes kept of each orientation; odd, so that the middle one is among them.
PLANES_PER_AXIS = 7
#: Largest extent of a kept plane along each of its axes, in voxels.
WINDOW_VOX = 512
#: Largest extent of the kept block along each axis, in voxels.
BLOCK_VOX = 96


@dataclass(frozen=True, eq=False)
class Plane:
    """One plane of a crop, cut to a window about its middle.

    Attributes
    ----------
    axis : int
        The axis (0 z, 1 y, 2 x) the plane is perpendicular to.
    index : int
        Its place along that axis, in voxels of the crop.
    start_vox : tuple of int
        First voxel of the window along the two axes of the plane.
    image : ndarray
        Shape (rows, columns), the remaining axes in the order z, y, x.
    codes : ndarray or None
        The crop's coded labels in the same voxels; None where it has none.
    """

    axis: int
    index: int
    start_vox: tuple[int, int]
    image: NDArray[Any]
    codes: NDArray[Any] | None = None


@dataclass(frozen=True, eq=False)
class Block:
    """The middle of a crop: image (z, y, x) and coded labels, None where it has none."""

    image: NDArray[Any]
    codes: NDArray[Any] | None = None


class Sampler:
    """Sees a volume go by in consecutive z slabs and keeps a few planes and the middle of it.

    Memory is bounded by ``3 · PLANES_PER_AXIS · WINDOW_VOX² + BLOCK_VOX³`` voxels of image
    and of codes, whatever the size of the volume.

    Parameters
    ----------
    shape_vox : tuple of int
        Shape of the whole volume (z, y, x).
    """

    def __init__(self, shape_vox: Shape) -> None:
        self._shape = shape_vox
        self._kept = tuple(_spread(n) for n in shape_vox)
        self._windows = tuple(_window(n, WINDOW_VOX) for n in shape_vox)
        self._middle = tuple(_window(n, BLOCK_VOX) for n in shape_vox)
        self._image = _Pass("image")
        self._codes = _Pass("labels")

    def image(self, z: int, slab: NDArray[Any]) -> None:
        """See the image's sections ``z …`` (n, y, x)."""
        self._see(self._image, z, slab)

    def codes(self, z: int, slab: NDArray[Any]) -> None:
        """See the coded labels' sections ``z …`` (n, y, x)."""
        self._see(self._codes, z, slab)

    def planes(self) -> tuple[Plane, ...]:
        """The planes kept, by axis and place.

        Raises
        ------
        CellmapError
            Sections are missing.
        """
        self._require_whole()
        return tuple(
            Plane(
                axis=axis,
                index=index,
                start_vox=self._starts(axis),
                image=image,
                codes=self._codes.planes.get((axis, index)),
            )
            for (axis, index), image in self._image.planes.items()
        )

    def block(self) -> Block:
        """The middle of the volume.

        Raises
        ------
        CellmapError
            Sections are missing.
        """
        self._require_whole()
        return Block(np.asarray(self._image.block), self._codes.block)

    def _see(self, seen: _Pass, z: int, slab: NDArray[Any]) -> None:
        depth = self._shape[0]
        if z != seen.seen or z + len(slab) > depth or slab.shape[1:] != self._shape[1:]:
            raise CellmapError(
                f"{seen.what}: sections {z} to {z + len(slab)} of shape {slab.shape[1:]}",
                f"sections from {seen.seen} on, of a volume {self._shape}",
            )
        if seen.block is None:
            seen.planes = self._empty(slab.dtype)
            seen.block = np.empty([w.stop - w.start for w in self._middle], slab.dtype)
        for (axis, index), plane in seen.planes.items():
            if axis == 0:
                if z <= index < z + len(slab):
                    plane[:] = slab[index - z, self._windows[1], self._windows[2]]
            else:
                _, y, x = self._windows
                cut = slab[:, index, x] if axis == 1 else slab[:, y, index]
                _copy_sections(plane, cut, z, self._windows[0])
        _, y, x = self._middle
        _copy_sections(seen.block, slab[:, y, x], z, self._middle[0])
        seen.seen += len(slab)

    def _empty(self, dtype: np.dtype[Any]) -> dict[tuple[int, int], NDArray[Any]]:
        sizes = [w.stop - w.start for w in self._windows]
        return {
            (axis, index): np.empty([n for a, n in enumerate(sizes) if a != axis], dtype)
            for axis, kept in enumerate(self._kept)
            for index in kept
        }

    def _starts(self, axis: int) -> tuple[int, int]:
        rows, columns = (w.start for a, w in enumerate(self._windows) if a != axis)
        return rows, columns

    def _require_whole(self) -> None:
        for seen in (self._image, self._codes):
            labels_there = seen is self._image or seen.seen
            if labels_there and seen.seen != self._shape[0]:
                raise CellmapError(
                    f"{seen.what}: {seen.seen} sections seen", f"all {self._shape[0]} of the crop"
                )


def thinned(planes: Sequence[Plane], steps: Shape) -> tuple[Plane, ...]:
    """The planes with every ``steps``-th voxel along z, y and x; places count these voxels."""
    result = []
    for plane in planes:
        rows, columns = (step for axis, step in enumerate(steps) if axis != plane.axis)
        result.append(
            replace(
                plane,
                index=plane.index // steps[plane.axis],
                start_vox=(plane.start_vox[0] // rows, plane.start_vox[1] // columns),
                image=plane.image[::rows, ::columns],
                codes=None if plane.codes is None else plane.codes[::rows, ::columns],
            )
        )
    return tuple(result)


def thinned_block(block: Block, steps: Shape) -> Block:
    """The block with every ``steps``-th voxel along z, y and x."""
    every = tuple(slice(None, None, step) for step in steps)
    return Block(block.image[every], None if block.codes is None else block.codes[every])


class _Pass:
    """What one pass over the volume has kept so far: planes by axis and place, the middle."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.seen = 0
        self.planes: dict[tuple[int, int], NDArray[Any]] = {}
        self.block: NDArray[Any] | None = None


def _copy_sections(kept: NDArray[Any], slab: NDArray[Any], z: int, window: slice) -> None:
    """Copy those sections ``z …`` of a slab that lie in the window."""
    low, high = max(z, window.start), min(z + len(slab), window.stop)
    if low < high:
        kept[low - window.start : high - window.start] = slab[low - z : high - z]


def _spread(n: int) -> tuple[int, ...]:
    """Places evenly spread over ``n`` voxels, the middle among them, away from the borders."""
    parts = PLANES_PER_AXIS + 1
    return tuple(sorted({n * i // parts for i in range(1, parts)}))


def _window(n: int, largest: int) -> slice:
    size = min(n, largest)
    start = (n - size) // 2
    return slice(start, start + size)

"""What is counted in the voxels of one case: intensities by label id, the image's box.

The files stream by in slabs, once where the image is of 8 or 16 bits without a sign, else
twice: what the counting needs to know of other images (their range, the box) takes a look at
all voxels first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellmap_core import nifti
from cellmap_core.datastats.components import Components
from cellmap_core.datastats.counters import (
    EXACT_RANGE,
    AdaptiveCounter,
    Counter,
    ExactCounter,
    upper_half,
)
from cellmap_core.datastats.distribution import Distribution
from cellmap_core.datastats.label_ids import AnyIds, LabelIds, TableIds
from cellmap_core.errors import StatisticsError
from cellmap_core.grid import Shape
from cellmap_core.image_geometry import ImageGeometry

_SLAB_VOXELS = 4 << 20


@dataclass(frozen=True)
class Channel:
    """Counts of one channel of an image.

    Attributes
    ----------
    by_id : dict
        Intensities of the voxels of each label id that occurs.
    box_vox : tuple of int
        Size (z, y, x) of the smallest box around all voxels above 0; the whole volume where
        there is none, for then there is nothing to crop to.
    in_box : Distribution
        Intensities in that box.
    """

    by_id: dict[int, Distribution]
    box_vox: Shape
    in_box: Distribution


@dataclass(frozen=True)
class Tally:
    """Counts of one case.

    Attributes
    ----------
    geometry : ImageGeometry
        Of the image, from its header.
    dtype : numpy.dtype
        Of the image.
    channels : tuple of Channel
        One of a plain volume.
    shapes : dict
        Bounding boxes (x, y, z) of the components by label id; None when not asked for.
    """

    geometry: ImageGeometry
    dtype: np.dtype[Any]
    channels: tuple[Channel, ...]
    shapes: dict[int, list[list[int]]] | None

    def voxels(self) -> dict[int, int]:
        """Number of voxels of each label id that occurs, sorted by id."""
        by_id = self.channels[0].by_id
        return {i: by_id[i].total for i in sorted(by_id)}


def tally(
    image: Path, label: Path | None, n_ids: int | None = None, components: bool = False
) -> Tally:
    """Count one case.

    Parameters
    ----------
    image : Path
        NIfTI file; a fourth axis holds channels.
    label : Path or None
        NIfTI file of the same grid; None counts all voxels under the id 0.
    n_ids : int or None
        Ids of the label table; an id from there on is an error. None takes any ids.
    components : bool
        Whether to find connected components.

    Raises
    ------
    GeometryError
        Image and label are not one grid.
    StatisticsError
        An id is not in the table, or an intensity is not finite.
    NiftiError
        A file cannot be read.
    """
    geometry = nifti.common_geometry(image, label)
    found = Components() if components else None
    ids: LabelIds = AnyIds() if n_ids is None else TableIds(n_ids, label)
    case = _Case(image, label, geometry, ids)
    channels = tuple(
        _channel(case, number, found if number == 0 else None)
        for number in range(nifti.read_channels(image))
    )
    shapes = {ids.id_of(n): boxes for n, boxes in found.shapes().items()} if found else None
    return Tally(geometry, nifti.read_dtype(image), channels, shapes)


@dataclass(frozen=True)
class _Case:
    """The two files of a case, slab by slab."""

    image: Path
    label: Path | None
    geometry: ImageGeometry
    ids: LabelIds

    def values(self, channel: int) -> Iterator[NDArray[Any]]:
        """Sections of one channel."""
        size = self._sections() * self._section() * nifti.read_dtype(self.image).itemsize
        return nifti.iter_slabs(self.image, size, channel)

    def pairs(self, channel: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Sections of one channel, each with its labels' numbers."""
        if self.label is None:
            for values in self.values(channel):
                yield values, self.ids.numbers(np.zeros(values.shape, np.uint8))
            return
        size = self._sections() * self._section() * nifti.read_dtype(self.label).itemsize
        labels = nifti.iter_slabs(self.label, size)
        for values, raw in zip(self.values(channel), labels, strict=True):
            yield values, self.ids.numbers(raw)

    def _section(self) -> int:
        return self.geometry.shape_vox[1] * self.geometry.shape_vox[2]

    def _sections(self) -> int:
        return max(1, _SLAB_VOXELS // self._section())


def _channel(case: _Case, number: int, components: Components | None) -> Channel:
    if nifti.read_dtype(case.image) in (np.uint8, np.uint16):
        return _in_one_pass(case, number, components)
    return _in_two_passes(case, number, components)


def _in_one_pass(case: _Case, number: int, components: Components | None) -> Channel:
    """Of unsigned images: outside the box every voxel is 0, so that one look is enough."""
    counter = ExactCounter(0, 1 << (8 * nifti.read_dtype(case.image).itemsize))
    box = _Box()
    for values, numbers in case.pairs(number):
        box.add(values)
        counter.add(values.ravel(), numbers.ravel())
        if components:
            components.add(numbers)
    size = box.size()
    by_number = counter.distributions()
    outside = int(np.prod(case.geometry.shape_vox)) - int(np.prod(size))
    in_box = Distribution.merged(by_number.values()).without(0, outside)
    return Channel({case.ids.id_of(n): of for n, of in by_number.items()}, size, in_box)


def _in_two_passes(case: _Case, number: int, components: Components | None) -> Channel:
    """Of all other images: first the box and where the values are, then the counting."""
    box, range_ = _Box(), _Range()
    for values in case.values(number):
        if not np.isfinite(values).all():
            raise StatisticsError(
                f"{case.image.name} holds NaN or infinite intensities",
                "finite numbers",
                "convert it again",
            )
        box.add(values)
        range_.add(values)
    counter, z = range_.counter(), 0
    for values, numbers in case.pairs(number):
        # One number more a voxel: whether it lies in the box.
        doubled = numbers.astype(np.uint32) * 2
        doubled[box.part(z, len(values))] += 1
        counter.add(values.ravel(), doubled.ravel())
        if components:
            components.add(numbers)
        z += len(values)
    parts = counter.distributions()
    by_id = {
        case.ids.id_of(n): Distribution.merged(parts[k] for k in (2 * n, 2 * n + 1) if k in parts)
        for n in sorted({k // 2 for k in parts})
    }
    in_box = Distribution.merged(of for k, of in parts.items() if k % 2)
    return Channel(by_id, box.size(), in_box)


class _Range:
    """What values an image has: whether all are whole numbers, from where to where."""

    def __init__(self) -> None:
        self._low: float | None = None
        self._high: float | None = None
        self._whole = True
        self._coarse = np.zeros(1 << 16, np.int64)

    def add(self, values: NDArray[Any]) -> None:
        # Python's own whole numbers: those of 64 bits do not fit a float.
        low, high = values.min().item(), values.max().item()
        self._low = low if self._low is None else min(low, self._low)
        self._high = high if self._high is None else max(high, self._high)
        self._whole = self._whole and (
            values.dtype.kind != "f" or bool((np.rint(values) == values).all())
        )
        self._coarse += upper_half(values.ravel())

    def counter(self) -> Counter:
        """What counts such values best."""
        low, high = self._low or 0, self._high or 0
        if self._whole and high - low < EXACT_RANGE:
            return ExactCounter(int(low), int(high) - int(low) + 1)
        return AdaptiveCounter(self._coarse)


class _Box:
    """Extent of the voxels above 0, of slabs in the order of z."""

    def __init__(self) -> None:
        self._z: list[NDArray[np.bool_]] = []
        self._yx: list[NDArray[Any]] = []

    def add(self, image: NDArray[Any]) -> None:
        self._z.append(image.reshape(len(image), -1).max(axis=1) > 0)
        self._yx = [np.max([*self._yx, image.max(axis=0)], axis=0)]

    def size(self) -> Shape:
        """Size of the box (z, y, x)."""
        z, y, x = (s.stop - s.start for s in self._slices)
        return z, y, x

    def part(self, start: int, count: int) -> tuple[slice, slice, slice]:
        """The box's part of the sections from ``start`` on."""
        z, y, x = self._slices
        return slice(max(z.start - start, 0), min(max(z.stop - start, 0), count)), y, x

    @cached_property
    def _slices(self) -> tuple[slice, slice, slice]:
        """The box; the whole volume where no voxel is above 0."""
        z, yx = np.concatenate(self._z), self._yx[0] > 0
        if not z.any():
            return slice(0, len(z)), slice(0, yx.shape[0]), slice(0, yx.shape[1])
        lines = [np.flatnonzero(a) for a in (z, yx.any(axis=1), yx.any(axis=0))]
        first, second, third = (slice(int(line[0]), int(line[-1]) + 1) for line in lines)
        return first, second, third

"""Intensities counted by label, slab by slab, in memory that does not grow with the volume.

Whole numbers in a range of 2¹⁶ (8- and 16-bit images, and floats that hold whole numbers) are
counted one by one: exact. Other intensities are put in some 2¹⁵ bins, more where there are
more voxels, each of which remembers its mean; means, minima and maxima stay exact, and a
percentile is off by at most one bin, that is by 1/2¹⁵ of the voxels in rank.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cellmap_core.datastats.distribution import Distribution

#: Widest range of whole numbers that is counted one by one.
EXACT_RANGE = 1 << 16
# A count's index stays in the cache for a block of this many voxels.
_BLOCK_VOXELS = 1 << 18
_BYTE = 1 << 8
_BINS = 1 << 15

Counts = NDArray[np.int64]


class Counter(Protocol):
    """Counts intensities by a small number beside each voxel (its label)."""

    def add(self, values: NDArray[Any], numbers: NDArray[Any]) -> None:
        """Take the next voxels: their intensities and numbers, both flat."""

    def distributions(self) -> dict[int, Distribution]:
        """Intensities by number, for the numbers that occur."""


class ExactCounter:
    """Counts whole numbers from ``low`` on, ``span`` of them, one by one.

    Those of an unsigned type are counted from 0.
    """

    def __init__(self, low: int, span: int) -> None:
        self._low, self._span = low, span
        self.counts: dict[int, Counts] = {}

    def add(self, values: NDArray[Any], numbers: NDArray[Any]) -> None:
        """See :class:`Counter`."""
        if values.dtype.kind != "u":
            wide = np.float64 if values.dtype.kind == "f" else np.int64
            values = (values.astype(wide) - self._low).astype(np.uint16)
        present, rows = _rows(numbers)
        if values.dtype == np.uint8 and len(present) <= _BYTE:
            joint = _of_bytes(values, rows)[: len(present), : self._span]
        else:
            joint = _of_words(values, rows, len(present), self._span)
        for number, counts in zip(present.tolist(), joint, strict=True):
            so_far = self.counts.get(number)
            self.counts[number] = counts.copy() if so_far is None else so_far + counts

    def distributions(self) -> dict[int, Distribution]:
        """See :class:`Counter`."""
        return {
            number: Distribution.of_histogram(counts, self._low)
            for number, counts in sorted(self.counts.items())
            if counts.any()
        }


class AdaptiveCounter:
    """Counts intensities of any kind in bins laid where the voxels are.

    Parameters
    ----------
    coarse : ndarray
        How often each upper half of a number (see :func:`upper_half`) occurs in the image.
    """

    def __init__(self, coarse: Counts) -> None:
        share = np.ceil(coarse * (_BINS / max(1, int(coarse.sum()))))
        self._parts = np.clip(share, coarse > 0, EXACT_RANGE).astype(np.int64)
        self._first = np.cumsum(self._parts) - self._parts
        self._bins = int(self._parts.sum())
        self._counts: dict[int, Counts] = {}
        self._sums: dict[int, NDArray[np.float64]] = {}
        self._ends: dict[int, tuple[float, float]] = {}

    def add(self, values: NDArray[Any], numbers: NDArray[Any]) -> None:
        """See :class:`Counter`."""
        present, rows = _rows(numbers)
        for start in range(0, len(values), _BLOCK_VOXELS):
            self._add_block(
                values[start : start + _BLOCK_VOXELS],
                rows[start : start + _BLOCK_VOXELS],
                present,
            )

    def distributions(self) -> dict[int, Distribution]:
        """See :class:`Counter`."""
        result = {}
        for number in sorted(self._counts):
            used = np.flatnonzero(self._counts[number])
            counts, sums = self._counts[number][used], self._sums[number][used]
            result[number] = Distribution.of_means(counts, sums, *self._ends[number])
        return result

    def _add_block(
        self, values: NDArray[Any], rows: NDArray[Any], present: NDArray[np.intp]
    ) -> None:
        keys = ordered_bits(values)
        upper = keys >> 16
        bins = self._first[upper] + ((keys & 0xFFFF) * self._parts[upper] >> 16)
        for row in np.flatnonzero(np.bincount(rows, minlength=len(present))):
            chosen = rows == row
            number, some, places = int(present[row]), values[chosen], bins[chosen]
            counts: Counts = np.bincount(places, minlength=self._bins)
            sums: Any = np.bincount(places, some.astype(np.float64), self._bins)
            low, high = float(some.min()), float(some.max())
            if number in self._counts:
                counts += self._counts[number]
                sums += self._sums[number]
                low, high = min(low, self._ends[number][0]), max(high, self._ends[number][1])
            self._counts[number], self._sums[number] = counts, sums
            self._ends[number] = low, high


def ordered_bits(values: NDArray[Any]) -> NDArray[np.int64]:
    """Bits of the values as 32-bit floats, made to sort as the values do (0 to 2³² - 1)."""
    with np.errstate(over="ignore"):  # What 32 bits do not hold sorts last, as infinity.
        bits = values.astype(np.float32).view(np.uint32).astype(np.int64)
    # Negative floats sort the other way round, below the others.
    return np.where(bits >= 1 << 31, (1 << 32) - 1 - bits, bits + (1 << 31))


def upper_half(values: NDArray[Any]) -> Counts:
    """How often each upper half (16 bits) of :func:`ordered_bits` occurs."""
    return np.bincount(ordered_bits(values) >> 16, minlength=1 << 16)


def _rows(numbers: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """The numbers that occur, and for each voxel the place of its own among them.

    Tables are long, and a slab holds few of their numbers.
    """
    if numbers.dtype == np.uint8:
        return np.arange(int(numbers.max()) + 1), numbers
    present = np.flatnonzero(np.bincount(numbers))
    table = np.zeros(int(present[-1]) + 1, np.min_scalar_type(len(present) - 1))
    table[present] = np.arange(len(present))
    return present, table[numbers]


def _of_bytes(values: NDArray[np.uint8], rows: NDArray[np.uint8]) -> Counts:
    """Joint counts (row, value) of bytes: both fit one 16-bit number."""
    joint = np.zeros(_BYTE * _BYTE, np.int64)
    pairs = np.empty(min(len(values), _BLOCK_VOXELS), np.uint16)
    for start in range(0, len(values), _BLOCK_VOXELS):
        some = values[start : start + _BLOCK_VOXELS]
        pair = pairs[: len(some)]
        np.left_shift(rows[start : start + len(some)], 8, out=pair, dtype=np.uint16)
        pair |= some
        found = np.bincount(pair)
        joint[: len(found)] += found
    return joint.reshape(_BYTE, _BYTE)


def _of_words(values: NDArray[Any], rows: NDArray[Any], count: int, span: int) -> Counts:
    """Joint counts (row, value) of anything."""
    joint = np.zeros(count * span, np.int64)
    # Counting costs a pass over all counts, so that blocks grow with them.
    step = max(_BLOCK_VOXELS, 2 * len(joint))
    for start in range(0, len(values), step):
        index = rows[start : start + step].astype(np.intp)
        index *= span
        index += values[start : start + step]
        found = np.bincount(index)
        joint[: len(found)] += found
    return joint.reshape(count, span)

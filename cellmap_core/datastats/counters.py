"""Intensities counted by label, slab by slab, in memory that does not grow with the volume.

Whole numbers in a range of 2¹⁶ (8- and 16-bit images, and floats that hold whole numbers) are
counted one by one: exact. Other intensities are put, at 32-bit precision, in some 2¹⁵ bins,
more where there are more voxels, each of which remembers its mean. Means, minima and maxima
stay exact; a percentile is off by at most one bin, that is by 1/2¹⁵ of the voxels in rank.

Counts stand in a table of label × intensity as long as that is small; for thousands of labels
only the pairs that occur are kept, sorted.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cellmap_core.datastats.distribution import Distribution

#: Widest range of whole numbers that is counted one by one.
EXACT_RANGE = 1 << 16
# Voxels counted in one go: their index stays in the cache.
_BLOCK_VOXELS = 1 << 18
# Entries of a table of counts (8 bytes each) beyond which only what occurs is kept.
_TABLE_ENTRIES = 1 << 21
_BYTE = 1 << 8
_BINS = 1 << 15

Counts = NDArray[np.int64]
_Floats = NDArray[np.float64]


class Counter(Protocol):
    """Counts intensities by a small number beside each voxel (its label)."""

    def add(self, values: NDArray[Any], numbers: NDArray[Any]) -> None:
        """Take the next voxels: their intensities and numbers, both flat."""

    def distributions(self) -> dict[int, Distribution]:
        """Intensities by number, for the numbers that occur."""


class ExactCounter:
    """Counts whole numbers from ``low`` on, ``span`` of them, one by one."""

    def __init__(self, low: int, span: int) -> None:
        self._low = low
        self._pairs = _Pairs(span)

    def add(self, values: NDArray[Any], numbers: NDArray[Any]) -> None:
        """See :class:`Counter`."""
        places = self._places(values)
        if places.dtype == np.uint8 and numbers.dtype == np.uint8:
            self._pairs.add_table(_of_bytes(places, numbers))
        else:
            self._pairs.add(places, numbers)

    def distributions(self) -> dict[int, Distribution]:
        """See :class:`Counter`."""
        return {
            number: Distribution(places.astype(np.float64) + self._low, counts)
            for number, places, counts, _ in self._pairs.by_number()
        }

    def _places(self, values: NDArray[Any]) -> NDArray[Any]:
        """How far each value lies above the lowest."""
        if self._low == 0 and values.dtype in (np.uint8, np.uint16):
            return values
        above: NDArray[Any]
        if values.dtype.kind == "u":
            above = values - values.dtype.type(self._low)
        else:
            above = values.astype(np.float64 if values.dtype.kind == "f" else np.int64) - self._low
        return above.astype(np.uint16)


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
        self._pairs = _Pairs(int(self._parts.sum()), sums=True)
        self._low, self._high = np.empty(0), np.empty(0)

    def add(self, values: NDArray[Any], numbers: NDArray[Any]) -> None:
        """See :class:`Counter`."""
        self._widen(values, numbers)
        for start in range(0, len(values), _BLOCK_VOXELS):
            some = values[start : start + _BLOCK_VOXELS]
            keys = ordered_bits(some)
            upper = keys >> 16
            bins = self._first[upper] + ((keys & 0xFFFF) * self._parts[upper] >> 16)
            self._pairs.add(bins, numbers[start : start + _BLOCK_VOXELS], some)

    def distributions(self) -> dict[int, Distribution]:
        """See :class:`Counter`."""
        return {
            number: Distribution.of_means(
                counts, sums, float(self._low[number]), float(self._high[number])
            )
            for number, _, counts, sums in self._pairs.by_number()
        }

    def _widen(self, values: NDArray[Any], numbers: NDArray[Any]) -> None:
        """Keep the least and the largest value by number."""
        missing = int(numbers.max()) + 1 - len(self._low)
        if missing > 0:
            self._low = np.append(self._low, np.full(missing, np.inf))
            self._high = np.append(self._high, np.full(missing, -np.inf))
        exact = values.astype(np.float64)
        np.minimum.at(self._low, numbers, exact)
        np.maximum.at(self._high, numbers, exact)


class _Pairs:
    """Counts of pairs (number, place), and what is summed up over each, if asked.

    Parameters
    ----------
    span : int
        Places are below this.
    sums : bool
        Whether values are summed up too.
    """

    def __init__(self, span: int, sums: bool = False) -> None:
        self._span, self._summing = span, sums
        self._table: Counts | None = np.zeros(0, np.int64)
        self._table_sums: _Floats = np.zeros(0)
        self._keys: Counts = np.zeros(0, np.int64)
        self._counts: Counts = np.zeros(0, np.int64)
        self._sums: _Floats = np.zeros(0)
        self._pending: list[tuple[Counts, Counts, _Floats]] = []

    def add(
        self, places: NDArray[Any], numbers: NDArray[Any], values: NDArray[Any] | None = None
    ) -> None:
        """Take the next voxels."""
        entries = (int(numbers.max()) + 1) * self._span
        if self._table is None or entries > _TABLE_ENTRIES:
            self._add_sparse(places, numbers, values)
            return
        self._grow(entries)
        step = max(_BLOCK_VOXELS, 2 * len(self._table))
        for start in range(0, len(places), step):
            index = numbers[start : start + step].astype(np.int64)
            index *= self._span
            index += places[start : start + step]
            counted: Counts = np.bincount(index)
            self._table[: len(counted)] += counted
            if values is not None:
                weights = values[start : start + step].astype(np.float64)
                summed: Any = np.bincount(index, weights)
                self._table_sums[: len(summed)] += summed

    def add_table(self, table: Counts) -> None:
        """Take counts by number and place, of at most 256 each."""
        last = int(np.flatnonzero(table.any(axis=1))[-1])
        wanted = table[: last + 1, : self._span]
        if self._table is None or wanted.size > _TABLE_ENTRIES:
            index = np.flatnonzero(wanted)
            self._put(index, wanted.ravel()[index], np.zeros(len(index)))
            return
        self._grow(wanted.size)
        self._table[: wanted.size] += wanted.ravel()

    def by_number(self) -> list[tuple[int, Counts, Counts, _Floats]]:
        """Number, places that occur, their counts and sums, by number."""
        self._to_sparse()
        self._merge()
        numbers = self._keys // self._span
        present, starts = np.unique(numbers, return_index=True)
        ends = np.append(starts[1:], len(numbers))
        return [
            (
                int(number),
                self._keys[start:end] - int(number) * self._span,
                self._counts[start:end],
                self._sums[start:end],
            )
            for number, start, end in zip(present, starts, ends, strict=True)
        ]

    def _grow(self, entries: int) -> None:
        assert self._table is not None
        missing = entries - len(self._table)
        if missing > 0:
            self._table = np.append(self._table, np.zeros(missing, np.int64))
            if self._summing:
                self._table_sums = np.append(self._table_sums, np.zeros(missing))

    def _to_sparse(self) -> None:
        """Leave the table: from now on only pairs that occur are kept."""
        if self._table is not None:
            index = np.flatnonzero(self._table)
            sums = self._table_sums[index] if self._summing else np.zeros(len(index))
            counts, self._table = self._table[index], None
            self._put(index, counts, sums)

    def _add_sparse(
        self, places: NDArray[Any], numbers: NDArray[Any], values: NDArray[Any] | None
    ) -> None:
        self._to_sparse()
        for start in range(0, len(places), _BLOCK_VOXELS):
            part = slice(start, start + _BLOCK_VOXELS)
            index = numbers[part].astype(np.int64) * self._span + places[part]
            keys, where, counts = np.unique(index, return_inverse=True, return_counts=True)
            sums: Any = np.zeros(len(keys))
            if values is not None:
                sums = np.bincount(where, values[part].astype(np.float64), len(keys))
            self._put(keys, counts, sums)

    def _put(self, keys: Counts, counts: Counts, sums: _Floats) -> None:
        """Add pairs; they are merged when they are as many as all there are."""
        self._pending.append((keys, counts, sums))
        if sum(len(p[0]) for p in self._pending) > max(len(self._keys), _TABLE_ENTRIES):
            self._merge()

    def _merge(self) -> None:
        parts = [(self._keys, self._counts, self._sums), *self._pending]
        self._pending = []
        keys, where = np.unique(np.concatenate([p[0] for p in parts]), return_inverse=True)
        total = np.zeros(len(keys), np.int64)
        np.add.at(total, where, np.concatenate([p[1] for p in parts]))
        summed: Any = np.bincount(where, np.concatenate([p[2] for p in parts]), len(keys))
        self._keys, self._counts, self._sums = keys, total, summed


def ordered_bits(values: NDArray[Any]) -> NDArray[np.int64]:
    """Bits of the values as 32-bit floats, made to sort as the values do (0 to 2³² - 1)."""
    with np.errstate(over="ignore"):  # What 32 bits do not hold sorts last, as infinity.
        bits = values.astype(np.float32).view(np.uint32).astype(np.int64)
    # Negative floats sort the other way round, below the others.
    return np.where(bits >= 1 << 31, (1 << 32) - 1 - bits, bits + (1 << 31))


def upper_half(values: NDArray[Any]) -> Counts:
    """How often each upper half (16 bits) of :func:`ordered_bits` occurs."""
    return np.bincount(ordered_bits(values) >> 16, minlength=1 << 16)


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

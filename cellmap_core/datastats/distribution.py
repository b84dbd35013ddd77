"""Distributions of intensities, and Auto3DSeg's numbers of them.

A distribution is the sorted distinct values with how often each occurs: exact for any data,
and small for 8- and 16-bit images however large the volume is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Percentiles of every report, with the names Auto3DSeg gives them.
PERCENTILES = (0.5, 10.0, 90.0, 99.5)
PERCENTILE_NAMES = ("percentile_00_5", "percentile_10_0", "percentile_90_0", "percentile_99_5")


@dataclass(frozen=True)
class Distribution:
    """Sorted distinct ``values`` and their ``counts`` (each above 0)."""

    values: NDArray[np.float64]
    counts: NDArray[np.int64]

    @classmethod
    def of_histogram(cls, histogram: NDArray[np.int64], low: int = 0) -> Distribution:
        """Of counts by intensity, the first being that of ``low``."""
        values = np.flatnonzero(histogram)
        return cls(values.astype(np.float64) + low, histogram[values])

    @classmethod
    def of_means(
        cls, counts: NDArray[np.int64], sums: NDArray[np.float64], low: float, high: float
    ) -> Distribution:
        """Of sorted bins of samples by how many and their sum; the least and largest are known.

        Each bin stands for its mean, so that the mean of all is exact; the two ends are taken
        out of their bins and stand for themselves.
        """
        counts, sums = counts.copy(), sums.copy()
        if counts.sum() < 2:
            return cls(np.array([low]), counts)
        for place, end in ((0, low), (-1, high)):
            counts[place] -= 1
            sums[place] -= end
        left = counts > 0
        means = np.clip(sums[left] / counts[left], low, high)
        ends = cls(np.array([low, high]), np.ones(2, dtype=np.int64))
        return cls.merged([ends, cls(means, counts[left])])

    @classmethod
    def of_samples(cls, samples: NDArray[Any]) -> Distribution:
        """Of all samples, by an exact sort; any shape."""
        values, counts = np.unique(samples, return_counts=True)
        return cls(values.astype(np.float64), counts.astype(np.int64))

    @classmethod
    def merged(cls, parts: Iterable[Distribution]) -> Distribution:
        """Of all parts together."""
        some = list(parts)
        if not some:
            return cls(np.empty(0), np.empty(0, dtype=np.int64))
        values, place = np.unique(np.concatenate([p.values for p in some]), return_inverse=True)
        counts = np.zeros(len(values), dtype=np.int64)
        np.add.at(counts, place, np.concatenate([p.counts for p in some]))
        return cls(values, counts)

    def without(self, value: float, count: int) -> Distribution:
        """The same without ``count`` of its samples of one value."""
        if not count:
            return self
        counts = np.where(self.values == value, self.counts - count, self.counts)
        return Distribution(self.values[counts > 0], counts[counts > 0])

    def histogram(self, bins: int, low: float, high: float) -> tuple[list[int], list[float]]:
        """Counts and edges of equal bins over a range, as ``numpy.histogram`` makes them."""
        counts, edges = np.histogram(self.values, bins, (low, high), weights=self.counts)
        return counts.astype(np.int64).tolist(), edges.tolist()

    @property
    def total(self) -> int:
        """Number of samples."""
        return int(self.counts.sum())

    def at_ranks(self, ranks: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values at 0-based ranks of the sorted samples, linear between two whole ranks."""
        ends = np.cumsum(self.counts)
        low = np.floor(ranks)
        below = self.values[np.searchsorted(ends, low, side="right")]
        above = self.values[np.searchsorted(ends, np.ceil(ranks), side="right")]
        return below + (above - below) * (ranks - low)

    def ops(self) -> dict[str, Any]:
        """Auto3DSeg's ``SampleOperations`` of the samples, as plain floats.

        As there: the lower median (``torch.median``), the population standard deviation and
        linear percentiles. Computed in float64, where MONAI's float32 loses digits.
        """
        n = self.total
        mean = float(np.dot(self.values, self.counts) / n)
        variance = float(np.dot((self.values - mean) ** 2, self.counts) / n)
        middle = self.at_ranks(np.array([(n - 1) // 2], dtype=np.float64))
        tails = self.at_ranks(np.array(PERCENTILES) / 100 * (n - 1)).tolist()
        return {
            "max": float(self.values[-1]),
            "mean": mean,
            "median": float(middle[0]),
            "min": float(self.values[0]),
            "stdev": float(np.sqrt(variance)),
            "percentile": tails,
            **dict(zip(PERCENTILE_NAMES, tails, strict=True)),
        }


def ops_of_rows(rows: Sequence[Any]) -> dict[str, Any]:
    """Auto3DSeg's summary of numbers or triples over cases, along the first axis.

    Here the median is numpy's (the mean of the middle two), as in MONAI's summary. Percentiles
    of whole numbers stay linear, where MONAI casts them back to whole numbers.
    """
    array = np.asarray(rows)
    tails = np.percentile(array, PERCENTILES, axis=0).tolist()
    return {
        "max": array.max(axis=0).tolist(),
        "mean": array.mean(axis=0).tolist(),
        "median": np.median(array, axis=0).tolist(),
        "min": array.min(axis=0).tolist(),
        "stdev": array.std(axis=0).tolist(),
        "percentile": tails,
        **dict(
            zip(PERCENTILE_NAMES, np.percentile(array, PERCENTILES, axis=0).tolist(), strict=True)
        ),
    }


def summary_of_ops(ops: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Auto3DSeg's ``SummaryOperations`` over cases: max of max, min of min, mean of the rest."""
    names = ("max", "mean", "median", "min", "stdev", *PERCENTILE_NAMES)
    how = {"max": np.max, "min": np.min}
    return {name: float(how.get(name, np.mean)([o[name] for o in ops])) for name in names}

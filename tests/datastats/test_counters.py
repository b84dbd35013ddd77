"""Counting by label: exact for whole numbers, exact ends and means for any."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cellmap_core.datastats.counters import (
    AdaptiveCounter,
    ExactCounter,
    ordered_bits,
    upper_half,
)

PERCENTILES = (0.5, 10, 50, 90, 99.5)


def counted(counter, values, numbers, pieces=3):
    for part in np.array_split(np.arange(len(values)), pieces):
        if len(part):
            counter.add(values[part], numbers[part])
    return counter.distributions()


def assert_exact(found, values, numbers):
    assert sorted(found) == sorted(set(numbers.tolist()))
    for number, of in found.items():
        expected = np.unique(values[numbers == number].astype(np.float64), return_counts=True)
        assert np.array_equal(of.values, expected[0])
        assert np.array_equal(of.counts, expected[1])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whole_numbers_are_counted_one_by_one(data):
    dtype = data.draw(st.sampled_from([np.uint8, np.uint16, np.int8, np.int16, np.float32]))
    low, high = (0, 255) if dtype == np.uint8 else (0, 65535) if dtype == np.uint16 else (-128, 127)
    n = data.draw(st.integers(1, 300))
    values = data.draw(arrays.arrays(np.int64, n, elements=st.integers(low, high))).astype(dtype)
    top, kind = data.draw(st.sampled_from([(3, np.uint8), (255, np.uint8), (999, np.uint16)]))
    numbers = data.draw(arrays.arrays(np.int64, n, elements=st.integers(0, top))).astype(kind)
    span = high - low + 1
    assert_exact(counted(ExactCounter(low, span), values, numbers), values, numbers)


def test_long_runs_cross_the_blocks(rng, monkeypatch):
    monkeypatch.setattr("cellmap_core.datastats.counters._BLOCK_VOXELS", 64)
    values = rng.integers(0, 256, 1000).astype(np.uint8)
    for numbers in (rng.integers(0, 15, 1000).astype(np.uint8), np.arange(1000, dtype=np.uint16)):
        assert_exact(counted(ExactCounter(0, 256), values, numbers), values, numbers)


@pytest.mark.parametrize(
    "dtype", [np.uint32, np.uint64, np.int64, np.int32, np.dtype(">u2"), np.dtype(">i4")]
)
def test_wide_whole_numbers_far_from_zero_are_exact(rng, dtype):
    limits = np.iinfo(dtype)
    for low in (1, 100, int(limits.max) - 200):
        values = np.array([low + int(i) for i in rng.integers(0, 150, 500)], dtype)
        numbers = rng.integers(0, 3, 500).astype(np.uint8)
        counter = ExactCounter(int(values.min()), int(values.max()) - int(values.min()) + 1)
        found = counted(counter, values, numbers)
        for number, of in found.items():
            expected = np.unique(values[numbers == number], return_counts=True)
            assert of.values == pytest.approx([float(v) for v in expected[0]])
            assert np.array_equal(of.counts, expected[1])


@pytest.mark.parametrize("adaptive", [False, True])
def test_thousands_of_labels_are_counted_as_few_are(rng, monkeypatch, adaptive):
    values = rng.normal(100, 20, 20_000).astype(np.float32 if adaptive else np.uint16)
    numbers = rng.integers(0, 500, 20_000).astype(np.uint16)
    numbers[:5000] %= 3

    def made():
        counter = AdaptiveCounter(upper_half(values)) if adaptive else ExactCounter(0, 1 << 16)
        return counted(counter, values, numbers, pieces=9)

    monkeypatch.setattr("cellmap_core.datastats.counters._TABLE_ENTRIES", 1 << 40)
    expected = made()
    monkeypatch.setattr("cellmap_core.datastats.counters._TABLE_ENTRIES", 1 << 12)
    found = made()
    assert list(found) == list(expected)
    for number, of in found.items():
        assert of.values == pytest.approx(expected[number].values)
        assert np.array_equal(of.counts, expected[number].counts)


@settings(max_examples=40, deadline=None)
@given(arrays.arrays(np.float32, st.integers(2, 60), elements=st.floats(width=32, allow_nan=False)))
def test_bits_sort_as_the_values_do(values):
    order = np.argsort(values, kind="stable")
    bits = ordered_bits(values)[order]
    assert (np.diff(bits)[np.diff(values[order]) > 0] > 0).all()
    assert (np.diff(bits) >= 0).all() or 0.0 in values
    assert upper_half(values).sum() == len(values)


@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e6])
def test_any_numbers_keep_mean_and_ends_and_their_ranks(rng, spread):
    n = 400_000
    values = (rng.normal(size=n) * spread).astype(np.float32)
    values[:5] = [1e9, -1e9, 0.0, 1e-9, -1e-9]
    numbers = rng.integers(0, 4, n).astype(np.uint8)
    found = counted(AdaptiveCounter(upper_half(values)), values, numbers, pieces=7)
    assert sorted(found) == [0, 1, 2, 3]
    for number, of in found.items():
        some = np.sort(values[numbers == number].astype(np.float64))
        ops = of.ops()
        assert of.total == len(some)
        assert (ops["min"], ops["max"]) == (some[0], some[-1])
        assert ops["mean"] == pytest.approx(some.mean(), rel=1e-9)
        # A value of the report stands at its own rank, give or take a bin.
        got = [ops["percentile"][0], ops["percentile"][1], ops["median"], *ops["percentile"][2:]]
        for value, percent in zip(got, PERCENTILES, strict=True):
            rank = np.searchsorted(some, value) / len(some)
            assert abs(rank - percent / 100) < 3e-4


def test_few_distinct_numbers_are_exact(rng):
    values = rng.choice(np.array([-2.5, 0.0, 0.1, 7.25, 1e5], np.float32), 5000)
    numbers = np.zeros(5000, np.uint8)
    (of,) = counted(AdaptiveCounter(upper_half(values)), values, numbers).values()
    expected = np.unique(values.astype(np.float64), return_counts=True)
    assert of.ops()["median"] == pytest.approx(np.percentile(values, 50, method="lower"))
    assert of.ops()["stdev"] == pytest.approx(values.astype(np.float64).std())
    assert set(np.round(of.values, 12)) == set(np.round(expected[0], 12))

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmap_core import resample
from cellmap_core.grid import Grid
from cellmap_core.label_table import ABSENT, PRESENT, UNKNOWN


def grid(shape, voxel, low=(0.0, 0.0, 0.0)):
    centre = tuple(a + v / 2 for a, v in zip(low, voxel, strict=True))
    return Grid(shape_vox=shape, voxel_nm=voxel, translation_nm=centre)


def image(values, source, target):
    how = resample.plan(source, target, "image")
    return resample.image(values[block(how)], how)


def states(values, source, target):
    how = resample.plan(source, target, "label")
    part = values[block(how)]
    return resample.majority(part == PRESENT, part == UNKNOWN, how)


def block(how):
    return tuple(slice(a, b) for a, b in zip(how.start, how.stop, strict=True))


def centres(g, axis):
    return g.translation_nm[axis] + g.voxel_nm[axis] * np.arange(g.shape_vox[axis])


def ramp(g):
    z, y, x = np.meshgrid(*[centres(g, a) for a in range(3)], indexing="ij")
    return (0.5 * z + 0.25 * y + x).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.floats(2, 20)] * 3),
    st.tuples(*[st.floats(2, 20)] * 3),
    st.tuples(*[st.floats(-50, 50)] * 3),
)
def test_every_output_voxel_is_within_half_a_voxel_of_the_ramp(voxel, target, low):
    """Raw that is a linear function of position stays that function, away from the border."""
    source = grid((24, 24, 24), voxel, low)
    new = source.resampled(target)
    result = image(ramp(source), source, new)
    expected = ramp(new)
    step = 0.5 * target[0] + 0.25 * target[1] + target[2]
    border = 0.5 * voxel[0] + 0.25 * voxel[1] + voxel[2]  # Edge values are held, not guessed.
    assert np.abs(result - expected).max() <= 0.5 * (step + border) + 1e-2
    inner = [
        np.abs(centres(new, a) - (source.box.low_nm[a] + source.box.high_nm[a]) / 2)
        < source.box.size_nm[a] / 2 - max(voxel[a], target[a])
        for a in range(3)
    ]
    if all(i.any() for i in inner):
        part = np.ix_(*inner)
        assert np.abs(result - expected)[part].max() <= 0.5 * step + 1e-2


def test_halving_averages_blocks_and_keeps_the_type():
    values = np.arange(64, dtype=np.uint8).reshape(4, 4, 4)
    source = grid((4, 4, 4), (4.0, 4.0, 4.0))
    result = image(values, source, source.resampled((8.0, 8.0, 8.0)))
    blocks = values.reshape(2, 2, 2, 2, 2, 2).mean(axis=(1, 3, 5))
    assert result.dtype == np.uint8
    assert np.array_equal(result, np.rint(blocks).astype(np.uint8))


def test_the_same_grid_is_untouched():
    values = np.random.default_rng(0).integers(0, 255, (3, 4, 5), dtype=np.uint8)
    source = grid((3, 4, 5), (8.0, 8.0, 8.0))
    assert np.array_equal(image(values, source, source), values)


def test_labels_are_exact_where_blocks_align_and_come_back():
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 3, (5, 6, 7)).astype(np.uint8)
    own = grid((5, 6, 7), (8.0, 8.0, 8.0))
    fine = own.resampled((4.0, 2.0, 8.0))
    spread = states(coarse, own, fine)
    assert np.array_equal(spread, coarse.repeat(2, 0).repeat(4, 1))
    assert np.array_equal(states(spread, fine, own), coarse)


@pytest.mark.parametrize(
    ("counts", "winner"),
    [((5, 3, 0), ABSENT), ((3, 5, 0), PRESENT), ((4, 4, 0), PRESENT), ((4, 0, 4), UNKNOWN),
     ((0, 4, 4), PRESENT), ((3, 2, 3), UNKNOWN), ((2, 1, 5), UNKNOWN)],
)  # fmt: skip
def test_the_majority_of_three_states(counts, winner):
    values = np.repeat([ABSENT, PRESENT, UNKNOWN], counts).astype(np.uint8).reshape(2, 2, 2)
    source = grid((2, 2, 2), (4.0, 4.0, 4.0))
    assert states(values, source, source.resampled((8.0,) * 3)).item() == winner


def test_what_labels_do_not_reach_is_unknown():
    values = np.full((2, 2, 2), PRESENT, np.uint8)
    source = grid((2, 2, 2), (8.0, 8.0, 8.0))
    wider = grid((4, 2, 2), (8.0, 8.0, 8.0), (-8.0, 0.0, 0.0))
    result = states(values, source, wider)
    assert result[:, 0, 0].tolist() == [UNKNOWN, PRESENT, PRESENT, UNKNOWN]

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellmap_core.errors import MetadataError
from cellmap_core.grid import EDGE_TOLERANCE_VOX, Grid

sizes = st.floats(0.5, 100)
triples = st.tuples(sizes, sizes, sizes)
shapes = st.tuples(*[st.integers(1, 500)] * 3)


def test_the_translation_is_a_centre_and_grids_meet_at_edges():
    raw = Grid(shape_vox=(4, 4, 4), voxel_nm=(8, 8, 8), translation_nm=(0, 0, 0))
    labels = Grid(shape_vox=(8, 8, 8), voxel_nm=(4, 4, 4), translation_nm=(-2, -2, -2))
    assert raw.box == labels.box


def test_a_real_crop_starts_at_whole_raw_voxels():
    """jrc_hela-2, crop1: the measured case of the format's facts."""
    raw = Grid(shape_vox=(9, 9, 9), voxel_nm=(5.24, 4, 4), translation_nm=(0, 0, 0))
    labels = Grid(
        shape_vox=(400, 400, 400), voxel_nm=(2.62, 2, 2), translation_nm=(3132.21, 899, 25863)
    )
    assert raw.edge_index(labels.box.low_nm) == pytest.approx((598, 225, 6466))


@given(shapes, triples, triples, st.tuples(*[st.floats(-1e4, 1e5)] * 3))
def test_resampling_keeps_the_low_edge_and_the_extent(shape, voxel, target, translation):
    grid = Grid(shape_vox=shape, voxel_nm=voxel, translation_nm=translation)
    new = grid.resampled(target)
    assert new.box.low_nm == pytest.approx(grid.box.low_nm, abs=1e-6)
    for old, size, step in zip(grid.box.size_nm, new.box.size_nm, target, strict=True):
        # A half counts up, also one that is short of a half by the tolerance of edges.
        most = step * (0.5 + EDGE_TOLERANCE_VOX)
        assert abs(size - old) <= most + 1e-6 or size == pytest.approx(step)


def test_alignment_is_told_at_edges():
    grid = Grid(shape_vox=(4, 4, 4), voxel_nm=(8, 8, 8), translation_nm=(0, 0, 0))
    shifted = grid.cut((1, 2, 3), (3, 4, 4))
    assert grid.aligned_with(shifted)
    half = grid.model_copy(update={"translation_nm": (4.0, 0.0, 0.0)})
    assert not grid.aligned_with(half)


@pytest.mark.parametrize(
    "change", [{"shape_vox": (0, 1, 1)}, {"voxel_nm": (8, 0, 8)}, {"voxel_nm": (8, -1, 8)}]
)
def test_a_grid_without_volume_is_refused(change):
    good = {"shape_vox": (1, 1, 1), "voxel_nm": (8, 8, 8), "translation_nm": (0, 0, 0)}
    with pytest.raises(MetadataError):
        Grid(**{**good, **change})


@pytest.mark.parametrize("translation", [112.0, 112.2, 1000.1, 52345.3])
def test_half_a_voxel_counts_up_wherever_the_crop_lies(translation):
    grid = Grid(shape_vox=(30, 30, 30), voxel_nm=(2.0,) * 3, translation_nm=(translation,) * 3)
    assert grid.resampled((8.0,) * 3).shape_vox == (8, 8, 8)

"""Where voxels lie by their affine: axis orders, oblique images, and grids that are one."""

import itertools

import numpy as np
import pytest

from cellmap_core.errors import GeometryError, NiftiError
from cellmap_core.image_geometry import ImageGeometry, as_affine, check_one_grid

SHAPE = (5, 6, 7)
ORIGIN = (500.0, 20.0, 30.0)
STRAIGHT = np.eye(3)
# Every way to lay three axes along those of the world.
TURNS = [
    np.eye(3)[list(axes)] * signs
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def geometry(turn=STRAIGHT, voxel_xyz=(4.0, 6.0, 8.0), origin=ORIGIN, shape=SHAPE):
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(turn) * voxel_xyz
    affine[:3, 3] = origin
    return ImageGeometry(shape_vox=shape, affine=as_affine(affine))


def about_z(degrees):
    angle = np.radians(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


@pytest.mark.parametrize("turn", TURNS)
def test_an_array_in_world_axes_has_each_voxel_where_the_affine_says(turn):
    of = geometry(turn)
    order = of.order()
    volume = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    world = order.reordered(volume)
    assert not order.oblique
    assert world.shape == order.grid.shape_vox
    for k, j, i in np.ndindex(SHAPE):
        point = (of.matrix @ [i, j, k, 1])[2::-1]
        index = (point - order.grid.translation_nm) / order.grid.voxel_nm
        assert world[tuple(index.round().astype(int))] == volume[k, j, i]
        assert np.allclose(index, index.round())
    part = (slice(1, 3), slice(0, 4), slice(2, 7))
    assert np.array_equal(world[order.place(part)], order.reordered(volume[part]))


def test_an_oblique_array_stays_as_it_is():
    order = geometry(about_z(20)).order()
    assert order.oblique
    assert order.axes == (0, 1, 2)
    assert order.grid.voxel_nm == pytest.approx((8.0, 6.0, 4.0))
    assert not any(order.grid.translation_nm)
    assert "oblique, direction cosines [[0.9397" in str(geometry(about_z(20)))
    # As near to the axes as rounding leaves them: no corner moves by a tenth of a voxel.
    assert not geometry(about_z(0.1)).order().oblique
    # Two axes that both lie nearest to x.
    assert geometry([[1, 0.9, 0], [0, 0.2, 1], [0, 0.4, -1]]).order().oblique


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (geometry(shape=(5, 6, 8)), "they differ in shape"),
        (geometry(origin=(500.5, 20, 30)), "up to 0.125 voxels apart"),
        (geometry(voxel_xyz=(4.1, 6, 8)), "voxels apart"),
        (geometry(about_z(2)), "voxels apart"),
        # The first voxel and the directions agree; the last corner is 0.14 voxels off.
        (geometry(voxel_xyz=(4.08, 6, 8)), "up to 0.13 voxels apart"),
        (geometry(np.diag([-1, 1, 1]), origin=(524, 20, 30)), "the same box, with axes to RAS and"),
        (geometry(np.eye(3)[[1, 0, 2]], (6, 4, 8), shape=(5, 7, 6)), "they fill the same box"),
    ],
)  # fmt: skip
def test_grids_that_are_not_one_are_refused_with_both(label, message):
    with pytest.raises(GeometryError, match=message) as refused:
        check_one_grid(geometry(), label, "a.nii", "b.nii")
    assert f"image a.nii: {geometry()}" in str(refused.value)
    assert f"label b.nii: {label}" in str(refused.value)


@pytest.mark.parametrize("turn", [np.eye(3), np.diag([-1, -1, 1]), about_z(20)])
def test_grids_that_differ_by_rounding_are_one(turn):
    one = geometry(turn)
    moved = one.matrix
    moved[:2, 3] += 0.3, 0.1
    check_one_grid(one, one.model_copy(update={"affine": as_affine(moved)}), "a", "b")
    in_um = np.diag([1e-3] * 3 + [1]) @ one.matrix
    other = ImageGeometry(shape_vox=SHAPE, affine=as_affine(in_um), unit_nm=1000.0)
    assert other.voxel_nm == pytest.approx((8.0, 6.0, 4.0))
    check_one_grid(one, other, "a", "b")


@pytest.mark.parametrize("turn", [np.zeros((3, 3)), np.full((3, 3), np.nan), np.ones((3, 3))])
def test_an_affine_without_volume_is_refused(turn):
    with pytest.raises(NiftiError, match="invertible"):
        geometry(turn)

"""The sampler keeps the right voxels, however the slabs come, and little else."""

import tracemalloc

import numpy as np
import pytest

from cellmap_core.errors import CellmapError
from cellmap_core.sample import BLOCK_VOX, PLANES_PER_AXIS, WINDOW_VOX, Sampler


def fed(image, codes=None, thickness=7):
    sampler = Sampler(image.shape)
    for z in range(0, len(image), thickness):
        sampler.image(z, image[z : z + thickness])
    if codes is not None:
        for z in range(0, len(codes), thickness):
            sampler.codes(z, codes[z : z + thickness])
    return sampler.planes()


@pytest.mark.parametrize("thickness", [1, 7, 100])
def test_planes_are_cuts_of_the_volume(thickness):
    random = np.random.default_rng(0)
    image = random.integers(0, 255, (20, 30, WINDOW_VOX + 9), dtype=np.uint8)
    codes = random.integers(0, 999, image.shape, dtype=np.uint16)
    planes = fed(image, codes, thickness)
    assert [sum(p.axis == a for p in planes) for a in range(3)] == [PLANES_PER_AXIS] * 3
    for plane in planes:
        where = tuple(
            slice(start, start + size)
            for start, size in zip(plane.start_vox, plane.image.shape, strict=True)
        )
        assert np.array_equal(plane.image, image.take(plane.index, plane.axis)[where])
        assert np.array_equal(plane.codes, codes.take(plane.index, plane.axis)[where])
        assert (plane.image.dtype, plane.codes.dtype) == (np.uint8, np.uint16)
    assert {p.start_vox for p in planes if p.axis == 0} == {(0, 4)}


def test_planes_are_spread_and_hold_the_middle():
    planes = fed(np.zeros((80, 96, 16), np.uint8))
    assert [p.index for p in planes if p.axis == 0] == [10, 20, 30, 40, 50, 60, 70]
    assert all(p.codes is None for p in planes)


def test_a_single_section_is_seen_from_every_side():
    planes = fed(np.zeros((1, 9, 9), np.uint8))
    assert [p.index for p in planes if p.axis == 0] == [0]
    assert {p.image.shape for p in planes if p.axis == 1} == {(1, 9)}


def test_memory_is_that_of_what_is_kept():
    shape = (400, 600, 600)
    slab = np.ones((40, *shape[1:]), np.uint8)
    codes = slab.astype(np.uint16)
    tracemalloc.start()
    sampler = Sampler(shape)
    for z in range(0, shape[0], len(slab)):
        sampler.image(z, slab)
    for z in range(0, shape[0], len(slab)):
        sampler.codes(z, codes)
    planes = sampler.planes()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    bound = (3 * PLANES_PER_AXIS * WINDOW_VOX**2 + BLOCK_VOX**3) * (1 + 2)
    assert sum(p.image.nbytes + p.codes.nbytes for p in planes) <= bound
    assert peak < bound + 1e6
    assert all(p.image.base is None and (p.image == 1).all() for p in planes)


def test_slabs_out_of_order_or_missing_are_refused():
    sampler = Sampler((10, 4, 4))
    slab = np.zeros((5, 4, 4), np.uint8)
    with pytest.raises(CellmapError, match="sections from 0 on"):
        sampler.image(5, slab)
    sampler.image(0, slab)
    with pytest.raises(CellmapError, match="image: 5 sections seen; expected all 10"):
        sampler.planes()
    with pytest.raises(CellmapError, match="of a volume"):
        sampler.image(5, slab[:, :3])
    sampler.image(5, slab)
    with pytest.raises(CellmapError, match="sections from 10 on"):
        sampler.image(10, slab)
    sampler.codes(0, slab)
    with pytest.raises(CellmapError, match="labels: 5 sections seen"):
        sampler.planes()

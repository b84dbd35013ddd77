"""Blocks cover a volume once, and predict what the whole would."""

import numpy as np
import pytest
import torch

from cellmap_core.inference.blocks import blocks, plan_blocks, predict_block
from cellmap_core.training.config_files import read_bundle_config
from tests.tiny_project import make_bundles


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return read_bundle_config(make_bundles(tmp_path_factory.mktemp("p"))[0].folder)


@pytest.mark.parametrize("shape", [(10, 20, 30), (7, 8, 64), (1, 1, 1)])
def test_cores_cover_each_voxel_once(shape):
    volume = np.arange(np.prod(shape)).reshape(shape)
    seen = np.zeros(shape, dtype=int)
    for block in blocks(shape, (8, 8, 16), (3, 0, 5)):
        seen[block.core] += 1
        assert np.array_equal(volume[block.outer][block.inner], volume[block.core])
    assert (seen == 1).all()


def test_plan_keeps_to_its_budget(config):
    budget = 64 << 20
    plan = plan_blocks((500, 500, 500), [config], budget)
    assert len(plan) > 1
    for block in plan:
        voxels = np.prod([s.stop - s.start for s in block.outer])
        assert voxels * 4 * (2 * 2 + 2) <= budget


class Local(torch.nn.Module):
    """A network that looks at a voxel's close neighbours only."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv3d(1, 2, 1)

    def forward(self, x):
        return self.layer(x)


def test_blockwise_is_the_whole_for_a_local_network(config):
    image = np.random.default_rng(0).integers(0, 255, (70, 80, 90), dtype=np.uint8)
    whole = next(iter(blocks(image.shape, image.shape, (0, 0, 0))))
    network = Local().eval()
    expected = predict_block(network, image, whole, config)
    assert 0 < expected.min() < expected.max() < 1
    out = np.full_like(expected, np.nan)
    for block in blocks(image.shape, (32, 32, 48), (8, 8, 8)):
        z, y, x = block.core
        out[:, z, y, x] = predict_block(network, image, block, config)
    np.testing.assert_allclose(out, expected, atol=1e-4)


def test_volume_smaller_than_the_window_is_predicted(config):
    image = np.zeros((5, 40, 9), dtype=np.uint8)
    (block,) = plan_blocks(image.shape, [config])
    assert predict_block(Local().eval(), image, block, config).shape == (2, 5, 40, 9)

"""Patches: where they are drawn, and what they hold."""

from dataclasses import replace

import numpy as np
import pytest

from cellmap_core.datalist import read_datalist
from cellmap_core.errors import NiftiError, TrainingError
from cellmap_core.nifti import read_volume, write_volume
from cellmap_core.training.augment import Orientation, draw_orientation, planes
from cellmap_core.training.config import Normalisation, make_config
from cellmap_core.training.patches import PatchSampler
from cellmap_core.training.presence import KEPT_VOXELS, find_presence
from cellmap_core.training.volumes import Case, open_volume
from tests.tiny_project import GRID, TABLE, make_crop, make_project

IDENTITY = Normalisation(clip_low=-1e9, clip_high=1e9, mean=0, stdev=1)


def config(**changes):
    values = {
        "algo": "segresnet", "fold": 0, "datalist": "d", "ckpt_path": "m",
        "classes": ("mito", "er"), "voxel_nm": (8, 8, 8), "patch_size_vox": (16, 16, 16),
        "blocks_down": (1, 1, 1), "dsdepth": 2, "init_filters": 8, "batch_size": 2,
        "num_epochs": 2, "num_steps_per_epoch": 4, "learning_rate": 1e-2,
        "normalisation": IDENTITY, "augment": False,
    }  # fmt: skip
    return make_config(values | changes)


def case_of(label, annotated=(True, True), image=None):
    image = label.astype(np.float32) if image is None else image
    return Case("a/b", image, label, np.array(annotated))


def test_batch_depends_on_seed_and_step_alone():
    cases = [case_of(make_crop(n)[1]) for n in range(2)]
    first, again = (PatchSampler(cases, TABLE, config(augment=True)) for _ in range(2))
    first.batch(0)
    assert np.array_equal(first.batch(7).image, again.batch(7).image)
    assert not np.array_equal(first.batch(7).image, first.batch(8).image)


def test_image_and_label_stay_together():
    sampler = PatchSampler([case_of(make_crop(0)[1])], TABLE, config(augment=True))
    for step in range(10):
        batch = sampler.batch(step)
        assert np.array_equal(batch.image[:, 0], batch.label)


def test_rare_class_is_met_in_its_share_of_patches():
    label = np.zeros((64, 64, 64), dtype=np.uint8)
    label[10:14, 10:14, 10:14] = 1
    label[60, 3, 50] = 2
    sampler = PatchSampler([case_of(label)], TABLE, config(batch_size=60))
    met = (sampler.batch(0).label == 2).any(axis=(1, 2, 3)).mean()
    assert 0.2 < met < 0.5


def test_class_that_is_present_but_unannotated_is_not_learnable():
    sampler = PatchSampler([case_of(make_crop(0)[1], (True, False))], TABLE, config())
    assert sampler.learnable == (0,)
    assert not sampler.batch(0).annotated[:, 1].any()


def test_nothing_to_learn_is_an_error():
    empty = case_of(np.zeros((20, 20, 20), dtype=np.uint8))
    with pytest.raises(TrainingError, match="no class is annotated and present"):
        PatchSampler([empty], TABLE, config())


def test_patch_beyond_its_case_is_padded_as_unknown():
    label = np.ones((10, 40, 12), dtype=np.uint8)
    batch = PatchSampler([case_of(label)], TABLE, config()).batch(3)
    padding = batch.label == len(TABLE.combinations)
    assert (~padding).sum(axis=(1, 2, 3)).tolist() == [10 * 16 * 12] * 2
    assert (batch.image[:, 0][padding] == 0).all()


def test_presence_is_counted_exactly_and_sampled_fairly(monkeypatch):
    monkeypatch.setattr("cellmap_core.training.presence._SLAB_VOXELS", 4096)
    label = np.zeros((64, 32, 32), dtype=np.uint8)
    label[:, :16] = 1
    label[5, 20, 3] = 2
    found = find_presence(label, 5, 0, "a/b")
    assert found.counts.tolist() == [label.size // 2 - 1, label.size // 2, 1, 0, 0]
    assert len(found.voxels[1]) == KEPT_VOXELS
    assert found.voxels[2].tolist() == [np.ravel_multi_index((5, 20, 3), label.shape)]
    # A fair sample of a half full volume: its mean depth is that of the volume.
    depth = np.unravel_index(found.voxels[1], label.shape)[0].mean()
    assert abs(depth - 31.5) < 3
    assert found.draw(np.random.default_rng(0), 1, TABLE.states()) == (5, 20, 3)


def test_label_that_the_table_does_not_know_is_named():
    with pytest.raises(NiftiError, match="a/b: label id 9; expected ids 0 to 4"):
        find_presence(np.full((4, 4, 4), 9, dtype=np.uint8), 5, 0, "a/b")


def test_quarter_turns_stay_between_equal_voxels():
    assert planes((16, 16, 16), (8, 4, 4)) == ((1, 2),)
    assert planes((16, 16, 16), (8, 8, 8)) == ((0, 1), (0, 2), (1, 2))
    assert planes((8, 16, 16), (8, 8, 8)) == ((1, 2),)
    rng = np.random.default_rng(0)
    assert {draw_orientation(rng, ((1, 2),)).plane for _ in range(20)} == {(1, 2)}
    patch = np.arange(8).reshape(2, 2, 2)
    turned = Orientation((1, 2), 1, (0,)).apply(patch)
    assert turned.tolist() == [[[5, 7], [4, 6]], [[1, 3], [0, 2]]]


def test_compressed_volume_is_decompressed_once_and_mapped(tmp_path):
    path = tmp_path / "a.nii.gz"
    image, _ = make_crop(0)
    write_volume(path, GRID, image)
    volume = open_volume(path, tmp_path / "cache")
    assert isinstance(volume, np.memmap)
    assert np.array_equal(volume, image)
    copy = next((tmp_path / "cache").iterdir())
    before = copy.stat().st_mtime_ns
    open_volume(path, tmp_path / "cache")
    assert copy.stat().st_mtime_ns == before
    write_volume(path, GRID, image + 1)
    assert np.array_equal(open_volume(path, tmp_path / "cache"), image + 1)


def test_image_and_label_of_different_shape_are_refused(tmp_path):
    from cellmap_core.training.volumes import open_case

    datalist = read_datalist(make_project(tmp_path))
    entry = datalist.training[1]
    label = read_volume(tmp_path / entry.label)[:-1].copy()
    shape = (GRID.shape_vox[0] - 1, *GRID.shape_vox[1:])
    (tmp_path / entry.label).unlink()
    write_volume(tmp_path / entry.label, GRID.model_copy(update={"shape_vox": shape}), label)
    with pytest.raises(NiftiError, match=r"jrc_tiny/crop1: label of shape \(35, 40, 44\)"):
        open_case(datalist, entry, tmp_path)


def test_normalisation_clips_and_scales():
    scale = Normalisation(clip_low=10, clip_high=20, mean=15, stdev=5)
    assert scale.apply(np.array([0, 15, 255], dtype=np.uint8)).tolist() == [-1, 0, 1]
    case = replace(case_of(make_crop(0)[1]), image=np.full(GRID.shape_vox, 255, dtype=np.uint8))
    batch = PatchSampler([case], TABLE, config(normalisation=scale)).batch(0)
    assert (batch.image == 1).all()

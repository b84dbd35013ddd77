"""Patches: where they are drawn, and what they hold."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from cellmap_core.datalist import read_datalist
from cellmap_core.errors import GeometryError, NiftiError, TrainingError
from cellmap_core.label_table import LabelTable
from cellmap_core.nifti import read_volume, write_volume
from cellmap_core.training.augment import (
    Change,
    Orientation,
    alter,
    draw_change,
    draw_orientation,
    planes,
    section_axes,
)
from cellmap_core.training.config import Normalisation
from cellmap_core.training.config_files import make_config
from cellmap_core.training.mapped_volume import MappedVolume, Maps
from cellmap_core.training.patches import SEARCH_STREAM, PatchSampler, images_of
from cellmap_core.training.presence import KEPT_VOXELS, find_presence, presence_of
from cellmap_core.training.volumes import Case, check_ids, open_case, open_volume
from tests.conftest import ROOT
from tests.tiny_project import GRID, TABLE, make_crop, make_project

IDENTITY = Normalisation(clip_low=-1e9, clip_high=1e9, mean=0, stdev=1)


def config(**changes):
    values = {
        "algo": "segresnet", "fold": 0, "datalist": "d", "ckpt_path": "m",
        "classes": ("mito", "er"), "voxel_nm": (8, 8, 8), "patch_size_vox": (16, 16, 16),
        "blocks_down": (1, 1, 1), "dsdepth": 2, "init_filters": 8, "batch_size": 2,
        "num_epochs": 2, "num_steps_per_epoch": 4, "learning_rate": 1e-2,
        "normalisation": IDENTITY, "augment": False, "micro_batch": 1, "validate_every": 1,
        "warmup_steps": 0, "ema_decay": 0.9, "early_stop_epochs": 0, "activation": "sigmoid",
        "sw_batch_size": 1, "class_weighting": "equal", "class_weights": (1, 1), "cache": "mapped",
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


def test_a_share_of_a_batch_has_the_same_patches_and_another_stream_others():
    sampler = PatchSampler([case_of(make_crop(0)[1])], TABLE, config(augment=True, batch_size=4))
    whole, share = sampler.batch(3), sampler.batch(3, range(1, 4, 2))
    assert np.array_equal(whole.image[1::2], share.image)
    assert whole.changes[1::2] == share.changes
    assert whole.places[1::2] == share.places
    assert not np.array_equal(sampler.batch(3, stream=SEARCH_STREAM).image, whole.image)


def test_image_and_label_stay_together():
    sampler = PatchSampler([case_of(make_crop(0)[1])], TABLE, config(augment=True))
    for step in range(10):
        batch = sampler.batch(step)
        assert np.array_equal(batch.image, batch.label)


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
    assert (batch.image[padding] == 0).all()


def test_presence_is_counted_exactly_and_sampled_fairly(monkeypatch):
    monkeypatch.setattr("cellmap_core.training.presence._SLAB_VOXELS", 4096)
    label = np.zeros((64, 32, 32), dtype=np.uint8)
    label[:, :16] = 1
    label[5, 20, 3] = 2
    found = find_presence(label, 5, "a/b")
    assert found.counts.tolist() == [label.size // 2 - 1, label.size // 2, 1, 0, 0]
    assert len(found.voxels[1]) == KEPT_VOXELS
    assert found.voxels[2].tolist() == [np.ravel_multi_index((5, 20, 3), label.shape)]
    # A fair sample of a half full volume: its mean depth is that of the volume.
    depth = np.unravel_index(found.voxels[1], label.shape)[0].mean()
    assert abs(depth - 31.5) < 3
    assert found.draw(np.random.default_rng(0), 1, TABLE.states()) == (5, 20, 3)


def test_label_that_the_table_does_not_know_is_named():
    with pytest.raises(NiftiError, match="a/b: label id 9; expected ids 0 to 4"):
        find_presence(np.full((4, 4, 4), 9, dtype=np.uint8), 5, "a/b")


@pytest.mark.parametrize("value", [0.5, 1.9, np.nan, np.inf])
def test_labels_that_are_not_whole_numbers_are_refused(value):
    assert check_ids(np.array([0, 1, 2.0002], np.float32), 3, "a case").tolist() == [0, 1, 2]
    with pytest.raises(NiftiError, match=rf"a case has the label id {value:g}"):
        check_ids(np.array([0, 1, value], np.float32), 3, "a case")


def test_a_label_that_the_datalist_gives_no_meaning_is_named_with_its_file(tmp_path):
    datalist = read_datalist(make_project(tmp_path))
    rows = [row | ({"undefined": True} if row["id"] == 2 else {}) for row in TABLE.to_json()]
    table = LabelTable.from_json(datalist.classes, rows)
    other = datalist.model_copy(update={"table": table})
    case = open_case(other, other.training[0], tmp_path / "cache")
    assert (case.label == 2).any()
    for look in (
        lambda: presence_of(case, len(rows)),
        lambda: case.labels_at((slice(None),) * 3, len(rows)),
    ):
        with pytest.raises(NiftiError, match=f"{case.label_file}.: label id 2; expected ids that"):
            look()


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
    volume, _ = open_volume(path, tmp_path / "cache")
    assert isinstance(volume, MappedVolume)
    assert np.array_equal(volume == 128, image == 128)
    assert np.array_equal(np.minimum(volume, 100) + 1, np.minimum(image, 100) + 1)
    assert np.array_equal(volume, image)
    copy = next((tmp_path / "cache").iterdir())
    before = copy.stat().st_mtime_ns
    open_volume(path, tmp_path / "cache")
    assert copy.stat().st_mtime_ns == before
    write_volume(path, GRID, image + 1)
    assert np.array_equal(open_volume(path, tmp_path / "cache")[0], image + 1)


def test_image_and_label_that_are_not_one_grid_are_refused(tmp_path):
    """Training and ensemble open their cases here; the statistics refuse the same."""
    datalist = read_datalist(make_project(tmp_path))
    entry = datalist.training[1]
    path, label = tmp_path / entry.label, np.array(read_volume(tmp_path / entry.label))
    write_volume(path, GRID.cut((0, 0, 0), (35, 40, 44)), label[:-1])
    with pytest.raises(GeometryError, match=r"44 × 40 × 36 voxels.*crop1.nii: 44 × 40 × 35 voxels"):
        open_case(datalist, entry, tmp_path)
    aside = GRID.model_copy(update={"translation_nm": (104.0, 52.0, 27.0)})
    write_volume(path, aside, label)
    with pytest.raises(GeometryError, match=r"0.125 voxels apart.*x, y, z = 27, 52, 104 nm"):
        open_case(datalist, entry, tmp_path)
    nearly = GRID.model_copy(update={"translation_nm": (104.0, 52.0, 26.7)})
    write_volume(path, nearly, label)
    assert np.array_equal(open_case(datalist, entry, tmp_path).label, label)


FEW_FILES = """
import os, resource, sys
from dataclasses import replace
from pathlib import Path
from cellmap_core.datalist import read_datalist
from cellmap_core.training.volumes import open_cases
count = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (count + 20, count + 40))
datalist = read_datalist(Path(sys.argv[1]))
cases = open_cases(datalist, datalist.training * 20, Path(sys.argv[2]))
for turn in range(2):
    sums = [(int(c.image[3:5].sum()), int(c.label[3:5].sum())) for c in cases]
print(len(cases), len(set(sums)), resource.getrlimit(resource.RLIMIT_NOFILE)[0] - count)
"""


def test_cases_need_no_more_files_than_a_process_may_open(tmp_path):
    datalist = make_project(tmp_path / "data")
    script = [sys.executable, "-c", FEW_FILES, datalist, tmp_path / "cache"]
    outcome = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.stdout == "80 4 40\n", outcome.stderr


def test_a_volume_that_is_replaced_while_it_is_in_use_is_not_mixed_with_the_new_one(tmp_path):
    path = tmp_path / "a.nii"
    image, _ = make_crop(0)
    write_volume(path, GRID, image)
    first, second = (open_volume(path, tmp_path)[0] for _ in range(2))
    maps = Maps(1)
    assert np.array_equal(maps.of(first), image)
    write_volume(path, GRID, image + 1)
    assert np.array_equal(maps.of(first), image)
    with pytest.raises(NiftiError, match="was changed while it was in use"):
        maps.of(second)
    with pytest.raises(NiftiError, match="was changed while it was in use"):
        maps.of(first)  # Unmapped for the second one.


def test_normalisation_clips_and_scales():
    scale = Normalisation(clip_low=10, clip_high=20, mean=15, stdev=5)
    assert scale.apply(np.array([0, 15, 255], dtype=np.uint8)).tolist() == [-1, 0, 1]
    case = replace(case_of(make_crop(0)[1]), image=np.full(GRID.shape_vox, 255, dtype=np.uint8))
    batch = PatchSampler([case], TABLE, config(normalisation=scale)).batch(0)
    assert batch.image.dtype == np.uint8
    assert (images_of(batch, slice(0, 1), scale, torch.device("cpu")) == 1).all()


def test_what_the_labels_hold_is_looked_up_once(tmp_path, monkeypatch):
    datalist = read_datalist(make_project(tmp_path))
    first = open_case(datalist, datalist.training[0], tmp_path / "cache")
    found = presence_of(first, 5)
    monkeypatch.setattr("cellmap_core.training.presence.find_presence", None)
    again = presence_of(open_case(datalist, datalist.training[0], tmp_path / "cache"), 5)
    assert np.array_equal(again.counts, found.counts)
    assert {i: v.tolist() for i, v in again.voxels.items()} == {
        i: v.tolist() for i, v in found.voxels.items()
    }
    monkeypatch.undo()
    first.presence_file.write_bytes(first.presence_file.read_bytes()[:100])
    assert np.array_equal(presence_of(first, 5).counts, found.counts)
    # A label table of another length has other states: what was kept is not used.
    assert len(presence_of(first, 6).counts) == 6


def test_volumes_are_read_into_memory_only_where_asked_for(tmp_path):
    datalist = read_datalist(make_project(tmp_path))
    mapped = open_case(datalist, datalist.training[0], tmp_path / "cache")
    read = open_case(datalist, datalist.training[0], tmp_path / "cache", in_memory=True)
    assert isinstance(mapped.image, MappedVolume)
    assert type(read.image) is type(read.label) is np.ndarray
    assert np.array_equal(mapped.label, read.label)


def test_sections_are_lost_along_the_coarsest_axes():
    assert section_axes((8, 8, 8)) == (0, 1, 2)
    assert section_axes((20, 4, 4)) == (0,)
    rng = np.random.default_rng(0)
    drawn = [draw_change(rng, (16, 16, 16), (0,)) for _ in range(2000)]
    lost = [c.lost for c in drawn if c.lost]
    assert 50 < len(lost) < 170
    assert all(axis == 0 and 0 <= first < end <= 16 for axis, first, end in lost)
    assert all(0.8 <= c.contrast <= 1.25 for c in drawn)


def test_a_change_of_intensities_does_what_it_says():
    patch = torch.from_numpy(np.random.default_rng(0).normal(size=(16, 16, 16)).astype("float32"))
    still = Change(1.0, 0.0, 0.0, 0.0, 7, None)
    assert torch.equal(alter(patch.clone(), still, -3.0), patch)
    lost = alter(patch.clone(), replace(still, lost=(1, 4, 6)), -3.0)
    assert (lost[:, 4:6] == -3).all()
    assert torch.equal(lost[:, 6:], patch[:, 6:])
    noisy = [alter(patch.clone(), replace(still, noise=0.2), -3.0) for _ in range(2)]
    assert torch.equal(*noisy)
    assert 0.15 < float((noisy[0] - patch).std()) < 0.25
    brighter = alter(patch.clone(), replace(still, contrast=2.0, brightness=1.0), -3.0)
    assert torch.allclose(brighter, 2 * patch + 1)


def test_blur_is_a_gaussian():
    patch = np.random.default_rng(0).normal(size=(20, 18, 16)).astype("float32")
    blurred = alter(torch.from_numpy(patch.copy()), Change(1, 0, 1.0, 0, 0, None), 0).numpy()
    expected = gaussian_filter(patch, 1.0, mode="nearest", radius=3)
    assert np.allclose(blurred, expected, atol=1e-5)

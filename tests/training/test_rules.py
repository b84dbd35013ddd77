"""From datastats to values, with reasons."""

import shutil

import pytest
import yaml

from cellmap_core.datalist import read_datalist
from cellmap_core.errors import BundleError, OptionError, StatisticsError
from cellmap_core.training.algorithms import algorithm
from cellmap_core.training.config_files import read_config, write_config
from cellmap_core.training.facts import Facts, read_facts
from cellmap_core.training.rules import _patch, derive
from tests.tiny_project import TINY, make_datastats, make_project


@pytest.fixture
def project(tmp_path):
    datalist = read_datalist(make_project(tmp_path))
    identity = {
        "algo": "segresnet", "fold": 0, "num_epochs": 2,
        "datalist": tmp_path / "datalist.json", "ckpt_path": tmp_path / "model",
    }  # fmt: skip

    def run(overrides=None, **intensity):
        stats = make_datastats(tmp_path / "datastats.yaml", **intensity)
        return derive(stats, datalist, identity, overrides or {})

    return run


def test_every_derived_value_has_a_reason(project):
    config = project()
    derived = {"patch_size_vox", "blocks_down", "batch_size", "normalisation", "learning_rate"}
    assert derived <= set(config.rules)
    assert all(rule.reason for rule in config.rules.values())
    assert config.rules["patch_size_vox"].inputs["shape_median_vox"] == (36.0, 40.0, 44.0)
    assert config.normalisation.clip_high == 210
    assert all(n % 2 ** (len(config.blocks_down) - 1) == 0 for n in config.patch_size_vox)


def test_axes_are_turned_to_zyx(tmp_path):
    facts = read_facts(make_datastats(tmp_path / "s.yaml"), 3)
    assert facts.shape_vox == (36, 40, 44)


def test_patch_has_about_the_same_length_in_nm(project):
    facts = Facts(shape_vox=(400, 400, 400), voxel_nm=(8, 4, 4), intensity={}, training_cases=1)
    values = {"init_filters": 8, "classes": ("mito",)}
    assert _patch(algorithm("segresnet"), facts, values)[0] == (48, 96, 96)


def test_overrides_win_and_feed_later_rules(project):
    config = project({"patch_size_vox": "[32, 32, 32]", "learning_rate": "2e-3"})
    assert config.patch_size_vox == (32, 32, 32)
    assert config.learning_rate == 2e-3
    assert config.rules["learning_rate"].reason == "set by the user"
    assert len(config.blocks_down) == 4


def test_unknown_override_names_the_valid_ones(project):
    with pytest.raises(OptionError, match=r"unknown override patchsize; .*patch_size_vox") as error:
        project({"patchsize": 3})
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"batch_size": 0}, "batch_size = 0"),
        ({"patch_size_vox": [30, 32, 32], "blocks_down": [1, 1, 1]}, "divisible by 4"),
        ({"learning_rate": "fast"}, "learning_rate = 'fast'"),
        ({"learning_rate": "inf"}, "learning_rate = 'inf'"),
        ({"seed": -1}, "seed = -1"),
        ({"micro_batch": 3}, "micro_batch 3; expected a divisor of batch_size"),
        ({"patch_size_vox": [33, 32, 32]}, "divisible by 4"),
        ({"patch_size_vox": [16, 16, 16], "blocks_down": [1, 1, 1, 1, 1]}, "one voxel is left"),
        ({"voxel_nm": [0, 8, 8]}, "voxel_nm"),
        (
            {"normalisation": {"clip_low": 9, "clip_high": 1, "mean": 0, "stdev": 1}},
            "clip_low 9.0 and clip_high 1.0; expected a range",
        ),
    ],
)
def test_bad_value_is_named(project, override, message):
    with pytest.raises(OptionError, match=message):
        project(override)


def test_flat_images_do_not_divide_by_zero(project):
    config = project(stdev=0.0, percentile_00_5=5.0, percentile_99_5=5.0)
    assert config.normalisation.stdev == 1
    assert (config.normalisation.clip_low, config.normalisation.clip_high) == (0, 255)


def test_unusable_datastats_are_refused(tmp_path, project):
    with pytest.raises(StatisticsError, match="make it with flows/analyze"):
        read_facts(tmp_path / "nothing.yaml", 1)
    (tmp_path / "half.yaml").write_text("stats_summary: {image_stats: {}}")
    with pytest.raises(StatisticsError, match="stats_summary lacks 'intensity'"):
        read_facts(tmp_path / "half.yaml", 1)


def test_config_survives_its_file_and_its_digest_ignores_places(tmp_path, project):
    config = project(TINY)
    path = tmp_path / "configs" / "a b.yaml"
    write_config(path, config)
    again = read_config([path])
    assert again.digest == config.digest
    assert again.model_dump(mode="json") == config.model_dump(mode="json")
    moved = config.model_copy(update={"datalist": tmp_path / "elsewhere", "rules": {}})
    assert moved.digest == config.digest
    assert read_config([path], {"seed": "1"}).digest != config.digest
    # A bundle that was moved with its data reads what lies beside it now.
    (tmp_path / "moved").mkdir()
    shutil.copytree(tmp_path / "configs", tmp_path / "moved" / "configs")
    again = read_config([tmp_path / "moved" / "configs" / "a b.yaml"])
    assert again.datalist == tmp_path / "moved" / "datalist.json"
    assert again.ckpt_path == tmp_path / "moved" / "model"


def test_config_with_a_strange_key_is_refused(tmp_path, project):
    write_config(tmp_path / "a.yaml", project(TINY))
    (tmp_path / "b.yaml").write_text("optimiser: sgd")
    with pytest.raises(OptionError, match="optimiser"):
        read_config([tmp_path / "a.yaml", tmp_path / "b.yaml"])
    with pytest.raises(BundleError, match="cannot be read"):
        read_config([tmp_path / "missing.yaml"])


def test_memory_that_does_not_hold_a_patch_is_warned_of(project, caplog):
    project({"patch_size_vox": [4096, 4096, 4096]})
    assert "one patch of 4096 × 4096 × 4096 voxels takes some" in caplog.text


def test_sizes_of_zero_are_refused(tmp_path):
    path = make_datastats(tmp_path / "s.yaml")
    path.write_text(path.read_text().replace("- 8.0", "- 0.0"))
    with pytest.raises(StatisticsError, match="expected sizes above zero"):
        read_facts(path, 1)


def test_rare_classes_weigh_more_where_asked_for(tmp_path):
    rows = [
        {"name": name, "voxels": {"present": present, "absent": 1000 - present}}
        for name, present in (("mito", 400), ("er", 100))
    ]
    path = make_datastats(tmp_path / "s.yaml")
    document = yaml.safe_load(path.read_text())
    document["stats_summary"]["class_stats"] = rows
    path.write_text(yaml.safe_dump(document))
    datalist = read_datalist(make_project(tmp_path))
    identity = {
        "algo": "segresnet", "fold": 0, "num_epochs": 2,
        "datalist": tmp_path / "datalist.json", "ckpt_path": tmp_path / "model",
    }  # fmt: skip
    weights = [
        derive(path, datalist, identity, {"class_weighting": how}).class_weights
        for how in ("equal", "rare")
    ]
    assert weights == [(1.0, 1.0), (0.625, 2.5)]

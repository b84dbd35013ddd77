"""From datastats to values, with reasons."""

import pytest

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
    write_config(tmp_path / "a b.yaml", config)
    again = read_config([tmp_path / "a b.yaml"])
    assert again.digest == config.digest
    assert again.model_dump(mode="json") == config.model_dump(mode="json")
    moved = config.model_copy(update={"datalist": tmp_path / "elsewhere", "rules": {}})
    assert moved.digest == config.digest
    assert read_config([tmp_path / "a b.yaml"], {"seed": "1"}).digest != config.digest


def test_config_with_a_strange_key_is_refused(tmp_path, project):
    write_config(tmp_path / "a.yaml", project(TINY))
    (tmp_path / "b.yaml").write_text("optimiser: sgd")
    with pytest.raises(OptionError, match="optimiser"):
        read_config([tmp_path / "a.yaml", tmp_path / "b.yaml"])
    with pytest.raises(BundleError, match="cannot be read"):
        read_config([tmp_path / "missing.yaml"])

"""Bundles in the hands of MONAI's runners: other values, other places, models without a score."""

import dataclasses
import json
import shutil

import pytest
import torch
import yaml
from monai.auto3dseg.utils import algo_from_json

from cellmap_core.bundles.generate import generate
from cellmap_core.bundles.retraining import set_old_model_aside, with_params
from cellmap_core.bundles.source import read_source
from cellmap_core.datalist import read_datalist
from cellmap_core.errors import (
    BundleError,
    BusyError,
    CheckpointError,
    DatalistError,
    OptionError,
    TrainingError,
)
from cellmap_core.inference.ensemble import ensemble
from cellmap_core.inference.inferer import InferClass
from cellmap_core.models import BundleRef
from cellmap_core.options import GenerateOptions
from cellmap_core.provenance import held
from cellmap_core.training.algorithms import ALGORITHMS
from cellmap_core.training.checkpoint import Model, read_model, save
from cellmap_core.training.config_files import (
    CONFIG_NAME,
    read_bundle_config,
    read_config,
    write_config,
)
from cellmap_core.training.history import write_progress
from cellmap_core.training.launch import command
from cellmap_core.training.result import best_checkpoint
from cellmap_core.training.search import search_config
from tests.tiny_project import TINY, make_bundles, make_datastats, make_project, pretend_training


def algo_of(bundle):
    return algo_from_json(str(bundle.folder / "algo_object.json"))[0]


@pytest.fixture
def bundles(tmp_path):
    return make_bundles(tmp_path)


@pytest.fixture
def make(tmp_path):
    """Bundles of one algorithm in a work folder of their own, without the tiny values."""
    datalist = make_project(tmp_path / "nifti")
    stats = make_datastats(tmp_path / "datastats.yaml")

    def run(name, algo, **overrides):
        options = GenerateOptions(algos=[algo], num_fold=2, overrides=overrides)
        folder = generate(datalist, stats, tmp_path / name, options, [0]).bundles[0].folder
        return read_bundle_config(folder)

    run.cases, run.stats = read_datalist(datalist), stats
    return run


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize(
    "params",
    [{"num_epochs": 2}, {"batch_size": 1}, {"seed": 3}, {"patch_size_vox": (64, 32, 32)}],
    ids=lambda params: next(iter(params)),
)
def test_training_parameters_do_what_overrides_do(make, algo, params):
    before = {"weight_decay": 1e-4}
    asked = make("asked", algo, **before, **params)
    written = make("work", algo, **before)
    trained = with_params(written, make.stats, make.cases, params)
    assert written.digest != asked.digest
    assert trained.digest == asked.digest
    # The training's process comes to the same, from its command line.
    path = make("work", algo, **before).ckpt_path.parent / CONFIG_NAME
    said = [a for a in command(path.parents[1], trained.training_params) if a.startswith("--")]
    values = dict(a[2:].split("=", 1) for a in said if not a.startswith("--config_file"))
    assert read_config([path], values).digest == asked.digest


def test_values_edited_in_the_file_stay(make):
    path = make("work", "segresnet").ckpt_path.parent / CONFIG_NAME
    text = path.read_text()
    assert "warmup_steps: " in text
    edited = yaml.safe_load(text) | {"warmup_steps": 7, "overlap": 0.5}
    path.write_text(yaml.safe_dump(edited))
    trained = with_params(read_config([path]), make.stats, make.cases, {"num_epochs": 2})
    assert (trained.warmup_steps, trained.overlap) == (7, 0.5)
    assert "warmup_steps" not in trained.training_params


def test_a_name_of_another_algorithm_is_passed_over_and_a_wrong_one_refused(make, caplog):
    caplog.set_level("INFO")
    written = make("work", "segresnet")

    def give(params):
        return with_params(written, make.stats, make.cases, params)

    assert give({"feature_size": 12, "dints.seed": 3}) == written
    assert "segresnet has no feature_size" in caplog.text
    with pytest.raises(OptionError, match="MONAI's num_images_per_batch is batch_size here"):
        give({"num_images_per_batch": 2})
    with pytest.raises(OptionError, match="num_epochs = 0"):
        give({"num_epochs": 0})


def test_a_model_with_parameters_is_predicted_with_as_it_was_trained(bundles, tmp_path, caplog):
    """A regenerated bundle with other values still refuses its old model."""
    caplog.set_level("INFO")
    datalist = tmp_path / "nifti data" / "datalist.json"
    pretend_training(bundles[0], 1, init_filters=16, patch_size_vox=[16, 32, 32])
    pretend_training(bundles[1], 2)
    path = bundles[0].folder / CONFIG_NAME
    assert InferClass(str(path)).config.init_filters == 16
    assert InferClass(str(path)).config.patch_size_vox == (16, 32, 32)
    result = ensemble(datalist, tmp_path / "work dir", bundles)
    assert result.members == ("segresnet_0", "segresnet_1")
    assert "segresnet_0 was trained with init_filters=16, patch_size_vox=[16, 32" in caplog.text
    write_config(path, read_bundle_config(bundles[0].folder).model_copy(update={"seed": 5}))
    with pytest.raises(CheckpointError, match="belongs to another configuration"):
        InferClass(str(path))
    failures = ensemble(datalist, tmp_path / "work dir", bundles).failures
    assert [f.item for f in failures] == ["segresnet_0"]


def test_a_model_of_an_earlier_version_is_read(bundles):
    pretend_training(bundles[0], 1)
    path = best_checkpoint(bundles[0].folder)
    state = torch.load(path, weights_only=True)
    del state["training_params"]
    torch.save(state, path)
    assert read_model(path).training_params == {}
    InferClass(str(bundles[0].folder / CONFIG_NAME))


def test_a_model_of_other_values_is_kept_beside_the_new_one(bundles, caplog):
    folder = bundles[0].folder
    config = read_bundle_config(folder)
    assert set_old_model_aside(folder, config) is None
    for number in (1, 2):
        pretend_training(bundles[0], number, num_epochs=10 + number)
        same = config.model_copy(update={"num_epochs": 10 + number})
        assert set_old_model_aside(folder, same) is None
        kept = best_checkpoint(folder).read_bytes()
        with held(folder / "model"), pytest.raises(BusyError):
            set_old_model_aside(folder, config)
        assert set_old_model_aside(folder, config) == folder / f"model_{number}"
        assert (folder / f"model_{number}" / "best.pt").read_bytes() == kept
        assert not (folder / "model").exists()
        assert f"its old model is kept in {folder / f'model_{number}'}" in caplog.text


def test_a_search_that_goes_on_is_left_where_it_is(make):
    config = make("work", "dints")
    folder = config.ckpt_path.parent
    model = Model(search_config(config).digest, list(config.classes), [], 1, {}, {})
    save(folder / "model" / "search" / "last.pt", model)
    assert set_old_model_aside(folder, config) is None
    save(folder / "model" / "search" / "last.pt", dataclasses.replace(model, config_digest="x"))
    assert set_old_model_aside(folder, config) == folder / "model_1"


def test_training_again_keeps_the_old_model_and_a_failure_is_told_in_its_words(
    bundles, tmp_path, capfd, caplog
):
    """AutoRunner(train=True): of a finished training, with the same values or others."""
    algo, folder = algo_of(bundles[0]), bundles[0].folder
    short = {"num_epochs": 1, "num_steps_per_epoch": 1, "CUDA_VISIBLE_DEVICES": "0"}
    # The process trains on this node, by this interpreter: said, where a runner asks for others.
    algo.train(short, {"CUDA_VISIBLE_DEVICES": "", "NUM_NODES": 2, "CMD_PREFIX": "python3.9"})
    for said in ("use AutoRunner.set_device_info", "this node alone", "CMD_PREFIX python3.9 is"):
        assert said in caplog.text
    assert "segresnet_0 epoch 1/1" in capfd.readouterr().out
    document = json.loads((folder / "model" / "result.json").read_text())
    assert document["epochs"] == 1
    assert algo.get_score() == document["mean_dice"]
    next((tmp_path / "nifti data" / "images").glob("crop0*")).unlink()
    with pytest.raises(TrainingError, match=r"training segresnet_0 failed .*no file .*crop0"):
        algo.train(short)
    assert json.loads((folder / "model_1" / "result.json").read_text()) == document
    with pytest.raises(BundleError, match="train it first"):
        algo.get_score()


def test_scores(bundles, caplog):
    algo = algo_of(bundles[0])
    with pytest.raises(BundleError, match=r"segresnet_0 has no score .*train it first"):
        algo.get_score()
    folder = bundles[0].folder / "model"
    write_progress(folder, [{"epoch": 1, "dice": {}, "mean_dice": None}])
    with pytest.raises(BundleError, match="train it first"):
        algo.get_score()
    write_progress(folder, [{"epoch": 1, "dice": {"mito": None}, "mean_dice": None}])
    assert algo.get_score() == 0
    assert "no class to score" in caplog.text


def test_the_data_source_says_where_the_data_are(tmp_path):
    datalist = make_project(tmp_path / "nifti")
    copy = shutil.copy(datalist, tmp_path / "cases.json")
    path = tmp_path / "input.yaml"

    def source(**more):
        path.write_text(yaml.safe_dump({"modality": "MRI", "datalist": str(copy), **more}))
        return read_source(path)

    assert source().own_root is None
    found = source(dataroot=str(tmp_path / "nifti"), num_epochs=3, algos=["segresnet"])
    assert found.own_root == tmp_path / "nifti"
    assert found.overrides == {"num_epochs": 3}
    cases = found.read()
    assert all(cases.path(entry.image).is_file() for entry in cases.training)
    assert source(class_names=["background", "mito", "er"]).read().classes == ("mito", "er")
    with pytest.raises(DatalistError, match=r"class_names er, mito in .*expected mito, er"):
        source(class_names=[{"name": "er", "index": [1]}, "mito"]).read()
    path.write_text("modality: MRI")
    with pytest.raises(BundleError, match="names no datalist"):
        read_source(path)
    with pytest.raises(BundleError, match="cannot be read"):
        read_source(tmp_path / "nothing.yaml")


def test_generators_of_a_search_for_values_copy_a_bundle(bundles, tmp_path):
    """OptunaGen and NNIGen export a bundle again and do not repeat its fold."""
    from monai.apps.auto3dseg.hpo_gen import NNIGen

    source = tmp_path / "work dir" / "data_src_cfg.yaml"
    source.write_text(source.read_text() + "num_epochs: 9\nseed: 9\n")
    generator = NNIGen(algo_of(bundles[1]), {**TINY, "learning_rate": 0.5, "num_epochs": 3})
    copy = tmp_path / "work dir" / "segresnet_1_override"
    assert generator.get_obj_filename() == str(copy / "algo_object.json")
    config = read_bundle_config(copy)
    assert (config.fold, config.learning_rate) == (1, 0.5)
    assert (config.num_epochs, config.seed) == (3, 9)
    assert BundleRef(algo="segresnet", fold=1, folder=copy).name == "segresnet_1"

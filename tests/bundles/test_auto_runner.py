"""MONAI's AutoRunner on our datalist and templates, with all its stages."""

import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from monai.apps.auto3dseg import AutoRunner, import_bundle_algo_history

from cellmap_core.bundles.names import OWN_TEMPLATES
from cellmap_core.datalist import read_datalist
from cellmap_core.errors import OptionError
from cellmap_core.inference.inferer import InferClass
from cellmap_core.training.config_files import CONFIG_NAME, read_bundle_config
from cellmap_core.training.result import best_checkpoint
from cellmap_core.training.trained import load_trained

# Networks of a few thousand weights; some steps at a high rate, so that predictions vary.
PARAMS = {
    "num_epochs": 1,
    "num_steps_per_epoch": 6,
    "batch_size": 1,
    "learning_rate": 1e-2,
    "patch_size_vox": (32, 32, 32),
    "init_filters": 8,
    "blocks_down": (1, 1, 1),
    "feature_size": 12,
    "swinunetr.patch_size_vox": (64, 32, 32),
    "channel_mul": 0.125,
    "num_blocks": 2,
    "num_depths": 2,
}


@pytest.fixture(autouse=True)
def own_imports(monkeypatch):
    """BundleGen imports template modules from each work_dir: forget them."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    algos = {path.name for path in OWN_TEMPLATES.iterdir()}
    for name in [n for n in sys.modules if n.split(".")[0] in algos]:
        del sys.modules[name]


def runner_of(work_dir: Path, source: dict | str, algos, **options) -> AutoRunner:
    templates = str(OWN_TEMPLATES)
    return AutoRunner(str(work_dir), source, algos, templates_path_or_url=templates, **options)


def source_of(datalist: Path, dataroot: Path | str, **more) -> dict:
    return {"modality": "MRI", "datalist": str(datalist), "dataroot": str(dataroot), **more}


def probabilities(bundle: Path, image: Path) -> np.ndarray:
    """(C, x, y, z)."""
    return InferClass([str(bundle / CONFIG_NAME)]).infer(image).numpy()


def check_prediction(path: Path, image: Path, expected: np.ndarray) -> None:
    """A file of the ensemble has the values that are expected, and the affine of its image."""
    made = nib.load(path)
    assert np.array_equal(made.affine, nib.load(image).affine)
    assert np.array_equal(np.asarray(made.dataobj), expected)
    assert len(np.unique(expected)) > 1


def test_all_stages_from_the_datalist_to_the_ensemble(converted, tmp_path):
    """Both folds; an input file; the list is copied away from the data, folders have spaces."""
    work, source = tmp_path / "a work dir", tmp_path / "my input.yaml"
    source.write_text(yaml.safe_dump(source_of(converted.datalist, converted.datalist.parent)))
    runner = runner_of(work, str(source), ["segresnet"])
    assert runner.num_fold == 2
    runner.set_training_params(PARAMS)
    runner.run()
    bundles = [work / f"segresnet_{fold}" for fold in range(2)]
    for bundle in bundles:
        written = read_bundle_config(bundle)
        trained, model = load_trained(best_checkpoint(bundle), written)
        assert (written.num_epochs, trained.num_epochs, trained.init_filters) == (100, 1, 8)
        assert model.training_params["num_epochs"] == 1
        # What follows from the number of epochs by rule follows at training too.
        assert (written.warmup_steps, trained.warmup_steps) != (0, written.warmup_steps)
    history = import_bundle_algo_history(str(work))
    assert [h["identifier"] for h in history] == ["segresnet_0", "segresnet_1"]
    assert all(0 < h["best_metric"] <= 1 for h in history)
    cases = read_datalist(converted.datalist)
    assert len(cases.testing) == 2
    for entry in cases.testing:
        members = [probabilities(bundle, cases.path(entry.image)) for bundle in bundles]
        assert np.allclose(members[0][0], 1 - members[0][1:].max(axis=0))
        labels = np.mean(members, axis=0).argmax(axis=0)
        assert not labels[np.max(members, axis=0)[1:].max(axis=0) < 0.5].any()
        path = work / "ensemble_output" / "images" / f"{entry.stem}_ensemble.nii.gz"
        check_prediction(path, cases.path(entry.image), labels)


def test_a_channel_of_each_class_and_the_runners_own_settings(converted, tmp_path, monkeypatch):
    """DiNTS, by a relative dataroot; each setting that MONAI passes on to the models."""
    monkeypatch.chdir(converted.datalist.parent)
    source = source_of(converted.datalist, ".", sigmoid=True, num_steps_per_epoch=2)
    runner = runner_of(tmp_path / "work", source, "dints")
    runner.set_num_fold(1)
    runner.set_training_params(PARAMS)
    runner.set_ensemble_method("AlgoEnsembleBestN", n_best=3)
    runner.set_image_save_transform(output_dir=str(tmp_path / "out"), output_postfix="seg")
    runner.set_prediction_params({"files_slices": slice(0, 1), "mode": "vote", "overlap": 0.5})
    runner.run()
    bundle = tmp_path / "work" / "dints_0"
    assert read_bundle_config(bundle).num_steps_per_epoch == 2
    assert load_trained(best_checkpoint(bundle), read_bundle_config(bundle))[0].search_epochs == 1
    cases = read_datalist(converted.datalist)
    image = cases.path(cases.testing[0].image)
    model = InferClass([str(bundle / CONFIG_NAME)], overlap=0.5)
    expected = (model.infer(image).numpy() > 0.5).transpose(1, 2, 3, 0)
    assert expected.shape[-1] == len(cases.classes)
    (path,) = (tmp_path / "out").rglob("*.nii.gz")
    assert path.name == f"{cases.testing[0].stem}_seg.nii.gz"
    check_prediction(path, image, expected)


def test_a_work_dir_that_moved_is_trained_where_it_is(converted, tmp_path):
    data, work = tmp_path / "data", tmp_path / "work"
    shutil.copytree(converted.datalist.parent, data)
    datalist = shutil.copy(converted.datalist, tmp_path / "cases.json")
    options = {"train": False, "ensemble": False}
    runner = runner_of(work, source_of(datalist, data), "swinunetr", **options)
    runner.set_num_fold(1)
    runner.run()
    work.rename(tmp_path / "moved")
    data.rename(tmp_path / "moved data")
    source = source_of(datalist, tmp_path / "moved data")
    again = runner_of(tmp_path / "moved", source, "swinunetr", analyze=False)
    assert not again.algo_gen
    again.set_num_fold(1)
    again.set_training_params({"num_epoch": 1})
    with pytest.raises(OptionError, match=r"unknown override num_epoch; expected any of .*epochs"):
        again.run()
    again.set_training_params({**PARAMS, "num_steps_per_epoch": 1})
    again.run()
    made = sorted(p.name for p in (tmp_path / "moved" / "ensemble_output").rglob("*.nii.gz"))
    stems = sorted(entry.stem for entry in read_datalist(converted.datalist).testing)
    assert made == [f"{stem}_ensemble.nii.gz" for stem in stems]
    assert not work.exists()

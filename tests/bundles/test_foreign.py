"""Templates of other people run as they were written."""

import shutil
import sys

import pytest

from cellmap_core.bundles.generate import generate
from cellmap_core.errors import EnsembleError, TrainingError
from cellmap_core.inference.ensemble import ensemble
from cellmap_core.options import GenerateOptions
from cellmap_core.training.launch import read_result, train_bundle
from tests.tiny_project import make_datastats, make_project

ALGO = """
from pathlib import Path
import yaml
from monai.apps.auto3dseg.bundle_gen import BundleAlgo

class OtherAlgo(BundleAlgo):
    def fill_template_config(self, data_stats_filename, algo_path, **kwargs):
        path = Path(algo_path) / "configs" / "hyper_parameters.yaml"
        path.write_text(yaml.safe_dump({"ckpt_path": algo_path + "/model_fold", "epochs": 1}))
        return {}
"""
TRAIN = """
import sys
from pathlib import Path
folder = Path(__file__).parents[1] / "model_fold"
folder.mkdir(exist_ok=True)
print("their own way with", *sys.argv[1:])
if "--fail=1" in sys.argv:
    sys.exit("their own trouble")
(folder / "best_metric_model.pt").write_bytes(b"weights")
(folder / "progress.yaml").write_text("- {best_avg_dice_score: 0.625, epoch: 1}")
"""


@pytest.fixture
def make(tmp_path):
    for place in ("scripts", "configs"):
        (tmp_path / "theirs" / "other" / place).mkdir(parents=True)
    template = tmp_path / "theirs" / "other"
    for path in (template / "__init__.py", template / "scripts" / "__init__.py"):
        path.touch()
    (template / "scripts" / "algo.py").write_text(ALGO)
    (template / "scripts" / "train.py").write_text(TRAIN)
    (template / "configs" / "hyper_parameters.yaml").write_text("epochs: 1")
    datalist = make_project(tmp_path / "nifti")
    stats = make_datastats(tmp_path / "work" / "datastats.yaml")

    def run(**overrides):
        options = GenerateOptions(
            algos=["other"], num_fold=2, num_epochs=7, overrides=overrides,
            templates=tmp_path / "theirs",
        )  # fmt: skip
        return generate(datalist, stats, tmp_path / "work", options).bundles

    run.datalist, run.work_dir = datalist, tmp_path / "work"
    yield run
    shutil.rmtree(tmp_path)
    for name in [n for n in sys.modules if n.split(".")[0] == "other"]:
        del sys.modules[name]


def test_it_is_trained_in_its_own_way_and_once(make):
    bundle = make(their_value=3)[0]
    lines = []
    result = train_bundle(bundle, lines.append, lambda _: None)
    assert result.mean_dice == 0.625
    assert result.checkpoint == bundle.folder / "model_fold" / "best_metric_model.pt"
    assert any("their own way with run" in line for line in lines)
    assert any("--num_epochs=7 --their_value=3" in line for line in lines)
    again = train_bundle(bundle, lines.append, lambda _: None)
    assert (again.done, again.current) == (0, 1)
    result.checkpoint.unlink()
    assert read_result(bundle) is None


def test_changed_parameters_train_it_anew_and_its_trouble_is_told(make):
    bundle = make()[0]
    train_bundle(bundle, lambda _: None, lambda _: None)
    assert read_result(bundle) is not None
    bundle = make(fail=1)[0]
    assert read_result(bundle) is None
    with pytest.raises(TrainingError, match="training other_0 failed"):
        train_bundle(bundle, lambda _: None, lambda _: None)


def test_the_ensemble_says_that_it_takes_ours_only(make):
    bundles = make()
    with pytest.raises(EnsembleError, match="no bundle of ours"):
        ensemble(make.datalist, make.work_dir, bundles)

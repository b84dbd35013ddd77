"""The training loop in this process: resume, guards, reports."""

import json
import shutil

import pytest
import torch
import yaml

from cellmap_core.datalist import read_datalist, write_datalist
from cellmap_core.errors import CheckpointError, TrainingError, TrainingInterrupted
from cellmap_core.training.config_files import read_bundle_config
from cellmap_core.training.result import read_result
from cellmap_core.training.trainer import Trainer
from tests.tiny_project import make_bundles


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_bundles(tmp_path_factory.mktemp("a project"), num_steps_per_epoch=3)[0]


@pytest.fixture
def bundle(made):
    shutil.rmtree(made.folder / "model", ignore_errors=True)
    return made


def train(bundle, stop_after=None, **changes):
    """Train; ``stop_after`` counts how often the training may ask before it must end."""
    asked = iter(range(10**9))
    stop = (lambda: next(asked) >= stop_after) if stop_after is not None else lambda: False
    config = read_bundle_config(bundle.folder).model_copy(update=changes)
    return Trainer(config, bundle.folder, stop).run()


def weights(bundle, name):
    return torch.load(bundle.folder / "model" / name, weights_only=True)["model"]


def records(bundle):
    lines = (bundle.folder / "model" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_interrupted_training_ends_bit_identical(bundle):
    result = train(bundle)
    whole = {name: weights(bundle, name) for name in ("last.pt", "best.pt")}
    said = records(bundle)
    shutil.rmtree(bundle.folder / "model")
    # In the first epoch, at its end, in its validation, in the second epoch.
    for stop_after in (1, 1, 0, 2):
        with pytest.raises(TrainingInterrupted):
            train(bundle, stop_after)
    again = train(bundle)
    for name, kept in whole.items():
        for key, tensor in weights(bundle, name).items():
            assert torch.equal(tensor, kept[key]), (name, key)
    assert records(bundle) == said
    assert again.mean_dice == result.mean_dice


def test_reports_are_what_the_contract_says(bundle):
    result = train(bundle)
    epochs, done = records(bundle)[:-1], records(bundle)[-1]
    assert [r["event"] for r in epochs] == ["epoch", "epoch"]
    assert {"epoch", "epochs", "loss", "dice", "mean_dice"} <= set(epochs[0])
    assert done["event"] == "done"
    assert done["trained_classes"] == ["mito", "er"]
    progress = yaml.safe_load((bundle.folder / "model" / "progress.yaml").read_text())
    assert progress[-1]["best_avg_dice_score"] == max(r["mean_dice"] for r in epochs)
    assert progress[-1]["best_avg_dice_score"] == result.mean_dice
    assert 0 < result.trivial_dice["mito"] < result.dice["mito"]


def test_better_epoch_stays_best(bundle, monkeypatch):
    scores = iter([0.9, 0.1])
    monkeypatch.setattr("cellmap_core.training.trainer.mean_dice", lambda *_: next(scores))
    assert train(bundle).best_epoch == 1
    assert torch.load(bundle.folder / "model/best.pt", weights_only=True)["epoch"] == 1


def test_damaged_last_checkpoint_begins_anew(bundle, caplog):
    with pytest.raises(TrainingInterrupted):
        train(bundle, 1)
    last = bundle.folder / "model" / "last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    assert train(bundle).epochs == 2
    assert "begins anew" in caplog.text


def test_checkpoint_of_another_configuration_is_not_gone_on_from(bundle):
    with pytest.raises(TrainingInterrupted):
        train(bundle, 1)
    with pytest.raises(CheckpointError, match="another configuration"):
        train(bundle, seed=5)


def test_loss_that_is_not_finite_stops_before_the_step(bundle, monkeypatch):
    config = read_bundle_config(bundle.folder)
    trainer = Trainer(config, bundle.folder)
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    nan = torch.tensor(float("nan"), requires_grad=True)
    monkeypatch.setattr("cellmap_core.training.trainer.masked_loss", lambda *_: nan)
    with pytest.raises(TrainingError, match="segresnet_0: the loss is nan at step 0"):
        trainer.run()
    assert all(torch.equal(v, before[k]) for k, v in trainer.network.state_dict().items())


def test_batch_with_nothing_known_takes_no_step(bundle):
    trainer = Trainer(read_bundle_config(bundle.folder), bundle.folder)
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    batch = trainer.data.sampler.batch(0)
    batch.annotated[:] = False
    trainer._take_step(batch)
    assert all(torch.equal(v, before[k]) for k, v in trainer.network.state_dict().items())
    assert trainer._loss_steps == 0
    trainer._take_step(trainer.data.sampler.batch(0))
    assert trainer._loss_steps == 1


def test_class_unannotated_in_training_is_not_trained(bundle, tmp_path):
    config = read_bundle_config(bundle.folder)
    datalist = read_datalist(config.datalist)
    shutil.copytree(config.datalist.parent, tmp_path / "data")
    training = tuple(
        e if e.fold == 0 else e.model_copy(update={"annotated_classes": (1,)})
        for e in datalist.training
    )
    other = datalist.model_copy(update={"training": training})
    write_datalist(tmp_path / "data" / "datalist.json", other)
    result = train(bundle, datalist=tmp_path / "data" / "datalist.json", num_epochs=1)
    assert records(bundle)[-1]["trained_classes"] == ["mito"]
    # Annotated in the validation cases, but what an untrained channel says is no result.
    assert result.dice["er"] is None
    assert result.trivial_dice["er"] is not None
    assert result.mean_dice == result.dice["mito"]


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_best_model_is_trained_anew(bundle, damage, caplog):
    whole = train(bundle)
    assert read_result(bundle) is not None
    if damage == "cut":
        whole.checkpoint.write_bytes(whole.checkpoint.read_bytes()[:200])
    else:
        whole.checkpoint.unlink()
    assert read_result(bundle) is None
    again = train(bundle)
    assert "begins anew" in caplog.text
    assert again.dice == whole.dice
    assert read_result(bundle) is not None

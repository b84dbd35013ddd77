"""The training loop in this process: resume, guards, reports."""

import json
import shutil

import pytest
import torch
import yaml

from cellmap_core.datalist import read_datalist, write_datalist
from cellmap_core.errors import BusyError, CheckpointError, TrainingError, TrainingInterrupted
from cellmap_core.provenance import _WRITER, held
from cellmap_core.training import run
from cellmap_core.training.config_files import read_bundle_config
from cellmap_core.training.result import read_result
from cellmap_core.training.team import alone
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
    return run.train(config, bundle.folder, stop)


def weights(bundle, name):
    state = torch.load(bundle.folder / "model" / name, weights_only=True)
    return state["model"] if "model" in state else state["learner"]["average"]


def records(bundle):
    lines = (bundle.folder / "model" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    measured = {"seconds", "timing", "memory"}
    return [{k: v for k, v in row.items() if k not in measured} for row in rows]


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


def test_a_damaged_last_checkpoint_falls_back_on_the_one_before(bundle, caplog):
    whole = train(bundle)
    kept = weights(bundle, "last.pt")
    shutil.rmtree(bundle.folder / "model")
    for _ in range(2):
        with pytest.raises(TrainingInterrupted):
            train(bundle, 0)
    model = bundle.folder / "model"
    assert (model / "previous.pt").is_file()
    (model / "last.pt").write_bytes((model / "last.pt").read_bytes()[:1000])
    caplog.set_level("INFO")
    assert train(bundle).dice == whole.dice
    assert "last.pt is damaged" in caplog.text
    assert "goes on from epoch 0, step 1" in caplog.text
    assert all(torch.equal(v, kept[k]) for k, v in weights(bundle, "last.pt").items())


def test_without_any_whole_checkpoint_the_training_begins_anew(bundle, caplog):
    with pytest.raises(TrainingInterrupted):
        train(bundle, 1)
    last = bundle.folder / "model" / "last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    assert train(bundle).epochs == 2
    assert "begins anew" in caplog.text


def test_ends_early_when_no_better_epoch_comes(bundle, monkeypatch, caplog):
    scores = iter([0.1, 0.9, *[0.2] * 50])
    monkeypatch.setattr("cellmap_core.training.trainer.mean_dice", lambda *_: next(scores))
    caplog.set_level("INFO")
    result = train(bundle, num_epochs=20, early_stop_epochs=3, num_steps_per_epoch=1)
    assert (result.best_epoch, result.epochs) == (2, 5)
    assert "no better one than epoch 2 for 3 epochs" in caplog.text


def test_validates_only_as_often_as_asked_and_at_the_end(bundle):
    result = train(bundle, num_epochs=5, validate_every=2, num_steps_per_epoch=1)
    validated = [bool(r["dice"]) for r in records(bundle)[:-1]]
    assert validated == [False, True, False, True, True]
    assert result.best_epoch in {2, 4, 5}


def test_a_checkpoint_is_kept_within_a_long_epoch(bundle, monkeypatch):
    def fail(_):
        raise TrainingError("stop here")

    monkeypatch.setattr("cellmap_core.training.trainer._SAVE_SECONDS", 0)
    monkeypatch.setattr("cellmap_core.training.trainer.Trainer._finish_epoch", fail)
    with pytest.raises(TrainingError):
        train(bundle)
    assert torch.load(bundle.folder / "model" / "last.pt", weights_only=True)["step"] == 3


def test_tensorboard_has_the_curves(bundle):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(TrainingInterrupted):
        train(bundle, 5)
    train(bundle)
    events = EventAccumulator(str(bundle.folder / "model" / "tensorboard"))
    events.Reload()
    assert [s.step for s in events.Scalars("loss")] == [1, 2]
    said = [r["mean_dice"] for r in records(bundle)[:-1]]
    assert [s.value for s in events.Scalars("mean_dice")] == pytest.approx(said)
    assert {"dice/mito", "dice/er"} <= set(events.Tags()["scalars"])


@pytest.mark.parametrize("experiment", ["auto3dseg", "theirs"])
def test_mlflow_has_one_run_of_an_interrupted_training(bundle, tmp_path, monkeypatch, experiment):
    if experiment != "auto3dseg":
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", experiment)
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    with pytest.raises(TrainingInterrupted):
        train(bundle, 5)
    train(bundle)
    client = tracking.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    assert run.info.run_name == "segresnet_0"
    assert run.data.params["init_filters"] == "8"
    said = [r["mean_dice"] for r in records(bundle)[:-1]]
    history = client.get_metric_history(run.info.run_id, "mean_dice")
    assert [(m.step, m.value) for m in history] == list(enumerate(said, start=1))


def test_a_tracker_that_fails_costs_no_training(bundle, monkeypatch, caplog):
    pytest.importorskip("tensorboard")

    def fail(*_):
        raise OSError("no such server")

    monkeypatch.setattr("cellmap_core.training.trackers._TensorBoard.log", fail)
    assert train(bundle).epochs == 2
    assert caplog.text.count("no such server") == 1


def test_checkpoint_of_another_configuration_is_not_gone_on_from(bundle):
    with pytest.raises(TrainingInterrupted):
        train(bundle, 1)
    with pytest.raises(CheckpointError, match="another configuration"):
        train(bundle, seed=5)


def test_loss_that_is_not_finite_stops_before_the_step(bundle, monkeypatch):
    config = read_bundle_config(bundle.folder)
    trainer = run.make_trainer(config, bundle.folder, lambda: False, alone())
    before = {k: v.clone() for k, v in trainer.learner.network.state_dict().items()}
    nan = torch.tensor(float("nan"), requires_grad=True)
    monkeypatch.setattr("cellmap_core.training.learner.masked_loss", lambda *_: nan)
    said = r"segresnet_0: the loss is nan at step 0, with patches jrc_tiny/crop\d at \d+, \d+, \d+;"
    with pytest.raises(TrainingError, match=said):
        trainer.run()
    assert all(torch.equal(v, before[k]) for k, v in trainer.learner.network.state_dict().items())


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
def test_a_lost_best_model_is_replaced_and_costs_no_training(bundle, damage, caplog):
    whole = train(bundle)
    assert read_result(bundle) is not None
    if damage == "cut":
        whole.checkpoint.write_bytes(whole.checkpoint.read_bytes()[:200])
    else:
        whole.checkpoint.unlink()
    assert read_result(bundle) is None
    again = train(bundle, num_steps_per_epoch=3)
    assert "has lost its best model, of epoch 2; the one of epoch 2 takes its place" in caplog.text
    assert "begins anew" not in caplog.text
    # The last epoch was the best, and so its average is.
    assert again.dice == whole.dice
    assert read_result(bundle) is not None


def test_a_best_model_of_another_configuration_is_refused(bundle):
    train(bundle)
    path = bundle.folder / "model" / "best.pt"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "config_digest": "other"}, path)
    with pytest.raises(CheckpointError, match=r"best\.pt belongs to another configuration"):
        train(bundle)


def test_a_checkpoint_of_another_network_falls_back_on_the_one_before(bundle, caplog):
    for _ in range(2):
        with pytest.raises(TrainingInterrupted):
            train(bundle, 0)
    path = bundle.folder / "model" / "last.pt"
    state = torch.load(path, weights_only=True)
    state["learner"]["network"].popitem()
    torch.save(state, path)
    caplog.set_level("INFO")
    train(bundle)
    assert "last.pt is of another network" in caplog.text
    assert "goes on from epoch 0, step 1" in caplog.text


def test_two_trainings_of_one_bundle_are_refused(bundle, monkeypatch):
    monkeypatch.setattr(run, "_WAIT_SECONDS", 0.1)
    with held(bundle.folder / "model"), pytest.raises(BusyError, match="another run is writing"):
        train(bundle)
    # What a killed writer left goes with the next start.
    left = bundle.folder / "model" / f".{_WRITER}-999999999.partial.last.pt"
    left.touch()
    train(bundle)
    assert not left.exists()


def test_early_stopping_waits_for_a_validation(bundle, monkeypatch):
    scores = iter([0.9, 0.1, 0.1, 0.1])
    monkeypatch.setattr("cellmap_core.training.trainer.mean_dice", lambda *_: next(scores))
    result = train(
        bundle, num_epochs=20, validate_every=3, early_stop_epochs=1, num_steps_per_epoch=1
    )
    assert (result.best_epoch, result.epochs) == (3, 6)

"""Where a training's curves go beside ``metrics.jsonl``: TensorBoard and MLflow, if installed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from cellmap_core.scores import Scores
from cellmap_core.training.config import TrainConfig
from cellmap_core.training.history import Record

logger = logging.getLogger(__name__)

TENSORBOARD_NAME = "tensorboard"
_RUN_NAME = "mlflow_run"
#: Says where MLflow keeps its runs; without it nothing goes to MLflow.
_MLFLOW_VARIABLE = "MLFLOW_TRACKING_URI"


class Tracker(Protocol):
    """Takes the record of each epoch."""

    def log(self, record: Record) -> None:
        """Take the record of one epoch."""

    def close(self) -> None:
        """Write what is still to be written."""


def open_trackers(folder: Path, config: TrainConfig, epochs: int) -> list[Tracker]:
    """The trackers whose packages are installed.

    A tracker that fails is said and left out: curves are no reason to lose a training.

    Parameters
    ----------
    folder : Path
        The bundle's model folder.
    config : TrainConfig
        The training's values.
    epochs : int
        Epochs already done; what a tracker has of later ones is void.
    """
    found: list[Tracker] = []
    for kind, wanted in (
        (_TensorBoard, bool(find_spec("tensorboard"))),
        (_MLflow, bool(find_spec("mlflow")) and _MLFLOW_VARIABLE in os.environ),
    ):
        if wanted:
            try:
                found.append(_Careful(kind(folder, config, epochs)))
            except Exception as error:  # noqa: BLE001 - whatever the package comes up with
                logger.warning("no curves in %s: %r", kind.__name__.strip("_"), error)
    return found


def scalars(record: Record) -> Iterator[tuple[str, float]]:
    """The numbers of an epoch by name: loss, mean Dice and what it is of, Dice by class, time."""
    for name in ("loss", "mean_dice", "learning_rate", "seconds"):
        if record.get(name) is not None:
            yield name, record[name]
    scores = Scores.of_record(record)
    if scores.scored:
        yield "classes_scored", float(len(scores.scored))
    if scores.gain is not None:
        yield "mean_gain_over_trivial", scores.gain
    for name, dice in scores.dice.items():
        if dice is not None:
            yield f"dice/{name}", dice


class _Careful:
    """Passes over what its tracker cannot do, after saying it once."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker, self._told = tracker, False

    def log(self, record: Record) -> None:
        self._try(self._tracker.log, record)

    def close(self) -> None:
        self._try(self._tracker.close)

    def _try(self, do: Any, *arguments: Any) -> None:
        try:
            do(*arguments)
        except Exception as error:  # noqa: BLE001 - see the class
            if not self._told:
                name = type(self._tracker).__name__.strip("_")
                logger.warning("curves are missing in %s: %r", name, error)
            self._told = True


class _TensorBoard:
    """Event files in ``tensorboard/`` of the model folder."""

    def __init__(self, folder: Path, _: TrainConfig, epochs: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / TENSORBOARD_NAME), purge_step=epochs + 1)

    def log(self, record: Record) -> None:
        for name, value in scalars(record):
            self._writer.add_scalar(name, value, record["epoch"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _MLflow:
    """One run a bundle, gone on with by its id."""

    def __init__(self, folder: Path, config: TrainConfig, _: int) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        kept = folder / _RUN_NAME
        if kept.is_file():
            self._run = kept.read_text(encoding="ascii").strip()
            return
        name = f"{config.algo}_{config.fold}"
        group = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "auto3dseg"
        experiment = self._client.get_experiment_by_name(group)
        number = experiment.experiment_id if experiment else self._client.create_experiment(group)
        self._run = self._client.create_run(number, run_name=name).info.run_id
        for key, value in _parameters(config):
            self._client.log_param(self._run, key, value)
        kept.write_text(self._run, encoding="ascii")

    def log(self, record: Record) -> None:
        for name, value in scalars(record):
            self._client.log_metric(self._run, name, value, step=record["epoch"])

    def close(self) -> None:
        self._client.set_terminated(self._run)


def _parameters(config: TrainConfig) -> Sequence[tuple[str, Any]]:
    values = config.model_dump(mode="json", exclude={"rules", "architecture"})
    return [(key, str(value)[:250]) for key, value in values.items()]

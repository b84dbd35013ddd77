"""One training from its configuration to its result, wherever it was left."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch

from cellmap_core.errors import BusyError, CheckpointError, TrainingError
from cellmap_core.models import BundleRef, TrainResult
from cellmap_core.provenance import held, sweep
from cellmap_core.training import history
from cellmap_core.training.algorithms import build_network
from cellmap_core.training.algorithms.dints import DintsConfig
from cellmap_core.training.config import TrainConfig
from cellmap_core.training.config_files import MODEL_FOLDER
from cellmap_core.training.data import open_fold
from cellmap_core.training.learner import Learner
from cellmap_core.training.result import BEST_NAME, write_result
from cellmap_core.training.search import searched
from cellmap_core.training.team import Team, alone
from cellmap_core.training.trainer import Trainer
from cellmap_core.training.volumes import CACHE_NAME

_WAIT_SECONDS = 60.0


def train(
    config: TrainConfig,
    bundle: Path,
    stop: Callable[[], bool] = lambda: False,
    team: Team | None = None,
) -> TrainResult:
    """Train a bundle from where it was left; search its architecture first, where it has one.

    Parameters
    ----------
    config : TrainConfig
        All values.
    bundle : Path
        The bundle's folder; the model goes to ``model/`` in it.
    stop : callable, optional
        Asked after each step; when it says True the training saves and ends.
    team : Team, optional
        The processes that train it together (default: this one alone).

    Raises
    ------
    TrainingInterrupted
        ``stop`` said True; the checkpoint holds all that was done.
    TrainingError
        The training cases hold nothing to learn, or a loss is not finite.
    CheckpointError
        The last checkpoint belongs to another configuration.
    """
    together = team or alone()
    with held_for(bundle / MODEL_FOLDER, together):
        trainer = make_trainer(config, bundle, stop, together)
        trainer.run()
        return _finish(trainer, bundle)


@contextmanager
def held_for(folder: Path, team: Team) -> Iterator[None]:
    """Hold a model folder for one training.

    A training that was lost with its worker ends within a step, so its successor waits a while.

    Raises
    ------
    BusyError
        Another training still writes there.
    """
    if not team.leads:
        yield
        return
    with ExitStack() as stack:
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            try:
                stack.enter_context(held(folder))
                break
            except BusyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        yield


def make_trainer(
    config: TrainConfig, bundle: Path, stop: Callable[[], bool], team: Team
) -> Trainer:
    """Data, network and learner of a training, ready to run; see `train`."""
    if config.batch_size < team.size:
        raise TrainingError(
            f"batch_size {config.batch_size} for {team.size} processes",
            "a patch for each",
            "use fewer processes, or set batch_size in the overrides",
        )
    folder = bundle / MODEL_FOLDER
    # One process decompresses volumes and looks at their labels; the others find that done.
    if not team.leads:
        team.wait()
    cache = bundle.parent / CACHE_NAME
    if team.leads:
        sweep(cache)
    data = open_fold(config, cache)
    if team.leads:
        team.wait()
    _seed_everything(config.seed)
    if isinstance(config, DintsConfig):
        config = searched(config, data, folder, stop, team)
        _seed_everything(config.seed)
    learner = Learner(config, build_network(config), data.look_up, team)
    return Trainer(learner, data, folder, stop)


def _seed_everything(seed: int) -> None:
    """Ours draw from generators of their own; libraries may draw from these."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def _finish(trainer: Trainer, bundle: Path) -> TrainResult:
    config, best, records = trainer.config, trainer.best, trainer.records
    path = trainer.folder / BEST_NAME
    if best is None or not path.is_file():
        raise CheckpointError(
            f"{trainer.name} has no {BEST_NAME}", "the best model", "remove its model folder"
        )
    result = TrainResult(
        done=1,
        bundle=BundleRef(algo=config.algo, fold=config.fold, folder=bundle),
        checkpoint=path,
        best_epoch=best["epoch"],
        epochs=records[-1]["epoch"],
        mean_dice=best["mean_dice"],
        dice=best["dice"],
        trivial_dice=best["trivial_dice"],
        seconds=sum(r["seconds"] for r in records),
        host_bytes=max(r["memory"]["host_bytes"] for r in records),
        device_bytes=max(r["memory"]["device_bytes"] for r in records),
    )
    if trainer.learner.team.leads:
        write_result(result, config)
        event = {
            "event": "done",
            "trained_classes": trainer.data.learnable,
            "device": trainer.learner.team.device.type,
            "processes": trainer.learner.team.size,
        }
        scores = {k: getattr(result, k) for k in ("best_epoch", "mean_dice", "dice", "seconds")}
        history.append(trainer.folder, {**event, **scores})
    return result

"""The training loop: epochs, validation, checkpoints, and going on from them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from cellmap_core.errors import TrainingInterrupted
from cellmap_core.machine import peak_memory_bytes
from cellmap_core.provenance import sweep
from cellmap_core.training import checkpoint, history
from cellmap_core.training.data import FoldData
from cellmap_core.training.learner import Learner
from cellmap_core.training.metrics import mean_dice
from cellmap_core.training.patches import Batch, drawn_ahead
from cellmap_core.training.result import BEST_NAME, LAST_NAME, PREVIOUS_NAME
from cellmap_core.training.trackers import open_trackers
from cellmap_core.training.validation import validate

logger = logging.getLogger(__name__)

# Besides the end of each epoch: what a kill costs of a long one.
_SAVE_SECONDS = 600.0


@dataclass
class _Epoch:
    """What the unfinished epoch has come to."""

    loss_sum: float
    loss_steps: int
    timing: dict[str, float]

    @classmethod
    def fresh(cls) -> _Epoch:
        return cls(0.0, 0, {"data": 0.0, "step": 0.0, "save": 0.0, "validation": 0.0, "all": 0.0})


class Trainer:
    """Trains a learner, from its start or from its last checkpoint.

    Parameters
    ----------
    learner : Learner
        What is trained, with its configuration.
    data : FoldData
        What it is trained and validated on.
    folder : Path
        For checkpoints and reports.
    stop : callable
        Asked after each step; when it says True the training saves and ends.
    what : str
        Added to the bundle's name in the log.
    """

    def __init__(
        self,
        learner: Learner,
        data: FoldData,
        folder: Path,
        stop: Callable[[], bool],
        what: str = "",
    ) -> None:
        self.learner, self.data, self.folder = learner, data, folder
        self.config, self._team = learner.config, learner.team
        self.name = f"{self.config.algo}_{self.config.fold}{what}"
        self._stop = stop
        self._epoch, self._step = 0, 0
        self._now = _Epoch.fresh()
        self.records: list[history.Record] = []
        self.best: history.Record | None = None

    def run(self) -> None:
        """Train to the last epoch, or until no better one comes.

        Raises
        ------
        TrainingInterrupted
            ``stop`` said True; the checkpoint holds all that was done.
        TrainingError
            The loss is not finite.
        CheckpointError
            The last checkpoint belongs to another configuration.
        """
        if self._team.leads:
            sweep(self.folder)
        self._resume()
        self._trackers = (
            open_trackers(self.folder, self.config, self._epoch) if self._team.leads else []
        )
        try:
            while self._epoch < self.config.num_epochs and not self._waits_in_vain():
                self._train_epoch()
                self._finish_epoch()
        finally:
            for tracker in self._trackers:
                tracker.close()

    def _waits_in_vain(self) -> bool:
        """Whether no better epoch has come for so long that none will."""
        patience = self.config.early_stop_epochs
        if not patience or self.best is None or self._epoch - self.best["epoch"] < patience:
            return False
        if not any(r["dice"] for r in self.records if r["epoch"] > self.best["epoch"]):
            return False
        logger.info(
            "%s ends at epoch %d: no better one than epoch %d for %d epochs",
            self.name, self._epoch, self.best["epoch"], patience,
        )  # fmt: skip
        return True

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._now.timing[part] += time.monotonic() - started

    def _train_epoch(self) -> None:
        end = (self._epoch + 1) * self.config.num_steps_per_epoch
        mine = self._team.share(self.config.batch_size)
        self.learner.network.train()
        saved = time.monotonic()
        with drawn_ahead(self.data.sampler, range(self._step, end), mine) as batches:
            for _ in range(self._step, end):
                with self._timed("all"):
                    with self._timed("data"):
                        batch = next(batches)
                    with self._timed("step"):
                        self._take_step(batch)
                    self._step += 1
                    if time.monotonic() - saved > _SAVE_SECONDS:
                        self._save_last()
                        saved = time.monotonic()
                self._go_on_or_leave()

    def _take_step(self, batch: Batch) -> None:
        """One step of the optimizer; none where nothing in the batch is known."""
        loss = self.learner.step(batch, self._step)
        if loss is not None:
            self._now.loss_sum += loss
            self._now.loss_steps += 1

    def _go_on_or_leave(self) -> None:
        if self._team.any(self._stop()):
            self._save_last()
            raise TrainingInterrupted(
                f"{self.name} was asked to end at step {self._step}",
                "to run to its end",
                "start it again, it goes on from its checkpoint",
            )

    def _finish_epoch(self) -> None:
        """Validate, keep the best model, save, report: in this order, so that a kill repeats."""
        with self._timed("all"), self._timed("validation"):
            record = self._record()
        better = history.is_better(record, self.best)
        with self._timed("all"), self._timed("save"):
            if better:
                self.best = record
                self._save_best(record)
        timing = self._now.timing
        record["seconds"] = round(timing["all"], 3)
        record["timing"] = {part: round(s, 3) for part, s in timing.items() if part != "all"}
        record["memory"] = self._memory()
        self.records.append(record)
        self._epoch += 1
        self._now = _Epoch.fresh()
        self._save_last()
        if self._team.leads:
            history.write_progress(self.folder, self.records)
            history.append(self.folder, record)
            for tracker in self._trackers:
                tracker.log(record)
            logger.info("%s", history.readable(self.name, record))

    def _record(self) -> history.Record:
        """What the epoch has come to, with its scores if it is one to validate."""
        config, epoch, now = self.config, self._epoch + 1, self._now
        scores: history.Record = {"dice": {}, "mean_dice": None, "trivial_dice": {}}
        due = epoch % config.validate_every == 0 or epoch == config.num_epochs
        if due and self.learner.validated:
            scores = self._scores()
        return {
            "event": "epoch",
            "epoch": epoch,
            "epochs": config.num_epochs,
            "loss": now.loss_sum / now.loss_steps if now.loss_steps else None,
            "learning_rate": self.learner.learning_rate,
            **scores,
        }

    def _scores(self) -> history.Record:
        counts = validate(
            self.learner.best_network,
            self.data.validation,
            self.data.states,
            self.config,
            self._team,
            # Processes that share a validation have not as many blocks each to ask after.
            self._go_on_or_leave if self._team.size == 1 else lambda: None,
        )
        learnt = self.data.learnable
        # What a channel says of a class it never learned is no result.
        dice = {name: d if name in learnt else None for name, d in counts.dice().items()}
        return {
            "dice": dice,
            "mean_dice": mean_dice(dice, learnt),
            "trivial_dice": counts.trivial(),
        }

    def _memory(self) -> dict[str, int]:
        """Most memory this process has taken so far, of the machine and of its device."""
        device = self._team.device
        taken = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        return {"host_bytes": peak_memory_bytes(), "device_bytes": taken}

    def _save_best(self, record: history.Record) -> None:
        if self._team.leads:
            model = checkpoint.Model(
                config_digest=self.config.digest,
                classes=list(self.config.classes),
                trained_classes=self.data.learnable,
                epoch=record["epoch"],
                dice=record["dice"],
                model=self.learner.best_network.state_dict(),
                architecture=self.learner.architecture,
                training_params=self.config.training_params,
            )
            checkpoint.save(self.folder / BEST_NAME, model)

    def _save_last(self) -> None:
        if self._team.leads:
            snapshot = checkpoint.Snapshot(
                config_digest=self.config.digest,
                epoch=self._epoch,
                step=self._step,
                loss_sum=self._now.loss_sum,
                loss_steps=self._now.loss_steps,
                timing=self._now.timing,
                records=self.records,
                best=self.best,
                learner=self.learner.state(),
                rng=checkpoint.rng_state(),
            )
            checkpoint.save(self.folder / LAST_NAME, snapshot, before=self.folder / PREVIOUS_NAME)

    def _resume(self) -> None:
        """Go on from the last checkpoint, or from the one before where the last is damaged."""
        for name in (LAST_NAME, PREVIOUS_NAME):
            path = self.folder / name
            if path.is_file():
                try:
                    state = checkpoint.load_snapshot(path, self.config.digest)
                    self._check_network(state, path)
                except checkpoint.DamagedError as error:
                    logger.warning("%s; an older checkpoint is tried", error)
                else:
                    self._restore(state)
                    break
        else:
            if (self.folder / LAST_NAME).is_file():
                logger.warning("%s has no whole checkpoint and begins anew", self.name)
        self._team.wait()
        if self._team.leads:
            history.rewrite(self.folder, self.records)

    def _check_network(self, state: checkpoint.Snapshot, path: Path) -> None:
        if not self.learner.fits(state.learner):
            raise checkpoint.DamagedError(f"{path} is of another network", "this one's weights")

    def _best_is_lost(self) -> bool:
        """Whether the best model that the checkpoint speaks of is not there, or not whole."""
        path = self.folder / BEST_NAME
        if self.best is None:
            return False
        try:
            if path.is_file():
                checkpoint.load_model(path, self.config.digest)
                return False
        except checkpoint.DamagedError:
            pass
        return True

    def _restore(self, state: checkpoint.Snapshot) -> None:
        self.learner.restore(state.learner)
        checkpoint.restore_rng(state.rng)
        self._epoch, self._step = state.epoch, state.step
        self._now = _Epoch(state.loss_sum, state.loss_steps, state.timing)
        self.records, self.best = state.records, state.best
        logger.info("%s goes on from epoch %d, step %d", self.name, state.epoch, state.step)
        if self._best_is_lost():
            self._replace_best()

    def _replace_best(self) -> None:
        """Take what there is for the best model: the average as it is now."""
        logger.warning(
            "%s has lost its best model, of epoch %d; the one of epoch %d takes its place",
            self.name, self.best["epoch"] if self.best else 0, self._epoch,
        )  # fmt: skip
        self.best = {**self.records[-1], **self._scores()}
        self._save_best(self.best)

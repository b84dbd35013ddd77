"""The training of one bundle: steps, validation, checkpoints, and going on from them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cellmap_core.errors import CheckpointError, TrainingError, TrainingInterrupted
from cellmap_core.models import BundleRef, TrainResult
from cellmap_core.training import checkpoint, history
from cellmap_core.training.augment import jitter
from cellmap_core.training.config import TrainConfig
from cellmap_core.training.data import open_fold
from cellmap_core.training.loss import masked_loss
from cellmap_core.training.metrics import mean_dice
from cellmap_core.training.networks import build_network
from cellmap_core.training.patches import (
    Batch,
    drawn_ahead,
    expand,
)
from cellmap_core.training.result import BEST_NAME, LAST_NAME, MODEL_FOLDER, write_result
from cellmap_core.training.validation import validate
from cellmap_core.training.volumes import CACHE_NAME

logger = logging.getLogger(__name__)

_LAYOUT = torch.channels_last_3d


class Trainer:
    """Trains one bundle, from its start or from its last checkpoint.

    Parameters
    ----------
    config : TrainConfig
        All values.
    bundle : Path
        The bundle's folder; the model goes to ``model/`` in it.
    stop : callable, optional
        Asked after each step; when it says True the training saves and ends.

    Raises
    ------
    TrainingError
        The training cases hold nothing to learn.
    CheckpointError
        The last checkpoint belongs to another configuration.
    """

    def __init__(
        self, config: TrainConfig, bundle: Path, stop: Callable[[], bool] = lambda: False
    ) -> None:
        self.config = config
        self.bundle = BundleRef(algo=config.algo, fold=config.fold, folder=bundle)
        self.folder = bundle / MODEL_FOLDER
        self._stop = stop
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._amp = config.amp and self.device.type == "cuda"
        self.data = open_fold(config, bundle.parent / CACHE_NAME)
        self._look_up = torch.from_numpy(self.data.look_up).to(self.device)
        torch.manual_seed(config.seed)
        # Channels last is what convolutions are fastest with, on a CPU (a third) and on CUDA.
        self.network = build_network(config).to(self.device)
        self.network.to(memory_format=_LAYOUT)  # type: ignore[call-overload]
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self._amp)
        self._epoch, self._step = 0, 0
        self._loss_sum, self._loss_steps, self._seconds = 0.0, 0, 0.0
        self._records: list[history.Record] = []
        self._best: history.Record | None = None

    def run(self) -> TrainResult:
        """Train to the last epoch and write the result.

        Raises
        ------
        TrainingInterrupted
            ``stop`` said True; the checkpoint holds all that was done.
        TrainingError
            The loss is not finite.
        """
        self._resume()
        while self._epoch < self.config.num_epochs:
            self._train_epoch()
            self._finish_epoch()
        return self._finish()

    def _train_epoch(self) -> None:
        started = time.monotonic() - self._seconds
        end = (self._epoch + 1) * self.config.num_steps_per_epoch
        self.network.train()
        with drawn_ahead(self.data.sampler, range(self._step, end)) as batches:
            for batch in batches:
                self._take_step(batch)
                self._step += 1
                self._seconds = time.monotonic() - started
                self._go_on_or_leave()

    def _take_step(self, batch: Batch) -> None:
        """One step of the optimizer; none where nothing in the batch is known."""
        image = torch.from_numpy(batch.image).to(self.device, memory_format=_LAYOUT)
        if self.config.augment:
            image = jitter(image, self.config.seed + self._step)
        target, mask = expand(
            torch.from_numpy(batch.label).to(self.device),
            torch.from_numpy(batch.annotated).to(self.device),
            self._look_up,
        )
        self._optimizer.param_groups[0]["lr"] = self._rate()
        with torch.autocast(self.device.type, dtype=torch.float16, enabled=self._amp):
            outputs = self.network(image)
        loss = masked_loss(outputs, target, mask)
        if loss is None:
            return
        if not math.isfinite(value := loss.item()):
            raise TrainingError(
                f"{self.bundle.name}: the loss is {value} at step {self._step}",
                "a finite loss",
                "lower learning_rate, or set amp to false, in the overrides",
            )
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._loss_sum += value
        self._loss_steps += 1

    def _rate(self) -> float:
        """The learning rate of this step: a cosine from its start to 0."""
        part = self._step / (self.config.num_epochs * self.config.num_steps_per_epoch)
        return self.config.learning_rate * 0.5 * (1 + math.cos(math.pi * part))

    def _go_on_or_leave(self) -> None:
        if self._stop():
            self._save_last()
            raise TrainingInterrupted(
                f"{self.bundle.name} was asked to end at step {self._step}",
                "to run to its end",
                "start it again, it goes on from its checkpoint",
            )

    def _finish_epoch(self) -> None:
        """Validate, keep the best model, save, report: in this order, so that a kill repeats."""
        started = time.monotonic() - self._seconds
        counts = validate(
            self.network,
            self.data.validation,
            self.data.states,
            self.config,
            self._go_on_or_leave,
        )
        # What a channel says of a class it never learned is no result.
        learnt = self.data.learnable
        dice = {name: d if name in learnt else None for name, d in counts.dice().items()}
        record = {
            "event": "epoch",
            "epoch": self._epoch + 1,
            "epochs": self.config.num_epochs,
            "loss": self._loss_sum / self._loss_steps if self._loss_steps else None,
            "dice": dice,
            "mean_dice": mean_dice(dice, self.data.learnable),
            "trivial_dice": counts.trivial(),
            "seconds": round(time.monotonic() - started, 3),
        }
        self._records.append(record)
        if history.is_better(record, self._best):
            self._best = record
            self._save_best(record)
        self._epoch += 1
        self._loss_sum, self._loss_steps, self._seconds = 0.0, 0, 0.0
        self._save_last()
        history.write_progress(self.folder, self._records)
        history.append(self.folder, record)
        logger.info("%s", history.readable(self.bundle.name, record))

    def _save_best(self, record: history.Record) -> None:
        model = checkpoint.Model(
            config_digest=self.config.digest,
            classes=list(self.config.classes),
            trained_classes=self.data.learnable,
            epoch=record["epoch"],
            dice=record["dice"],
            model=self.network.state_dict(),
        )
        checkpoint.save(self.folder / BEST_NAME, model)

    def _save_last(self) -> None:
        snapshot = checkpoint.Snapshot(
            config_digest=self.config.digest,
            epoch=self._epoch,
            step=self._step,
            loss_sum=self._loss_sum,
            loss_steps=self._loss_steps,
            seconds=self._seconds,
            records=self._records,
            best=self._best,
            model=self.network.state_dict(),
            optimizer=self._optimizer.state_dict(),
            scaler=self._scaler.state_dict(),
            rng=checkpoint.rng_state(),
        )
        checkpoint.save(self.folder / LAST_NAME, snapshot)

    def _resume(self) -> None:
        """Go on from the last checkpoint; a damaged one is said, and the training begins anew."""
        path = self.folder / LAST_NAME
        if path.is_file():
            try:
                state = checkpoint.load_snapshot(path, self.config.digest)
            except checkpoint.DamagedError as error:
                logger.warning("%s; %s begins anew", error, self.bundle.name)
            else:
                self._restore_whole(state)
        history.rewrite(self.folder, self._records)

    def _restore_whole(self, state: checkpoint.Snapshot) -> None:
        """Restore, if the best model that the snapshot speaks of is there and whole."""
        if state.best is not None:
            try:
                checkpoint.load_model(self.folder / BEST_NAME, self.config.digest)
            except CheckpointError as error:
                logger.warning("%s; %s begins anew", error, self.bundle.name)
                return
        self._restore(state)

    def _restore(self, state: checkpoint.Snapshot) -> None:
        self.network.load_state_dict(state.model)
        self._optimizer.load_state_dict(state.optimizer)
        self._scaler.load_state_dict(state.scaler)
        checkpoint.restore_rng(state.rng)
        self._epoch, self._step = state.epoch, state.step
        self._loss_sum, self._loss_steps = state.loss_sum, state.loss_steps
        self._seconds, self._records, self._best = state.seconds, state.records, state.best
        logger.info("%s goes on from epoch %d, step %d", self.bundle.name, state.epoch, state.step)

    def _finish(self) -> TrainResult:
        best = self._best
        if best is None or not (self.folder / BEST_NAME).is_file():
            raise CheckpointError(
                f"{self.bundle.name} has no {BEST_NAME}",
                "the best model",
                "remove its model folder",
            )
        result = TrainResult(
            done=1,
            bundle=self.bundle,
            checkpoint=self.folder / BEST_NAME,
            best_epoch=best["epoch"],
            epochs=self._epoch,
            mean_dice=best["mean_dice"],
            dice=best["dice"],
            trivial_dice=best["trivial_dice"],
            seconds=sum(r["seconds"] for r in self._records),
        )
        write_result(result, self.config)
        event = {
            "event": "done",
            "trained_classes": self.data.learnable,
            "device": self.device.type,
        }
        scores = {k: getattr(result, k) for k in ("best_epoch", "mean_dice", "dice", "seconds")}
        history.append(self.folder, {**event, **scores})
        return result

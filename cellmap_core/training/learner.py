"""A network that learns: one step of the optimizer at a time, and all the state that it has."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from cellmap_core.errors import TrainingError
from cellmap_core.inference.blocks import autocast_type
from cellmap_core.training.algorithms import algorithm
from cellmap_core.training.config import TrainConfig
from cellmap_core.training.loss import Level, masked_loss, weigh
from cellmap_core.training.patches import Batch, counts_of, images_of, targets_of
from cellmap_core.training.team import Team

logger = logging.getLogger(__name__)

_LAYOUT = torch.channels_last_3d


class Learner:
    """Network, optimizer, scaler and moving average of one training.

    Parameters
    ----------
    config : TrainConfig
        All values.
    network : Module
        With fresh weights.
    states : ndarray of uint8
        Shape (ids + 1, C), see `cellmap_core.training.patches.look_up`.
    team : Team
        The processes that share each batch.
    micro_batch : int, optional
        Patches at once (default: the configuration's).
    """

    #: Whether its epochs are validated and the best one is kept.
    validated = True

    def __init__(
        self,
        config: TrainConfig,
        network: torch.nn.Module,
        states: Any,
        team: Team,
        micro_batch: int | None = None,
    ) -> None:
        self.config, self.team = config, team
        self.micro_batch = micro_batch or config.micro_batch
        self._states = torch.from_numpy(states).to(team.device)
        self._weights = torch.tensor(config.class_weights, device=team.device)
        # Channels last is what convolutions are fastest with, on a CPU (a third) and on CUDA.
        self.network = network.to(team.device)
        self.network.to(memory_format=_LAYOUT)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(
            self.trained_weights(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self._type = autocast_type(config, team.device)
        self.scaler = torch.amp.GradScaler(team.device.type, enabled=self._type is torch.float16)
        self.average = (
            AveragedModel(network, multi_avg_fn=self._follow) if config.ema_decay else None
        )
        self._forward = self._callable()

    def trained_weights(self) -> list[torch.nn.Parameter]:
        """What the optimizer changes."""
        return list(self.network.parameters())

    def _callable(self) -> Any:
        """The network as it is called: spread over the processes, compiled."""
        network: Any = self.network
        if self.team.size > 1:
            network = DistributedDataParallel(
                network, find_unused_parameters=not algorithm(self.config.algo).uses_all_weights
            )
        if self.config.compile:
            # Where the compiler is missing or fails, it is said, and the network runs as it is.
            torch._dynamo.config.suppress_errors = True
            network = torch.compile(network)
        return network

    def _follow(self, averages: Any, weights: Any, steps: Any) -> None:
        """Move the average; over few steps while there have been few."""
        taken = int(steps)
        decay = min(self.config.ema_decay, (1 + taken) / (10 + taken))
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - decay)

    @property
    def best_network(self) -> torch.nn.Module:
        """What is validated and kept: the average, where there is one."""
        return self.network if self.average is None else self.average.module

    @property
    def learning_rate(self) -> float:
        """Of the last step."""
        rate: float = self.optimizer.param_groups[0]["lr"]
        return rate

    @property
    def architecture(self) -> dict[str, Any] | None:
        """What a search found of the network, where there was one."""
        found = getattr(self.config, "architecture", None)
        return None if found is None else found.model_dump()

    def step(self, batch: Batch, number: int) -> float | None:
        """Take one step of the optimizer.

        Parameters
        ----------
        batch : Batch
            This process's share of the step's patches.
        number : int
            Of the step, from the start of the training.

        Returns
        -------
        float or None
            The loss of the whole batch; None where nothing in it is known: no step was taken.

        Raises
        ------
        TrainingError
            Loss or gradient is not finite; no weight was changed. Or one patch alone is too
            much for the memory.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(number)
        loss = self._gradients(batch)
        if loss is None:
            return None
        self._check("loss", loss, batch, number)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.trained_weights(), self.config.gradient_clip)
        # With fp16 the scaler itself passes over a step that overflowed, and lowers its scale.
        if not self.scaler.is_enabled():
            self._check("gradient's norm", float(norm), batch, number)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.network)
        return loss

    def _rate(self, number: int) -> float:
        """The learning rate of a step: up along a line, then a cosine to 0."""
        config = self.config
        if number < config.warmup_steps:
            return config.learning_rate * (number + 1) / (config.warmup_steps + 1)
        steps = config.num_epochs * config.num_steps_per_epoch
        part = (number - config.warmup_steps) / max(1, steps - config.warmup_steps)
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * part))

    def _check(self, what: str, value: float, batch: Batch, number: int) -> None:
        if not math.isfinite(value):
            config = self.config
            raise TrainingError(
                f"{config.algo}_{config.fold}: the {what} is {value} at step {number}, with "
                f"patches {'; '.join(batch.places)}",
                "a finite number; no weight was changed",
                "look at these crops, lower learning_rate, or set precision to fp32, in the "
                "overrides",
            )

    def _gradients(self, batch: Batch) -> float | None:
        """Gradients of the batch, in micro-batches; halved where they do not fit."""
        while True:
            # Of all weights: some are no optimizer's of this step's.
            self.network.zero_grad(set_to_none=True)
            try:
                return self._accumulate(batch)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                self._shrink(str(error))

    def _shrink(self, message: str) -> None:
        """Halve the micro-batch; alone one process can go on with it at once."""
        self.network.zero_grad(set_to_none=True)
        if self.team.device.type == "cuda":
            torch.cuda.empty_cache()
        config = self.config
        name, first = f"{config.algo}_{config.fold}", message.splitlines()[0]
        if self.micro_batch == 1:
            raise TrainingError(
                f"{name}: out of memory with one patch of {config.patch_size_vox} ({first})",
                "a patch that fits",
                "set a smaller patch_size_vox or a narrower network in the overrides",
            )
        half = max(n for n in range(1, self.micro_batch) if self.micro_batch % n == 0)
        logger.warning(
            "%s: out of memory with %d patches at once; going on with %d (the same batch of %d, "
            "in more parts)", name, self.micro_batch, half, config.batch_size,
        )  # fmt: skip
        self.micro_batch = half
        if self.team.size > 1:
            raise TrainingError(
                f"{name}: out of memory in one of {self.team.size} processes",
                "room for its patches",
                f"set micro_batch to {half} in the overrides",
            )

    def _accumulate(self, batch: Batch) -> float | None:
        """Sum the gradients of all patches; the loss of the whole batch over all processes."""
        levels = self._weigh(batch)
        if levels is None:
            return None
        value = torch.zeros((), device=self.team.device)
        for start in range(0, len(batch.label), self.micro_batch):
            rows = slice(start, start + self.micro_batch)
            last = start + self.micro_batch >= len(batch.label)
            # Processes exchange gradients only once, with the last patches.
            with contextlib.nullcontext() if last or self.team.size == 1 else self._apart():
                loss = self._loss(batch, rows, levels)
                # The exchange takes the mean over the processes of what is a sum.
                self.scaler.scale(loss * self.team.size).backward()
            value += loss.detach()
        return float(self.team.add_up(value))

    def _apart(self) -> contextlib.AbstractContextManager[None]:
        apart: contextlib.AbstractContextManager[None] = self._forward.no_sync()
        return apart

    def _weigh(self, batch: Batch) -> list[Level] | None:
        target, mask = targets_of(batch, self._states)
        counts = counts_of(batch, self._states, self.config.output_levels)
        return weigh(target, mask, counts, self._weights, self.team.add_up)

    def _loss(self, batch: Batch, rows: slice, levels: Sequence[Level]) -> torch.Tensor:
        image = images_of(batch, rows, self.config.normalisation, self.team.device)
        with torch.autocast(
            self.team.device.type, dtype=self._type, enabled=self._type is not torch.float32
        ):
            outputs = self._forward(image.to(memory_format=_LAYOUT))
        return masked_loss(outputs, [level.part(rows) for level in levels], self.config.activation)

    def state(self) -> dict[str, Any]:
        """All that a later process needs to go on bit by bit."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "micro_batch": self.micro_batch,
        }

    def fits(self, state: dict[str, Any]) -> bool:
        """Whether a state is of a network like this one's."""
        own, other = self.network.state_dict(), state.get("network", {})
        return own.keys() == other.keys() and all(
            value.shape == other[name].shape for name, value in own.items()
        )

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        # A checkpoint of a device that computes without a scaler has no state of one.
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.micro_batch = min(self.micro_batch, state["micro_batch"])


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch says that memory is wanting, of a GPU or of the machine."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)

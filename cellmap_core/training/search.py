"""The search for an architecture (DiNTS): weights and architecture learn in turns.

The weights learn from the training's patches, the architecture from others of the same cases
(He et al., CVPR 2021, alternate between two halves of the cases; crops of CellMap are few, and
many classes lie in one or two of them, so that a half would not hold all classes).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cellmap_core.errors import CheckpointError
from cellmap_core.training.algorithms.dints import (
    Architecture,
    DintsConfig,
    build_space,
    read_architecture,
    write_architecture,
)
from cellmap_core.training.checkpoint import load_model
from cellmap_core.training.data import FoldData
from cellmap_core.training.learner import Learner
from cellmap_core.training.patches import SEARCH_STREAM, Batch
from cellmap_core.training.result import BEST_NAME
from cellmap_core.training.team import Team
from cellmap_core.training.trainer import Trainer

logger = logging.getLogger(__name__)

SEARCH_FOLDER = "search"
# The architecture waits for this part of the search until the weights mean something.
_WAITS = 1 / 3
# Betas of Adam and the weight of the topology's entropy, as published.
_BETAS = (0.5, 0.999)
_ENTROPY_WEIGHT = 1e-3


def searched(
    config: DintsConfig, data: FoldData, folder: Path, stop: Callable[[], bool], team: Team
) -> DintsConfig:
    """The configuration with its architecture: found before, or searched for now.

    Parameters
    ----------
    config : DintsConfig
        All values.
    data : FoldData
        Of the fold.
    folder : Path
        The bundle's model folder; the search has a folder of its own in it.
    stop : callable
        See `Trainer`.
    team : Team
        The processes.
    """
    found = read_architecture(folder, config) or _of_best(folder, config)
    if found is None:
        logger.info("%s_%d searches an architecture first", config.algo, config.fold)
        learner = SearchLearner(search_config(config), data, team)
        Trainer(learner, data, folder / SEARCH_FOLDER, stop, " search").run()
        found = learner.decoded(config.digest)
        if team.leads:
            write_architecture(folder, found)
            # The whole space's checkpoints are several times those of what was found in it.
            for checkpoint in (folder / SEARCH_FOLDER).glob("*.pt"):
                checkpoint.unlink()
    return config.model_copy(update={"architecture": found})


def _of_best(folder: Path, config: DintsConfig) -> Architecture | None:
    """What the best model was built from, where ``architecture.json`` is lost."""
    try:
        kept = load_model(folder / BEST_NAME, config.digest).architecture
    except CheckpointError:
        return None
    return None if kept is None else Architecture.model_validate(kept)


def search_config(config: DintsConfig) -> DintsConfig:
    """A short training of the whole space, which nobody will predict with."""
    epochs = config.search_epochs
    steps = epochs * config.num_steps_per_epoch
    return config.model_copy(
        update={
            "num_epochs": epochs,
            "validate_every": epochs,
            "early_stop_epochs": 0,
            "ema_decay": 0.0,
            "compile": False,
            "warmup_steps": min(config.warmup_steps, steps // 20),
        }
    )


class SearchLearner(Learner):
    """A learner whose network is the whole space.

    Parameters
    ----------
    config : DintsConfig
        Of the search.
    data : FoldData
        Its sampler draws the patches that the architecture learns from.
    team : Team
        The processes.
    """

    config: DintsConfig
    #: Nobody predicts with the whole space.
    validated = False

    def __init__(self, config: DintsConfig, data: FoldData, team: Team) -> None:
        super().__init__(config, build_space(config), data.look_up, team)
        self._sampler = data.sampler
        self._space: Any = self.network.dints_space
        self._chooser = torch.optim.Adam(
            self._chosen(),
            lr=config.search_learning_rate,
            betas=_BETAS,
        )

    def trained_weights(self) -> list[torch.nn.Parameter]:
        """All but the architecture's own."""
        own = {id(p) for p in self._chosen()}
        return [p for p in self.network.parameters() if id(p) not in own]

    def _chosen(self) -> list[torch.nn.Parameter]:
        """The architecture's own parameters: of the paths, and of the cells."""
        space: Any = self.network.dints_space
        return [space.log_alpha_a, space.log_alpha_c]

    def step(self, batch: Batch, number: int) -> float | None:
        """A step of the weights and, after a while, one of the architecture."""
        loss = super().step(batch, number)
        total = self.config.num_epochs * self.config.num_steps_per_epoch
        if number >= _WAITS * total:
            mine = self.team.share(self.config.batch_size)
            self._choose(self._sampler.batch(number, mine, SEARCH_STREAM), number / total)
        return loss

    def _choose(self, batch: Batch, part: float) -> None:
        """Change the architecture: by the loss, for a clear choice, within the memory.

        Parameters
        ----------
        batch : Batch
            Patches that the weights did not see in this step.
        part : float
            Of the search that is over; the choice gets clearer with it.
        """
        if self._gradients(batch) is None:
            return
        chosen = self._chosen()
        # The scaled gradients of the loss, and beside them those of what no patch tells.
        scale = self.scaler.get_scale() if self.scaler.is_enabled() else 1.0
        for weight in chosen:
            if weight.grad is not None:
                weight.grad.div_(scale)
        self._preference(part).backward()
        if all(bool(torch.isfinite(w.grad).all()) for w in chosen if w.grad is not None):
            self._chooser.step()
        self.network.zero_grad(set_to_none=True)

    def _preference(self, part: float) -> torch.Tensor:
        """Entropy of cells and topology, and memory beyond the budget."""
        space = self._space
        probabilities, paths = space.get_prob_a(child=True)
        cells = torch.softmax(space.log_alpha_c, dim=-1)
        entropy = -(cells * torch.log(cells + 1e-5)).sum(dim=-1).mean()
        entropy = (
            entropy
            - (paths * torch.log(paths + 1e-5) + (1 - paths) * torch.log(1 - paths + 1e-5)).mean()
        )
        topology = space.get_topology_entropy(probabilities)
        shape = (self.config.batch_size, space.filter_nums[0], *self.config.patch_size_vox)
        used = space.get_ram_cost_usage(shape) / space.get_ram_cost_usage(shape, full=True)
        beyond = torch.abs(self.config.memory_budget - used)
        total: torch.Tensor = part * entropy + _ENTROPY_WEIGHT * topology + beyond
        return total

    def decoded(self, digest: str) -> Architecture:
        """The likeliest architecture."""
        nodes, paths, cells, _ = self._space.decode()
        return Architecture(
            config_digest=digest,
            nodes=nodes.astype(int).tolist(),
            paths=paths.astype(int).tolist(),
            cells=cells.astype(int).tolist(),
        )

    def state(self) -> dict[str, Any]:
        """All that a later process needs to go on bit by bit."""
        return super().state() | {"chooser": self._chooser.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state."""
        super().restore(state)
        self._chooser.load_state_dict(state["chooser"])

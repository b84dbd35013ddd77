"""The algorithms: for each its values, the rules that derive them, and its network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cellmap_core.errors import OptionError
from cellmap_core.training.algorithms.algorithm import Algorithm
from cellmap_core.training.algorithms.dints import DINTS, Architecture
from cellmap_core.training.algorithms.segresnet import SEGRESNET
from cellmap_core.training.algorithms.swinunetr import SWINUNETR
from cellmap_core.training.config import TrainConfig

if TYPE_CHECKING:
    import torch

ALGORITHMS: dict[str, Algorithm] = {a.name: a for a in (SEGRESNET, SWINUNETR, DINTS)}


def algorithm(name: str) -> Algorithm:
    """The algorithm of a name.

    Raises
    ------
    OptionError
        There is none.
    """
    if name not in ALGORITHMS:
        raise OptionError(f"no algorithm {name}", f"any of {', '.join(ALGORITHMS)}")
    return ALGORITHMS[name]


def with_architecture(config: TrainConfig, found: dict[str, Any] | None) -> TrainConfig:
    """The configuration with what a search found, as a checkpoint holds it."""
    if found is None:
        return config
    return config.model_copy(update={"architecture": Architecture.model_validate(found)})


def build_network(config: TrainConfig) -> torch.nn.Module:
    """Build the network of a configuration, with fresh weights.

    Returns
    -------
    Module
        (B, 1, z, y, x) → (B, channels, z, y, x) logits; where the configuration has several
        output levels, while training a list of them, the finest first.

    Raises
    ------
    OptionError
        There is no such algorithm.
    """
    return algorithm(config.algo).build(config)

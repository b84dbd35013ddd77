"""What an algorithm is: its values, the rules that derive them, its network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cellmap_core.training.config import TrainConfig
from cellmap_core.training.facts import Facts

if TYPE_CHECKING:
    import torch

#: Value, reason, and the numbers it follows from.
Made = tuple[Any, str, dict[str, Any]]
#: Makes one value of the facts and the values so far.
Maker = Callable[[Facts, Mapping[str, Any]], Made]


@dataclass(frozen=True)
class Need:
    """Memory that a network takes while it trains in float32.

    Attributes
    ----------
    parameters : float
        Number of its weights.
    voxel_bytes : float
        What it keeps for the gradient, a voxel of the patch; measured (`tests.bench.train`).
    """

    parameters: float
    voxel_bytes: float


@dataclass(frozen=True)
class Algorithm:
    """One algorithm.

    Attributes
    ----------
    name : str
        Of its template, its bundles and in ``--algos``.
    config : type
        Its values.
    multiple, least_edge : int
        Patch edges are multiples of the one and not below the other (voxels).
    width_rules, depth_rules : dict
        Field → rule, in order; the patch size is derived between the two.
    learning_rate : callable
        Rule.
    need : callable
        Values so far → memory.
    build : callable
        Configuration → network with fresh weights. It alone imports torch.
    uses_all_weights : bool
        Whether every weight has a gradient in every step.
    """

    name: str
    config: type[TrainConfig]
    multiple: int
    least_edge: int
    width_rules: dict[str, Maker]
    depth_rules: dict[str, Maker]
    learning_rate: Maker
    need: Callable[[Mapping[str, Any]], Need]
    build: Callable[[TrainConfig], torch.nn.Module]
    uses_all_weights: bool = True

"""DiNTS of MONAI: searches a network's topology on the data, then trains what it found.

He et al., "DiNTS: Differentiable Neural Network Topology Search for 3D Medical Image
Segmentation", CVPR 2021. The search is ``cellmap_core.training.search``; what it found is
``architecture.json`` in the bundle's model folder.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from cellmap_core.errors import CheckpointError
from cellmap_core.models import Frozen
from cellmap_core.provenance import write_json
from cellmap_core.training.algorithms.algorithm import Algorithm, Made, Need
from cellmap_core.training.config import Positive, TrainConfig
from cellmap_core.training.facts import Facts

if TYPE_CHECKING:
    import torch

ARCHITECTURE_NAME = "architecture.json"
# MONAI's space has 32 channels at its finest level, times channel_mul.
_WIDTH, _RATE, _ARCH_RATE = 32, 2e-4, 1e-3
_BLOCKS, _DEPTHS = 12, 4
# Of a cell in three dimensions.
_OPERATIONS = 5


class Architecture(Frozen):
    """What a search found.

    Attributes
    ----------
    config_digest : str
        Of the configuration it was searched with.
    nodes : list
        (blocks + 1, depths): which feature maps there are.
    paths : list
        (blocks, paths): which connections there are.
    cells : list
        (blocks, paths): the operation of each.
    """

    config_digest: str
    nodes: list[list[int]]
    paths: list[list[int]]
    cells: list[list[int]]


class DintsConfig(TrainConfig):
    """The values of ``dints``.

    Attributes
    ----------
    channel_mul : float
        Width of the space: 32 channels at its finest level, times this.
    num_blocks, num_depths : int
        Length of the space, and its resolutions; the finest is half of the image's.
    search_epochs : int
        Epochs of the search, before those of the training.
    search_learning_rate : float
        Of the architecture's own parameters.
    memory_budget : float
        Part of the full space's memory that the search aims at.
    architecture : Architecture or None
        What the search found; never in ``hyper_parameters.yaml``, but in each checkpoint.
    """

    algo: Literal["dints"]
    channel_mul: Annotated[float, Field(ge=0.125, le=2)]
    num_blocks: Annotated[int, Field(ge=2, le=24)]
    num_depths: Annotated[int, Field(ge=2, le=4)]
    search_epochs: Positive
    search_learning_rate: Annotated[float, Field(gt=0, le=1)] = _ARCH_RATE
    memory_budget: Annotated[float, Field(gt=0, le=1)] = 0.5
    architecture: Architecture | None = None

    @property
    def divisor(self) -> int:
        """A factor of two for each resolution, and one for the stem."""
        return 1 << (self.num_depths + 1)


def write_architecture(folder: Path, found: Architecture) -> None:
    """Write ``architecture.json``, whole or not at all."""
    write_json(folder / ARCHITECTURE_NAME, found.model_dump())


def read_architecture(folder: Path, config: TrainConfig) -> Architecture | None:
    """What an earlier search with this configuration found; None where there was none."""
    try:
        found = Architecture.model_validate(json.loads((folder / ARCHITECTURE_NAME).read_bytes()))
    except (OSError, ValueError, ValidationError):
        return None
    return found if found.config_digest == config.digest and _whole(found, config) else None


def _whole(found: Architecture, config: TrainConfig) -> bool:
    """Whether all rows are there and hold what they may."""
    assert isinstance(config, DintsConfig)
    blocks, depths = config.num_blocks, config.num_depths
    paths = 3 * depths - 2
    parts = ((found.nodes, blocks + 1, depths, 1), (found.paths, blocks, paths, 1))
    return all(
        len(part) == rows
        and all(len(r) == columns and set(r) <= set(range(most + 1)) for r in part)
        for part, rows, columns, most in (*parts, (found.cells, blocks, paths, _OPERATIONS - 1))
    )


def _width(_: Facts, __: Mapping[str, Any]) -> Made:
    return 1.0, f"MONAI's {_WIDTH} channels at the finest level of the space", {}


def _blocks(_: Facts, __: Mapping[str, Any]) -> Made:
    return _BLOCKS, "the length of the published space", {}


def _depths(_: Facts, __: Mapping[str, Any]) -> Made:
    return _DEPTHS, "the resolutions of the published space, 1/2 to 1/16", {}


def _search_epochs(_: Facts, values: Mapping[str, Any]) -> Made:
    return (
        max(1, values["num_epochs"] // 4),
        "a quarter of the training's epochs: a step of the search costs several of the training's",
        {"num_epochs": values["num_epochs"]},
    )


def _rate(_: Facts, values: Mapping[str, Any]) -> Made:
    width = values["channel_mul"]
    return (
        _RATE / width,
        f"{_RATE:g} for {_WIDTH} channels with AdamW, inversely to the width",
        {"channel_mul": width},
    )


def _need(values: Mapping[str, Any]) -> Need:
    """Of the search, which holds the whole space; what it finds takes a sixth of it."""
    width = _WIDTH * values["channel_mul"]
    depths, blocks = values["num_depths"], values["num_blocks"]
    return Need(190 * width**2 * blocks * 4**depths, 58 * blocks * width)


def _build(config: TrainConfig) -> torch.nn.Module:
    """The network that the search found."""
    assert isinstance(config, DintsConfig)
    found = config.architecture
    if found is None:
        raise CheckpointError(
            f"dints_{config.fold} has no architecture yet",
            "what its search found",
            "train the bundle: it begins with the search",
        )
    import torch
    from monai.networks.nets.dints import TopologyInstance

    code = [np.array(found.paths, dtype=float), np.array(found.cells)]
    network: torch.nn.Module = _dints(
        config, TopologyInstance, torch.tensor(found.nodes), arch_code=code
    )
    return network


def build_space(config: DintsConfig) -> torch.nn.Module:
    """The whole space, as the search trains it."""
    from monai.networks.nets.dints import TopologySearch

    network: torch.nn.Module = _dints(config, TopologySearch, None)
    return network


def _dints(config: DintsConfig, kind: Any, nodes: torch.Tensor | None, **more: Any) -> Any:
    from monai.networks.nets.dints import DiNTS

    # MONAI prints a hint on patch sizes, which our own check makes superfluous.
    with contextlib.redirect_stdout(io.StringIO()):
        space = kind(
            channel_mul=config.channel_mul,
            num_blocks=config.num_blocks,
            num_depths=config.num_depths,
            use_downsample=True,
            **more,
        )
    return DiNTS(
        space, in_channels=1, num_classes=config.channels, use_downsample=True, node_a=nodes
    )


DINTS = Algorithm(
    name="dints",
    config=DintsConfig,
    multiple=32,
    least_edge=32,
    width_rules={"channel_mul": _width, "num_blocks": _blocks, "num_depths": _depths},
    depth_rules={"search_epochs": _search_epochs},
    learning_rate=_rate,
    need=_need,
    build=_build,
    # Stems of resolutions that the search left out are there, but not used.
    uses_all_weights=False,
)

"""Algorithm → network: one input channel, one sigmoid channel a class."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.networks.nets.segresnet_ds import SegResNetDS

from cellmap_core.errors import OptionError
from cellmap_core.training.config import TrainConfig


def build_network(config: TrainConfig) -> torch.nn.Module:
    """Build the network of a configuration, with fresh weights.

    Returns
    -------
    Module
        (B, 1, z, y, x) → (B, C, z, y, x) logits; while training a list of them, each of half
        the size of the one before (deep supervision).

    Raises
    ------
    OptionError
        There is no network for the algorithm.
    """
    if config.algo not in _NETWORKS:
        raise OptionError(f"no network for {config.algo}", f"any of {', '.join(_NETWORKS)}")
    return _NETWORKS[config.algo](config)


def _segresnet(config: TrainConfig) -> torch.nn.Module:
    network: torch.nn.Module = SegResNetDS(
        init_filters=config.init_filters,
        blocks_down=config.blocks_down,
        in_channels=1,
        out_channels=len(config.classes),
        dsdepth=config.dsdepth,
        # Batches are too small for batch statistics, and a window must not see its neighbours.
        norm="instance",
    )
    return network


_NETWORKS: dict[str, Callable[[TrainConfig], torch.nn.Module]] = {"segresnet": _segresnet}

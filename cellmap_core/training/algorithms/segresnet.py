"""SegResNetDS of MONAI: a residual encoder and decoder with deep supervision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from cellmap_core.training.algorithms.algorithm import Algorithm, Made, Need
from cellmap_core.training.config import Positive, TrainConfig
from cellmap_core.training.facts import Facts

if TYPE_CHECKING:
    import torch

# Filters of the first level of Auto3DSeg's SegResNet, and the learning rate it has with them.
_WIDTH, _RATE = 32, 2e-4
_BOTTLENECK_VOX = 4
# A patch that no two halvings fit is refused, not made a network that sees nothing around.
_LEAST_LEVELS = 3
_BLOCKS_DOWN = (1, 2, 2, 4, 4)


class SegResNetConfig(TrainConfig):
    """The values of ``segresnet``.

    Attributes
    ----------
    init_filters : int
        Channels of the finest level; each coarser one has twice as many.
    blocks_down : tuple of int
        Residual blocks of each level of the encoder.
    dsdepth : int
        Decoder levels that have an output and a loss (deep supervision).
    """

    algo: Literal["segresnet"]
    init_filters: Annotated[int, Field(ge=8)]
    blocks_down: Annotated[tuple[Positive, ...], Field(min_length=1)]
    dsdepth: Positive

    @property
    def divisor(self) -> int:
        """A factor of two for each level but the finest."""
        return 1 << (len(self.blocks_down) - 1)

    @property
    def output_levels(self) -> int:
        """As many as the decoder has outputs, at most its levels."""
        return min(self.dsdepth, max(1, len(self.blocks_down) - 1))


def _filters(_: Facts, __: Mapping[str, Any]) -> Made:
    return _WIDTH, "the width of Auto3DSeg's own SegResNet", {}


def _blocks(_: Facts, values: Mapping[str, Any]) -> Made:
    patch = values["patch_size_vox"]
    levels = _LEAST_LEVELS
    while levels < len(_BLOCKS_DOWN) and all(
        n % 2**levels == 0 and n // 2**levels >= _BOTTLENECK_VOX for n in patch
    ):
        levels += 1
    return (
        _BLOCKS_DOWN[:levels],
        f"as many levels (at most {len(_BLOCKS_DOWN)}) as leave {_BOTTLENECK_VOX} voxels at the "
        "lowest",
        {"patch_size_vox": list(patch)},
    )


def _dsdepth(_: Facts, values: Mapping[str, Any]) -> Made:
    levels = len(values["blocks_down"])
    return (
        max(1, min(4, levels - 1)),
        "an output at each decoder level, at most 4",
        {"levels": levels},
    )


def _rate(_: Facts, values: Mapping[str, Any]) -> Made:
    width = values["init_filters"]
    return (
        _RATE * _WIDTH / width,
        f"Auto3DSeg's {_RATE:g} for {_WIDTH} filters with AdamW, inversely to the width: Adam's "
        "steps add up over a layer's inputs",
        {"init_filters": width},
    )


def _need(values: Mapping[str, Any]) -> Need:
    """Two convolutions a block, one block a decoder level, two convolutions between levels."""
    blocks = values.get("blocks_down", _BLOCKS_DOWN)
    widths = [values["init_filters"] * 2**i for i in range(len(blocks))]
    parameters = sum(54 * n * w**2 for n, w in zip(blocks, widths, strict=True))
    parameters += sum(54 * w**2 + 81 * w**2 for w in widths[:-1])
    return Need(parameters, 60 * widths[0])


def _build(config: TrainConfig) -> torch.nn.Module:
    from monai.networks.nets.segresnet_ds import SegResNetDS

    assert isinstance(config, SegResNetConfig)
    network: torch.nn.Module = SegResNetDS(
        init_filters=config.init_filters,
        blocks_down=config.blocks_down,
        in_channels=1,
        out_channels=config.channels,
        dsdepth=config.output_levels,
        # Batches are too small for batch statistics, and a window must not see its neighbours.
        norm="instance",
    )
    return network


SEGRESNET = Algorithm(
    name="segresnet",
    config=SegResNetConfig,
    multiple=16,
    least_edge=32,
    width_rules={"init_filters": _filters},
    depth_rules={"blocks_down": _blocks, "dsdepth": _dsdepth},
    learning_rate=_rate,
    need=_need,
    build=_build,
)

"""SwinUNETR of MONAI: an encoder of shifted-window attention, a decoder of convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from cellmap_core.training.algorithms.algorithm import Algorithm, Made, Need
from cellmap_core.training.config import TrainConfig
from cellmap_core.training.facts import Facts

if TYPE_CHECKING:
    import torch

# Features and learning rate of the published network (Hatamizadeh et al., "Swin UNETR", 2022).
_WIDTH, _RATE = 48, 1e-4


class SwinUnetrConfig(TrainConfig):
    """The values of ``swinunetr``.

    Attributes
    ----------
    feature_size : int
        Channels of the finest level; a multiple of 12, which its attention heads share.
    use_checkpoint : bool
        Whether attention is computed again for the gradient instead of kept: half of the
        memory, a third more time.
    """

    algo: Literal["swinunetr"]
    feature_size: Annotated[int, Field(ge=12, multiple_of=12)]
    use_checkpoint: bool

    @property
    def divisor(self) -> int:
        """Five halvings."""
        return 32


def _features(_: Facts, __: Mapping[str, Any]) -> Made:
    return _WIDTH, "the width of the published network", {}


def _checkpoint(facts: Facts, _: Mapping[str, Any]) -> Made:
    return (
        facts.memory.kind == "gpu",
        "a GPU's memory is scarcer than its time; a machine's memory is not",
        {"memory": facts.memory.kind},
    )


def _rate(_: Facts, values: Mapping[str, Any]) -> Made:
    width = values["feature_size"]
    return (
        _RATE * _WIDTH / width,
        f"the published {_RATE:g} for {_WIDTH} features with AdamW, inversely to the width",
        {"feature_size": width},
    )


def _need(values: Mapping[str, Any]) -> Need:
    width = values["feature_size"]
    voxel_bytes = 75 if values.get("use_checkpoint") else 150
    return Need(27.2e3 * width**2, voxel_bytes * width)


def _build(config: TrainConfig) -> torch.nn.Module:
    from monai.networks.nets.swin_unetr import SwinUNETR

    assert isinstance(config, SwinUnetrConfig)
    network: torch.nn.Module = SwinUNETR(
        in_channels=1,
        out_channels=config.channels,
        feature_size=config.feature_size,
        use_checkpoint=config.use_checkpoint,
    )
    return network


SWINUNETR = Algorithm(
    name="swinunetr",
    config=SwinUnetrConfig,
    multiple=32,
    # Instance norm at the lowest level needs more than one voxel.
    least_edge=64,
    width_rules={"feature_size": _features, "use_checkpoint": _checkpoint},
    depth_rules={},
    learning_rate=_rate,
    need=_need,
    build=_build,
)

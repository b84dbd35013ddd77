"""How long a training takes: its floating-point operations over what a device does a second.

What a device does is measured where trainings of the work folder have epochs behind them, and
assumed where none has. The assumptions are orders of magnitude, and every plan says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from cellmap_core.bundles.names import is_ours
from cellmap_core.cluster.cases import CaseSize, CaseSizes
from cellmap_core.errors import CellmapError
from cellmap_core.models import BundleRef, Frozen
from cellmap_core.training.algorithms.dints import DintsConfig
from cellmap_core.training.algorithms.segresnet import SegResNetConfig
from cellmap_core.training.algorithms.swinunetr import SwinUnetrConfig
from cellmap_core.training.config import TrainConfig
from cellmap_core.training.config_files import read_bundle_config
from cellmap_core.training.launch import read_epochs

Device = Literal["gpu", "host"]

# Assumed, operations a second. Three-dimensional convolutions with instance norms in 16 bits
# are bound by memory: they reach a few to some tens of 10^12 on data-centre GPUs, a small part
# of what data sheets promise. One core of a CPU was measured at 15 (8 filters) to 70 (32
# filters) of 10^9 in float32.
ASSUMED_FLOPS: dict[Device, float] = {"gpu": 15e12, "host": 30e9}

# A gradient takes twice what the prediction takes.
_BACKWARD = 2
# Operations of one 3 x 3 x 3 convolution, a voxel: a product and a sum for each of 27 weights.
_CONVOLUTION = 2 * 27
# Counted by torch's FlopCounterMode, a voxel and squared width: 320 to 338 of SwinUNETR; of
# DiNTS a block 297 of the whole space and 43 of an architecture taken from it at random.
_SWIN, _SPACE, _FOUND = 320, 297, 43
_DINTS_WIDTH = 32


class Speed(Frozen):
    """What a device does a second on the trainings of an algorithm.

    Attributes
    ----------
    flops : float
        Operations a second of one training.
    epochs : int
        That were timed; 0 where the figure is assumed.
    """

    flops: float
    epochs: int = 0


def forward_flops(config: TrainConfig) -> float:
    """Operations that the prediction of a voxel takes, of the trained network."""
    if isinstance(config, SegResNetConfig):
        return _segresnet(config)
    if isinstance(config, SwinUnetrConfig):
        return float(_SWIN * config.feature_size**2)
    assert isinstance(config, DintsConfig)
    return float(_FOUND * config.num_blocks * (_DINTS_WIDTH * config.channel_mul) ** 2)


def step_flops(config: TrainConfig) -> float:
    """Operations that a voxel of a training step takes: prediction and gradient."""
    again = 1 if isinstance(config, SwinUnetrConfig) and config.use_checkpoint else 0
    return forward_flops(config) * (1 + again + _BACKWARD)


def training_flops(
    config: TrainConfig, validation: Iterable[CaseSize], epochs: int, validations: int
) -> float:
    """Operations of some epochs of a training and of the validations among them."""
    epoch = config.num_steps_per_epoch * config.batch_size * math.prod(config.patch_size_vox)
    return epochs * epoch * step_flops(config) + validations * prediction_flops(config, validation)


def prediction_flops(config: TrainConfig, cases: Iterable[CaseSize]) -> float:
    """Operations of the prediction of whole cases; each window overlaps its neighbours."""
    voxels = sum(case.voxels for case in cases)
    return voxels / (1 - config.overlap) ** 3 * forward_flops(config)


def total_flops(config: TrainConfig, validation: Iterable[CaseSize]) -> float:
    """Operations of a whole training that does not stop early, its search included."""
    validations = math.ceil(config.num_epochs / config.validate_every)
    total = training_flops(config, validation, config.num_epochs, validations)
    return total + (search_flops(config) if isinstance(config, DintsConfig) else 0)


def search_flops(config: DintsConfig) -> float:
    """Operations of a search: weights and architecture each take a step in their turn."""
    width = _DINTS_WIDTH * config.channel_mul
    voxel = _SPACE * config.num_blocks * width**2 * (1 + _BACKWARD)
    step = config.batch_size * math.prod(config.patch_size_vox)
    return float(2 * config.search_epochs * config.num_steps_per_epoch * step * voxel)


def assumed_speed(device: Device, processors: int) -> Speed:
    """What is assumed of a training on so many GPUs, or cores."""
    return Speed(flops=ASSUMED_FLOPS[device] * max(1, processors))


def measured_speed(
    work_dir: Path, algo: str, folds: Iterable[int], sizes: CaseSizes, device: Device
) -> Speed | None:
    """What the epochs of earlier trainings of a work folder tell; None where there are none."""
    done, seconds, epochs = 0.0, 0.0, 0
    for fold in folds:
        bundle = BundleRef(algo=algo, fold=fold, folder=work_dir / f"{algo}_{fold}")
        records = [r for r in read_epochs(bundle) if _device_of(r) == device and r["seconds"] > 0]
        if not records or not is_ours(bundle.folder):
            continue
        try:
            config = read_bundle_config(bundle.folder)
        except CellmapError:
            continue
        validations = sum(1 for r in records if r["dice"])
        _, validated = sizes.split(fold)
        done += training_flops(config, validated, len(records), validations)
        seconds += sum(r["seconds"] for r in records)
        epochs += len(records)
    return Speed(flops=done / seconds, epochs=epochs) if epochs else None


def _device_of(record: Mapping[str, Any]) -> Device:
    return "gpu" if (record.get("memory") or {}).get("device_bytes") else "host"


def _segresnet(config: SegResNetConfig) -> float:
    """Level by level: widths double and voxels fall to an eighth, so that a level counts half.

    A block has two convolutions; between two levels there are the decoder's block and a
    convolution down and one up.
    """
    first = config.init_filters**2
    blocks = sum(2 * n / 2**i for i, n in enumerate(config.blocks_down))
    between = sum(2.5 / 2**i for i in range(len(config.blocks_down) - 1))
    return float(_CONVOLUTION * first * (blocks + between))

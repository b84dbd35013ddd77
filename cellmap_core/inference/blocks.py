"""Prediction block by block: memory is that of a block, whatever the size of the volume."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from numpy.typing import NDArray

from cellmap_core.training.config import TrainConfig
from cellmap_core.training.mapped_volume import Volume

# Probabilities and weights of one block, float32, before it is cut to its core.
_BLOCK_BYTES = 512 << 20
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Cores in multiples of this, so that a chunk of the output is written once.
_MULTIPLE_VOX = 64


@dataclass(frozen=True)
class Block:
    """A part of a volume: what is read, and what of it is kept.

    Attributes
    ----------
    outer, core : tuple of slice
        In the volume (z, y, x): with its halo, and without.
    inner : tuple of slice
        The core, in the outer part.
    """

    outer: tuple[slice, ...]
    core: tuple[slice, ...]
    inner: tuple[slice, ...]


def blocks(
    shape: Sequence[int], core_vox: Sequence[int], halo_vox: Sequence[int]
) -> Iterator[Block]:
    """Cover a volume with blocks whose cores touch and do not overlap."""
    starts = [range(0, n, size) for n, size in zip(shape, core_vox, strict=True)]
    for corner in itertools.product(*starts):
        outer, core, inner = [], [], []
        for at, n, size, halo in zip(corner, shape, core_vox, halo_vox, strict=True):
            low, high = max(0, at - halo), min(n, at + size + halo)
            outer.append(slice(low, high))
            core.append(slice(at, min(n, at + size)))
            inner.append(slice(at - low, min(n, at + size) - low))
        yield Block(tuple(outer), tuple(core), tuple(inner))


def plan_blocks(
    shape: Sequence[int], configs: Sequence[TrainConfig], budget_bytes: int = _BLOCK_BYTES
) -> list[Block]:
    """Blocks that fit the budget, with a halo of a quarter window of the largest model.

    A window's weight falls off towards its rim; a quarter window in, another one counts more.
    """
    window = [max(c.patch_size_vox[axis] for c in configs) for axis in range(3)]
    halo = [n // 4 for n in window]
    channels = max(c.channels for c in configs)
    # The probabilities, their sum over members, the weights and the image.
    edge = int((budget_bytes / (4 * (2 * channels + 2))) ** (1 / 3))
    core = [max(w, edge - 2 * h) for w, h in zip(window, halo, strict=True)]
    core = [c // _MULTIPLE_VOX * _MULTIPLE_VOX if c > _MULTIPLE_VOX else c for c in core]
    return list(blocks(shape, core, halo))


@torch.no_grad()
def predict_block(
    network: torch.nn.Module, image: Volume, block: Block, config: TrainConfig
) -> NDArray[np.float32]:
    """Probabilities (C, z, y, x) of a block's core.

    Parameters
    ----------
    network : Module
        In eval mode, on the device to use.
    image : Volume
        The whole volume (z, y, x), mapped; only the block is read.
    block : Block
        Where.
    config : TrainConfig
        Window, overlap and normalisation.
    """
    device = next(network.parameters()).device
    part = config.normalisation.apply(np.asarray(image[block.outer]))
    dtype = autocast_type(config, device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32):
        logits = sliding_window_inference(
            torch.from_numpy(part)[None, None].to(device),
            roi_size=config.patch_size_vox,
            sw_batch_size=config.sw_batch_size,
            predictor=network,
            overlap=config.overlap,
            mode="gaussian",
        )
    assert isinstance(logits, torch.Tensor)
    z, y, x = block.inner
    core = logits[0, :, z, y, x].float()
    # The background of softmax is no class.
    likely = torch.sigmoid(core) if config.activation == "sigmoid" else core.softmax(dim=0)[1:]
    probabilities: NDArray[np.float32] = likely.cpu().numpy()
    return probabilities


def autocast_type(config: TrainConfig, device: torch.device) -> torch.dtype:
    """The type that a network computes in: as asked for, or what suits the device."""
    if config.precision != "auto":
        return _TYPES[config.precision]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16

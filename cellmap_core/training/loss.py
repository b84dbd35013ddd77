"""Masked Dice and cross entropy: what is unknown gives exactly no gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

# Keeps Dice defined, and its gradient small, for a class that is absent from the batch.
_SMOOTH = 1.0


def masked_loss(
    outputs: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor | None:
    """Loss over the known voxels, at every level of deep supervision.

    Parameters
    ----------
    outputs : Tensor or sequence of Tensor
        Logits (B, C, z, y, x), the finest first; level i counts half as much as level i − 1.
    target, mask : Tensor of bool
        Shape (B, C, z, y, x) of the finest level: present, and known. Coarser levels take
        the voxels at the same places of both.

    Returns
    -------
    Tensor or None
        A scalar; None where no voxel of any class is known, so that there is no step.
    """
    levels = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    total: torch.Tensor | None = None
    weights = 0.0
    for depth, logits in enumerate(levels):
        level = _one_level(logits, _resize(target, logits), _resize(mask, logits))
        if level is not None:
            total = 0.5**depth * level + (0.0 if total is None else total)
            weights += 0.5**depth
    return None if total is None else total / weights


def _resize(flags: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The nearest voxels of another size; target and mask take the same ones."""
    if flags.shape == like.shape:
        return flags
    return F.interpolate(flags.to(torch.uint8), size=like.shape[2:], mode="nearest").bool()


def _one_level(
    logits: torch.Tensor, target: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor | None:
    """Mean of Dice and cross entropy over the classes with a known voxel in the batch."""
    known = mask.sum(dim=(0, 2, 3, 4))
    if not bool(known.any()):
        return None
    # Replaced, not multiplied: 0 × NaN would be NaN, in the value and in the gradient.
    logits = torch.where(mask, logits.float(), 0.0)
    truth = (target & mask).float()
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    entropy = torch.where(mask, entropy, 0.0).sum(dim=(0, 2, 3, 4)) / known.clamp(min=1)
    probability = torch.where(mask, torch.sigmoid(logits), 0.0)
    both = (probability * truth).sum(dim=(0, 2, 3, 4))
    either = probability.sum(dim=(0, 2, 3, 4)) + truth.sum(dim=(0, 2, 3, 4))
    dice = 1 - (2 * both + _SMOOTH) / (either + _SMOOTH)
    counted = known > 0
    return (dice + entropy)[counted].mean()

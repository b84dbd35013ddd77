"""Masked Dice and cross entropy: what is unknown gives exactly no gradient.

The loss of a batch is a sum over its patches whose weights depend on target and mask alone
(`weigh`). So patches may go through the network one by one, or in several processes, and
the gradients add up to those of the whole batch.

With t the target, p the probability and m the mask, class c of patch b adds

    w_c / W_known · Σ m BCE(p, t) / N_c
    + w_c / W_present · (1 − (2 Σ m p t + 1) / (Σ m p + Σ m t + 1))

N_c: known voxels of the class in the batch; W: the sum of w over the classes known in the
batch, and over the pairs (b, c) with a present voxel. Dice of a class that is absent from a
patch is no measure of anything; the cross entropy says that it is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from cellmap_core.training.config import Activation

# Keeps Dice's gradient small for a class of few voxels.
_SMOOTH = 1.0


#: Known and present voxels, each (levels, B, C).
Counts = tuple[torch.Tensor, torch.Tensor]


def _alone(sums: torch.Tensor) -> torch.Tensor:
    return sums


@dataclass(frozen=True)
class Level:
    """What is known at one output level of the network, and what it counts.

    Attributes
    ----------
    target, mask : Tensor of bool
        Shape (B, C, z, y, x): present; and known. The first lies within the second.
    entropy : Tensor
        Shape (C,): weight of a known voxel's cross entropy.
    dice : Tensor
        Shape (B, C): weight of a patch's Dice; 0 where the class is not present.
    known, present : Tensor of int64
        Shape (B, C): voxels.
    """

    target: torch.Tensor
    mask: torch.Tensor
    entropy: torch.Tensor
    dice: torch.Tensor
    known: torch.Tensor
    present: torch.Tensor

    def part(self, rows: slice) -> Level:
        """The same of some patches of the batch."""
        return Level(
            self.target[rows], self.mask[rows], self.entropy,
            self.dice[rows], self.known[rows], self.present[rows],
        )  # fmt: skip


def count(target: torch.Tensor, mask: torch.Tensor, depth: int) -> Counts:
    """Known and present voxels of each patch and class at every output level.

    Parameters
    ----------
    target, mask : Tensor of bool
        Shape (B, C, z, y, x).
    depth : int
        Output levels.

    Returns
    -------
    known, present : Tensor of int64
        Shape (depth, B, C).
    """
    levels = [(mask[view], (target & mask)[view]) for view in _views(depth)]
    known, present = (
        [part.sum(dim=(2, 3, 4)) for part in parts] for parts in zip(*levels, strict=True)
    )
    return torch.stack(known), torch.stack(present)


def _views(depth: int) -> list[tuple[slice, ...]]:
    """Of each output level, every 2ⁱ-th voxel."""
    return [(slice(None), slice(None), *(slice(None, None, 2**i),) * 3) for i in range(depth)]


def weigh(
    target: torch.Tensor,
    mask: torch.Tensor,
    counts: Counts,
    class_weights: torch.Tensor,
    add_up: Callable[[torch.Tensor], torch.Tensor] = _alone,
) -> list[Level] | None:
    """Weights of all voxels of a batch, at every output level.

    Parameters
    ----------
    target, mask : Tensor of bool
        Shape (B, C, z, y, x): present, which is within known. Coarser levels take every second
        voxel.
    counts : tuple of Tensor
        What `count` says of them; level i counts half as much as level i − 1.
    class_weights : Tensor
        Shape (C,).
    add_up : callable
        Sums a tensor over all processes that share the batch.

    Returns
    -------
    list of Level or None
        None where no voxel of any class is known in the whole batch: there is no step.
    """
    known, present = counts
    depth = len(known)
    weights = class_weights.double()
    # (levels, C + 1): known voxels of each class, and the weight of all pairs with a present one.
    sums = torch.cat(
        [known.sum(dim=1), ((present > 0) * weights).sum(dim=(1, 2))[:, None]], dim=1
    ).double()
    sums = add_up(sums)
    known_all, pairs = sums[:, :-1], sums[:, -1]
    if not bool(known_all[0].any()):
        return None
    classes = ((known_all > 0) * weights).sum(dim=1)
    shares = 0.5 ** torch.arange(depth, device=target.device) * (classes > 0)
    shares = shares / shares.sum()
    entropy = shares[:, None] * weights / classes[:, None].clamp(min=1e-12) / known_all.clamp(min=1)
    dice = shares[:, None, None] * (present > 0) * weights / pairs[:, None, None].clamp(min=1e-12)
    return [
        Level(target[v], mask[v], entropy[i].float(), dice[i].float(), known[i], present[i])
        for i, v in enumerate(_views(depth))
    ]


def masked_loss(
    outputs: torch.Tensor | Sequence[torch.Tensor],
    levels: Sequence[Level],
    activation: Activation = "sigmoid",
) -> torch.Tensor:
    """The patches' part of the loss of their batch.

    Parameters
    ----------
    outputs : Tensor or sequence of Tensor
        Logits (B, channels, z, y, x), the finest first. With ``softmax`` the first channel is
        the background.
    levels : sequence of Level
        One for each output, of the same patches.
    activation : str
        ``sigmoid``: each class for itself. ``softmax``: at most one class a voxel.

    Returns
    -------
    Tensor
        A scalar; its gradient is exactly 0 wherever the mask is not set.
    """
    found = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    one = _sigmoid_level if activation == "sigmoid" else _softmax_level
    parts = [one(_full(logits), level) for logits, level in zip(found, levels, strict=True)]
    return torch.stack(parts).sum()


def _full(logits: torch.Tensor) -> torch.Tensor:
    """In at least 32 bits: sums over a patch are beyond what 16 bits hold."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _sigmoid_level(logits: torch.Tensor, level: Level) -> torch.Tensor:
    loss: torch.Tensor = _DiceEntropy.apply(logits, level)  # type: ignore[no-untyped-call]
    return loss


class _DiceEntropy(torch.autograd.Function):
    """Value and gradient in one look at the logits, class by class.

    What autograd would keep of it is six times the logits, most of the memory of a small
    network with many classes; here it is the gradient alone.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, logits: torch.Tensor, level: Level
    ) -> torch.Tensor:
        gradient = torch.zeros_like(logits)
        value = logits.new_zeros(())
        # One look at the counts for all: each would wait for the device.
        known = level.known.tolist()
        size = level.mask[0, 0].numel()
        for b, row in enumerate(known):
            for c, count in enumerate(row):
                if count:
                    mask = None if count == size else level.mask[b, c]
                    weights = level.entropy[c], level.dice[b, c], level.present[b, c]
                    value += _one_class(
                        logits[b, c], level.target[b, c], mask, *weights, into=gradient[b, c]
                    )
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, output: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        (gradient,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * output, None


def _one_class(
    logits: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    entropy: torch.Tensor,
    dice: torch.Tensor,
    present: torch.Tensor,
    into: torch.Tensor,
) -> torch.Tensor:
    """Loss of one class in one patch; its gradient goes ``into`` its place.

    Of the cross entropy it is p − t; of 1 − (2 I + 1) / (S + 1), with I = Σ p t and
    S = Σ p + Σ t, it is ((2 I + 1) / (S + 1)² − 2 t / (S + 1)) · p (1 − p).
    """
    x = logits.contiguous()
    if mask is not None:
        # Replaced, not multiplied: 0 × NaN would be NaN, in the value and in the gradient.
        x = torch.where(mask, x, 0.0)
    t = target.to(x.dtype)
    p = torch.sigmoid(x)
    cross = F.softplus(x)
    if mask is not None:
        cross = torch.where(mask, cross, 0.0)
        p = torch.where(mask, p, 0.0)
    hit = (p * t).sum()
    total = p.sum() + present + _SMOOTH
    score = (2 * hit + _SMOOTH) / total
    value = entropy * (cross.sum() - (x * t).sum()) + dice * (1 - score)
    slope = (score - 2 * t).mul_(p * (1 - p)).mul_(dice / total)
    change = (p - t).mul_(entropy).add_(slope)
    into.copy_(change if mask is None else torch.where(mask, change, 0.0))
    return value


def _softmax_level(logits: torch.Tensor, level: Level) -> torch.Tensor:
    """One class a voxel: the cross entropy of all that a voxel may be.

    A voxel of a present class is that class. One where all known classes are absent is the
    background or one of the unknown classes, whose summed probability counts. Logits of
    unknown classes are constants there: no gradient reaches them.
    """
    mask = level.mask
    told = mask.any(dim=1, keepdim=True)
    x = torch.cat(
        [torch.where(told, logits[:, :1], 0.0), _detached(logits[:, 1:], mask, told)], dim=1
    )
    present = level.target.any(dim=1, keepdim=True)
    may_be = torch.cat([~present, torch.where(present, level.target, ~mask)], dim=1)
    likely = torch.logsumexp(torch.where(may_be, x, -torch.inf), dim=1)
    cross = torch.logsumexp(x, dim=1) - likely
    # Each voxel counts what its known classes count, averaged over the classes.
    weight = (mask * level.entropy[:, None, None, None]).sum(dim=1)
    value = (cross * weight).sum()
    p = torch.where(mask, torch.softmax(x, dim=1)[:, 1:], 0.0)
    t = level.target.to(p.dtype)
    hit, total = (p * t).sum(dim=(2, 3, 4)), p.sum(dim=(2, 3, 4)) + level.present
    return value + (level.dice * (1 - (2 * hit + _SMOOTH) / (total + _SMOOTH))).sum()


def _detached(logits: torch.Tensor, mask: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
    """Logits as constants where their class is unknown, and 0 where nothing is known."""
    return torch.where(mask, logits, torch.where(told, torch.nan_to_num(logits.detach()), 0.0))

"""What is unknown gives exactly no gradient."""

import pytest
import torch

from cellmap_core.training.loss import masked_loss
from cellmap_core.training.metrics import DiceCounts, known_target, mean_dice
from cellmap_core.training.patches import expand, look_up
from tests.tiny_project import TABLE

STATES = torch.from_numpy(look_up(TABLE))


def a_batch(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((2, 2, 8, 8, 8), generator=generator, requires_grad=True)
    label = torch.randint(0, 6, (2, 8, 8, 8), generator=generator)
    annotated = torch.tensor([[True, True], [True, False]])
    return logits, *expand(label, annotated, STATES)


@pytest.mark.parametrize(
    ("label", "target", "mask"),
    [
        (0, (0, 0), (1, 1)),
        (1, (1, 0), (1, 1)),
        (2, (0, 1), (1, 1)),
        (3, (1, 1), (1, 1)),
        (4, (0, 1), (0, 1)),
        (5, (0, 0), (0, 0)),
    ],
    ids=["background", "mito", "er", "both", "er, mito unknown", "padding"],
)
def test_one_look_up_gives_target_and_mask(label, target, mask):
    found = expand(torch.full((1, 1, 1, 1), label), torch.tensor([[True, True]]), STATES)
    assert [tuple(f.flatten().int().tolist()) for f in found] == [target, mask]


def test_unannotated_class_is_masked_whatever_the_id():
    _, mask = expand(torch.arange(6).view(1, 6, 1, 1), torch.tensor([[True, False]]), STATES)
    assert not mask[:, 1].any()
    assert mask[:, 0].sum() == 4


def test_gradient_is_zero_exactly_where_unknown_and_only_there():
    logits, target, mask = a_batch()
    masked_loss(logits, target, mask).backward()
    assert (logits.grad[~mask] == 0).all()
    assert (logits.grad[mask] != 0).all()


def test_loss_does_not_depend_on_unknown_voxels_even_when_not_finite():
    logits, target, mask = a_batch()
    plain = masked_loss(logits, target, mask)
    spoilt = logits.detach().clone()
    spoilt[~mask] = float("nan")
    spoilt.requires_grad_()
    loss = masked_loss(spoilt, target | ~mask, mask)
    loss.backward()
    assert loss == plain
    assert torch.isfinite(spoilt.grad).all()


def test_deep_levels_are_masked_too():
    _, target, mask = a_batch()
    levels = [torch.randn(2, 2, n, n, n, requires_grad=True) for n in (8, 4)]
    masked_loss(levels, target, mask).backward()
    coarse = mask[:, :, ::2, ::2, ::2]
    assert (levels[1].grad[~coarse] == 0).all()
    assert (levels[1].grad[coarse] != 0).all()


def test_nothing_known_means_no_loss():
    logits, target, mask = a_batch()
    assert masked_loss(logits, target, torch.zeros_like(mask)) is None
    assert masked_loss([logits, logits[..., ::2, ::2, ::2]], target, mask & False) is None


def test_channel_without_known_voxels_does_not_dilute_the_mean():
    logits, target, mask = a_batch()
    mask[:, 1] = False
    alone = masked_loss(logits[:, :1], target[:, :1], mask[:, :1])
    assert torch.isclose(masked_loss(logits, target, mask), alone)


def test_better_predictions_have_a_lower_loss():
    _, target, mask = a_batch()
    right = (target.float() * 2 - 1) * 8
    assert masked_loss(right, target, mask) < 0.05 < 1 < masked_loss(-right, target, mask)


def test_dice_pools_counts_over_known_voxels():
    counts = DiceCounts(("mito", "er"))
    label = torch.tensor([[[1, 1, 0, 4]]]).numpy()
    predicted = torch.tensor([[[[True, False, True, True]]], [[[False] * 4]]]).numpy()
    truth = known_target(label, torch.tensor([True, False]).numpy(), TABLE.states())
    counts.add(predicted, *truth)
    counts.add(predicted, *truth)
    assert counts.dice() == {"mito": 0.5, "er": None}
    assert counts.trivial() == {"mito": pytest.approx(2 * 4 / (6 + 4)), "er": None}
    assert mean_dice(counts.dice(), ["mito", "er"]) == 0.5
    assert mean_dice(counts.dice(), ["er"]) is None

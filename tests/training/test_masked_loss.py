"""What is unknown gives exactly no gradient, however a batch is spread."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cellmap_core.training.config_files import read_bundle_config
from cellmap_core.training.learner import Learner
from cellmap_core.training.loss import count, masked_loss, weigh
from cellmap_core.training.metrics import DiceCounts, known_target, mean_dice
from cellmap_core.training.patches import Batch, counts_of, expand, look_up, targets_of
from cellmap_core.training.run import make_trainer
from cellmap_core.training.team import alone
from tests.closeness import relative_error
from tests.tiny_project import TABLE, make_bundles

STATES = torch.from_numpy(look_up(TABLE))
EQUAL = torch.ones(2)


def a_batch(seed=0, patches=2, channels=2):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((patches, channels, 8, 8, 8), generator=generator, requires_grad=True)
    label = torch.randint(0, 6, (patches, 8, 8, 8), generator=generator)
    annotated = torch.tensor([[True, True], [True, False], [False, False]])[:patches]
    return logits, *expand(label, annotated, STATES)


def loss_of(outputs, target, mask, weights=EQUAL, activation="sigmoid"):
    depth = 1 if isinstance(outputs, torch.Tensor) else len(outputs)
    levels = weigh(target & mask, mask, count(target, mask, depth), weights)
    return None if levels is None else masked_loss(outputs, levels, activation)


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
    logits, target, mask = a_batch(patches=3)
    loss_of(logits, target, mask).backward()
    assert (logits.grad[~mask] == 0).all()
    assert (logits.grad[mask] != 0).all()


def by_autograd(logits, target, mask, weights):
    """The formula of the module, written down plainly."""
    total = 0.0
    known = [c for c in range(logits.shape[1]) if mask[:, c].any()]
    pairs = [(b, c) for b in range(len(logits)) for c in known if (target & mask)[b, c].any()]
    for c in known:
        x, t = logits[:, c][mask[:, c]], target[:, c][mask[:, c]].to(logits.dtype)
        entropy = F.binary_cross_entropy_with_logits(x, t)
        total = total + weights[c] / sum(weights[i] for i in known) * entropy
    for b, c in pairs:
        p, t = torch.sigmoid(logits[b, c][mask[b, c]]), target[b, c][mask[b, c]].to(logits.dtype)
        dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
        total = total + weights[c] / sum(weights[i] for _, i in pairs) * dice
    return total


def test_counting_by_label_id_counts_the_same_voxels():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 6, (3, 9, 8, 7)).astype(np.uint8)
    annotated = np.array([[True, True], [True, False], [False, False]])
    batch = Batch(label, label, annotated, (None,) * 3, ("",) * 3)
    target, mask = targets_of(batch, STATES)
    for found, expected in zip(counts_of(batch, STATES, 3), count(target, mask, 3), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [3.0, 0.5]])
def test_value_and_gradient_are_those_of_the_formula(weights):
    logits, target, mask = a_batch(patches=3)
    ours, plain = (logits.detach().double().requires_grad_() for _ in range(2))
    loss = loss_of(ours, target, mask, torch.tensor(weights))
    loss.backward()
    expected = by_autograd(plain, target, mask, weights)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert relative_error(ours.grad, plain.grad) < 1e-6


def test_loss_does_not_depend_on_unknown_voxels_even_when_not_finite():
    logits, target, mask = a_batch()
    plain = loss_of(logits, target, mask)
    spoilt = logits.detach().clone()
    spoilt[~mask] = float("nan")
    spoilt.requires_grad_()
    loss = loss_of(spoilt, target | ~mask, mask)
    loss.backward()
    assert loss == plain
    assert (spoilt.grad[~mask] == 0).all()
    assert torch.isfinite(spoilt.grad).all()


def test_deep_levels_are_masked_too():
    _, target, mask = a_batch()
    levels = [torch.randn(2, 2, n, n, n, requires_grad=True) for n in (8, 4)]
    loss_of(levels, target, mask).backward()
    coarse = mask[:, :, ::2, ::2, ::2]
    assert (levels[1].grad[~coarse] == 0).all()
    assert (levels[1].grad[coarse] != 0).all()


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_parts_of_a_batch_add_up_to_it(activation):
    channels = 2 + (activation == "softmax")
    logits, target, mask = a_batch(patches=3, channels=channels)
    coarse = logits.detach()[..., ::2, ::2, ::2].clone().requires_grad_()
    levels = weigh(target & mask, mask, count(target, mask, 2), EQUAL)
    whole = masked_loss([logits, coarse], levels, activation)
    gradients = torch.autograd.grad(whole, [logits, coarse])
    value, parts = 0.0, [torch.zeros_like(g) for g in gradients]
    for rows in (slice(0, 1), slice(1, 3)):
        some = [level.part(rows) for level in levels]
        part = masked_loss([logits[rows], coarse[rows]], some, activation)
        value += float(part.detach())
        for total, found in zip(parts, torch.autograd.grad(part, [logits, coarse]), strict=True):
            total += found
    assert value == pytest.approx(float(whole), rel=1e-5)
    for total, found in zip(parts, gradients, strict=True):
        assert relative_error(total, found) < 1e-5


def test_nothing_known_means_no_loss():
    logits, target, mask = a_batch()
    assert loss_of(logits, target, torch.zeros_like(mask)) is None
    assert loss_of([logits, logits[..., ::2, ::2, ::2]], target, mask & False) is None


def test_channel_without_known_voxels_does_not_dilute_the_mean():
    logits, target, mask = a_batch()
    mask[:, 1] = False
    alone_there = loss_of(logits[:, :1], target[:, :1], mask[:, :1], EQUAL[:1])
    assert torch.isclose(loss_of(logits, target, mask), alone_there)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_better_predictions_have_a_lower_loss(activation):
    _, target, mask = a_batch()
    target[:, 1] &= ~target[:, 0]
    right = (target.float() * 2 - 1) * 8
    if activation == "softmax":
        right = torch.cat([torch.zeros(2, 1, 8, 8, 8), right], dim=1)
    good, bad = (loss_of(x, target, mask, activation=activation) for x in (right, -right))
    assert good < 0.05 < 1 < bad


def test_softmax_gives_unknown_classes_no_gradient():
    logits, target, mask = a_batch(patches=3, channels=3)
    target[:, 1] &= ~target[:, 0]
    loss_of(logits, target, mask, activation="softmax").backward()
    told = mask.any(dim=1)
    assert (logits.grad[:, 1:][~mask] == 0).all()
    assert (logits.grad[:, 0][~told] == 0).all()
    assert (logits.grad[:, 0][told] != 0).all()
    assert torch.isfinite(logits.grad).all()


def test_softmax_leaves_open_what_an_unannotated_class_may_fill():
    """A voxel where the one annotated class is absent may be the other one: no push against it."""
    target = torch.zeros((1, 2, 1, 1, 1), dtype=torch.bool)
    mask = torch.tensor([True, False]).view(1, 2, 1, 1, 1)
    likely_other = torch.tensor([0.0, 0.0, 9.0]).view(1, 3, 1, 1, 1).requires_grad_()
    unlikely = torch.tensor([0.0, 0.0, -9.0]).view(1, 3, 1, 1, 1).requires_grad_()
    losses = [loss_of(x, target, mask, activation="softmax") for x in (likely_other, unlikely)]
    for loss in losses:
        loss.backward()
    assert losses[0] < 0.001 < losses[1]
    assert likely_other.grad.abs().max() < 0.001 < unlikely.grad.abs().max()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_mask_holds_through_a_training_step(tmp_path, precision, micro_batch, monkeypatch):
    """Of a whole step, as the learner takes it: gradients at the network's outputs."""
    bundle = make_bundles(tmp_path)[0]
    config = read_bundle_config(bundle.folder).model_copy(
        update={"precision": precision, "micro_batch": micro_batch}
    )
    trainer = make_trainer(config, bundle.folder, lambda: False, alone())
    seen = []

    def spy(outputs, levels, activation):
        for output in outputs:
            output.retain_grad()
        seen.append((outputs, levels))
        return masked_loss(outputs, levels, activation)

    monkeypatch.setattr("cellmap_core.training.learner.masked_loss", spy)
    # The patch of step 0 around a corner that is unknown, one class not annotated in its half.
    batch = trainer.data.sampler.batch(0)
    batch.label[0, :10] = len(TABLE.combinations) - 1
    batch.annotated[1] = [True, False]
    assert trainer.learner.step(batch, 0) is not None
    assert len(seen) == 2 // micro_batch
    unknown = 0
    for outputs, levels in seen:
        for output, level in zip(outputs, levels, strict=True):
            kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
            assert output.dtype == kind[precision]
            assert (output.grad[~level.mask] == 0).all()
            assert (output.grad[level.mask] != 0).float().mean() > 0.5
            unknown += int((~level.mask).sum())
    assert unknown > 0


def test_fully_unknown_batch_takes_no_step(tmp_path):
    bundle = make_bundles(tmp_path)[0]
    trainer = make_trainer(read_bundle_config(bundle.folder), bundle.folder, lambda: False, alone())
    learner: Learner = trainer.learner
    before = {k: v.clone() for k, v in learner.network.state_dict().items()}
    batch = trainer.data.sampler.batch(0)
    batch.annotated[:] = False
    assert not targets_of(batch, STATES)[1].any()
    assert learner.step(batch, 0) is None
    assert all(torch.equal(v, before[k]) for k, v in learner.network.state_dict().items())


def test_dice_pools_counts_over_known_voxels():
    counts = DiceCounts(("mito", "er"))
    label = torch.tensor([[[1, 1, 0, 4]]]).numpy()
    predicted = torch.tensor([[[[True, False, True, True]]], [[[False] * 4]]]).numpy()
    truth = known_target(label, np.array([True, False]), TABLE.states())
    counts.add(predicted, *truth)
    counts.add(predicted, *truth)
    assert counts.dice() == {"mito": 0.5, "er": None}
    assert counts.trivial() == {"mito": pytest.approx(2 * 4 / (6 + 4)), "er": None}
    assert mean_dice(counts.dice(), ["mito", "er"]) == 0.5
    assert mean_dice(counts.dice(), ["er"]) is None

"""One step of the optimizer: however its patches are spread, and what stops it."""

import pytest
import torch

from cellmap_core.errors import TrainingError
from cellmap_core.training.config_files import read_bundle_config
from cellmap_core.training.learner import out_of_memory
from cellmap_core.training.run import make_trainer
from cellmap_core.training.team import alone
from tests.closeness import relative_error
from tests.tiny_project import make_bundles


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundles(tmp_path_factory.mktemp("a project"), batch_size=4)[0]


def learner_of(bundle, **changes):
    config = read_bundle_config(bundle.folder).model_copy(update=changes)
    trainer = make_trainer(config, bundle.folder, lambda: False, alone())
    return trainer.learner, trainer.data.sampler


def after_steps(learner, sampler, count=3):
    losses = [learner.step(sampler.batch(number), number) for number in range(count)]
    return losses, {k: v.clone() for k, v in learner.network.state_dict().items()}


def gradients(learner, batch):
    """Return the loss and all gradients of a batch, computed in 64 bits."""
    network = learner.network.double()
    learner._forward = lambda image: network(image.double())
    loss = learner._gradients(batch)
    return loss, torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def test_micro_batches_have_the_gradients_of_the_whole_batch(bundle):
    (whole, at_once), (parts, one_by_one) = (
        gradients(learner, sampler.batch(0))
        for learner, sampler in (learner_of(bundle, micro_batch=m) for m in (4, 1))
    )
    assert parts == pytest.approx(whole, rel=1e-6)
    assert relative_error(one_by_one, at_once) < 1e-6


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])
def test_out_of_memory_halves_the_micro_batch_and_goes_on(bundle, kind, monkeypatch, caplog):
    expected, _ = after_steps(*learner_of(bundle, micro_batch=1), count=1)
    learner, sampler = learner_of(bundle, micro_batch=4)
    forward = learner._forward

    def greedy(image):
        if len(image) > 1:
            raise kind("DefaultCPUAllocator: can't allocate memory: you tried to allocate much")
        return forward(image)

    monkeypatch.setattr(learner, "_forward", greedy)
    losses, _ = after_steps(learner, sampler, count=1)
    assert learner.micro_batch == 1
    assert losses == pytest.approx(expected)
    assert "out of memory with 4 patches at once; going on with 2" in caplog.text
    assert "out of memory with 2 patches at once; going on with 1" in caplog.text
    # What it came to is kept: a later process need not find out again.
    again, _ = learner_of(bundle, micro_batch=4)
    again.restore(learner.state())
    assert again.micro_batch == 1


def test_one_patch_too_large_for_the_memory_is_told(bundle, monkeypatch):
    learner, sampler = learner_of(bundle, micro_batch=1)

    def greedy(_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(learner, "_forward", greedy)
    with pytest.raises(TrainingError, match=r"with one patch of \(32, 32, 32\).*patch_size_vox"):
        learner.step(sampler.batch(0), 0)


def test_a_real_failure_to_allocate_is_known_as_one():
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 46)
    assert out_of_memory(error.value)
    assert not out_of_memory(RuntimeError("shapes do not match"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradient_that_is_not_finite_stops_before_the_step(bundle, precision, monkeypatch):
    learner, sampler = learner_of(bundle, precision=precision)
    before = {k: v.clone() for k, v in learner.network.state_dict().items()}
    weight = next(learner.network.parameters())
    weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingError, match=r"gradient's norm is (inf|nan) at step 0, with patch"):
        learner.step(sampler.batch(0), 0)
    assert all(torch.equal(v, before[k]) for k, v in learner.network.state_dict().items())


def test_fp16_overflow_lowers_the_scale_and_passes_over_the_step(bundle):
    learner, sampler = learner_of(bundle, precision="fp16")
    before = {k: v.clone() for k, v in learner.network.state_dict().items()}
    scale = learner.scaler.get_scale()
    hook = next(learner.network.parameters()).register_hook(lambda g: g * float("inf"))
    assert learner.step(sampler.batch(0), 0) is not None
    assert all(torch.equal(v, before[k]) for k, v in learner.network.state_dict().items())
    assert learner.scaler.get_scale() < scale
    hook.remove()
    learner.step(sampler.batch(1), 1)
    assert any(not torch.equal(v, before[k]) for k, v in learner.network.state_dict().items())


def test_average_follows_the_weights(bundle):
    learner, sampler = learner_of(bundle, ema_decay=0.5)
    assert learner.best_network is not learner.network
    name, _ = next(learner.network.named_parameters())
    weights = []
    for number in range(3):
        learner.step(sampler.batch(number), number)
        weights.append(learner.network.state_dict()[name].clone())
    # Of the first step itself, then decays of 2/11 and 3/12: short while there were few.
    expected = weights[0]
    for decay, weight in zip((2 / 11, 3 / 12), weights[1:], strict=True):
        expected = decay * expected + (1 - decay) * weight
    assert torch.allclose(learner.best_network.state_dict()[name], expected, atol=1e-6)
    plain, _ = learner_of(bundle, ema_decay=0.0)
    assert plain.best_network is plain.network


def test_learning_rate_rises_and_falls_to_zero(bundle):
    learner, _ = learner_of(bundle, warmup_steps=4, num_epochs=10, num_steps_per_epoch=4)
    top = learner.config.learning_rate
    rates = [learner._rate(step) for step in range(40)]
    assert rates[0] == pytest.approx(top / 5)
    assert rates[4] == top == max(rates)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] < top / 100


def test_compiled_network_has_the_same_loss_and_gradients(bundle):
    """Where torch finds no compiler, the network runs as it is."""
    (plain, expected), (compiled, found) = (
        (learner._gradients(sampler.batch(0)), [p.grad for p in learner.network.parameters()])
        for learner, sampler in (learner_of(bundle, compile=c) for c in (False, True))
    )
    assert compiled == pytest.approx(plain, rel=1e-4)
    found, expected = (torch.cat([g.flatten() for g in all_]) for all_ in (found, expected))
    assert relative_error(found, expected) < 1e-3

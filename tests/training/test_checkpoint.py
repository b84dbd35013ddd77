"""Save, perturb, load, compare."""

import pytest
import torch

from cellmap_core.errors import CheckpointError
from cellmap_core.training.checkpoint import (
    DamagedError,
    Model,
    Snapshot,
    load_model,
    load_snapshot,
    restore_rng,
    rng_state,
    save,
)


def state_of(network, optimizer):
    return Snapshot(
        config_digest="abc", epoch=3, step=17, loss_sum=0.5, loss_steps=2, seconds=1.5,
        records=[{"epoch": 1, "mean_dice": None, "dice": {"mito": 0.25}}],
        best={"epoch": 1, "mean_dice": None}, model=network.state_dict(),
        optimizer=optimizer.state_dict(), scaler=torch.amp.GradScaler("cpu").state_dict(),
        rng=rng_state(),
    )  # fmt: skip


@pytest.fixture
def trained():
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    network(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    return network, optimizer


def test_save_perturb_load(tmp_path, trained):
    network, optimizer = trained
    path = tmp_path / "last.pt"
    save(path, state_of(network, optimizer))
    kept = {k: v.clone() for k, v in network.state_dict().items()}
    drawn = torch.rand(3)
    network(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(network.weight, kept["weight"])
    state = load_snapshot(path, "abc")
    network.load_state_dict(state.model)
    optimizer.load_state_dict(state.optimizer)
    restore_rng(state.rng)
    assert torch.equal(network.weight, kept["weight"])
    assert torch.equal(torch.rand(3), drawn)
    assert optimizer.state_dict()["state"][0]["step"] == 1
    assert (state.epoch, state.step, state.records[0]["dice"]) == (3, 17, {"mito": 0.25})
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_checkpoint_of_another_configuration_is_refused(tmp_path, trained):
    save(tmp_path / "last.pt", state_of(*trained))
    with pytest.raises(CheckpointError, match="belongs to another configuration") as error:
        load_snapshot(tmp_path / "last.pt", "xyz")
    assert not isinstance(error.value, DamagedError)


@pytest.mark.parametrize("kept", [0, 100, 0.5])
def test_truncated_checkpoint_is_told(tmp_path, trained, kept):
    path = tmp_path / "last.pt"
    save(path, state_of(*trained))
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(DamagedError, match="is damaged"):
        load_snapshot(path, "abc")


def test_another_kind_of_file_is_told(tmp_path, trained):
    torch.save({"model": 1}, tmp_path / "best.pt")
    with pytest.raises(DamagedError, match="not a checkpoint of this project"):
        load_model(tmp_path / "best.pt", "abc")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_model(tmp_path / "none.pt", "abc")


def test_pickled_code_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (print, ("boom",))

    torch.save({"model": Bomb()}, tmp_path / "best.pt")
    with pytest.raises(DamagedError):
        load_model(tmp_path / "best.pt", "abc")


def test_failed_save_leaves_the_old_checkpoint(tmp_path, trained, monkeypatch):
    path = tmp_path / "best.pt"
    model = Model("abc", ["a"], ["a"], 1, {}, trained[0].state_dict())
    save(path, model)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save(path, model)
    monkeypatch.undo()
    assert load_model(path, "abc").epoch == 1

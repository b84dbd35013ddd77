"""Save, perturb, load, compare."""

import random
import subprocess

import numpy as np
import pytest
import torch

from cellmap_core.errors import CheckpointError, DiskFullError
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
    learner = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
    return Snapshot(
        config_digest="abc", epoch=3, step=17, loss_sum=0.5, loss_steps=2, timing={"all": 1.5},
        records=[{"epoch": 1, "mean_dice": None, "dice": {"mito": 0.25}}],
        best={"epoch": 1, "mean_dice": None}, learner=learner, rng=rng_state(),
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
    drawn = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    network(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(network.weight, kept["weight"])
    state = load_snapshot(path, "abc")
    network.load_state_dict(state.learner["network"])
    optimizer.load_state_dict(state.learner["optimizer"])
    restore_rng(state.rng)
    assert torch.equal(network.weight, kept["weight"])
    assert torch.equal(torch.rand(3), drawn[0])
    assert (random.random(), np.random.rand()) == drawn[1:]  # noqa: NPY002
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


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"may not mount a small file system ({mounted.stderr.decode().strip()})")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_named_and_the_older_checkpoints_stay_whole(small_disk):
    last, previous = small_disk / "last.pt", small_disk / "previous.pt"
    small, large = ({"w": torch.zeros(n)} for n in (10_000, 1_000_000))
    for epoch in (1, 2):
        save(last, Model("abc", ["a"], ["a"], epoch, {}, small), before=previous)
    with pytest.raises(DiskFullError, match=r"last\.pt cannot be written"):
        save(last, Model("abc", ["a"], ["a"], 3, {}, large), before=previous)
    assert load_model(last, "abc").epoch == 2
    assert load_model(previous, "abc").epoch == 1
    assert sorted(p.name for p in small_disk.iterdir()) == ["last.pt", "previous.pt"]

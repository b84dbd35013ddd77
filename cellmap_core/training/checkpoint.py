"""Checkpoints: all that a training goes on from, written whole, read without pickle."""

from __future__ import annotations

import contextlib
import random
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from cellmap_core.errors import CheckpointError
from cellmap_core.provenance import atomic_path


class DamagedError(CheckpointError):
    """A checkpoint cannot be read at all."""


@dataclass
class Snapshot:
    """The state of a training between two steps.

    The learning rate and the patches are functions of ``step``, so ``step`` is the state of
    the scheduler and of the sampler.

    Attributes
    ----------
    config_digest : str
        Of the configuration; a checkpoint of another one is refused.
    epoch : int
        Epochs that are finished.
    step : int
        Steps taken since the start of the training.
    loss_sum, loss_steps : float, int
        Losses of the unfinished epoch.
    timing : dict
        Seconds spent in the unfinished epoch before this checkpoint, by what they went to.
    records : list of dict
        What was reported of each finished epoch.
    best : dict or None
        The record of the best epoch.
    learner : dict
        Network, optimizer, scaler and moving average.
    rng : dict
        States of all generators.
    """

    config_digest: str
    epoch: int
    step: int
    loss_sum: float
    loss_steps: int
    timing: dict[str, float]
    records: list[dict[str, Any]]
    best: dict[str, Any] | None
    learner: dict[str, Any]
    rng: dict[str, Any]


@dataclass
class Model:
    """Weights to predict with, and what they are.

    Attributes
    ----------
    config_digest : str
        Of the configuration that builds the network.
    classes : list of str
        One for each channel.
    trained_classes : list of str
        Those that were annotated and present in the training cases; the other channels
        learnt nothing and must not be used.
    epoch : int
        When the weights were taken (from 1).
    dice : dict
        Class → Dice on the validation cases.
    model : dict
        The weights.
    architecture : dict or None
        What a search found, for algorithms that search.
    training_params : dict
        Values of the configuration that were given when the training began, and that
        ``hyper_parameters.yaml`` does not hold.
    """

    config_digest: str
    classes: list[str]
    trained_classes: list[str]
    epoch: int
    dice: dict[str, float | None]
    model: dict[str, Any]
    architecture: dict[str, Any] | None = None
    training_params: dict[str, Any] = field(default_factory=dict)


_State = TypeVar("_State", Snapshot, Model)


def save(path: Path, state: Snapshot | Model, *, before: Path | None = None) -> None:
    """Write a checkpoint, whole or not at all.

    Parameters
    ----------
    path : Path
        Its name.
    state : Snapshot or Model
        What to write.
    before : Path, optional
        Where the one that was there is kept.

    Raises
    ------
    DiskFullError
        There is no room for it; what was there stays.
    """
    with atomic_path(path) as temporary:
        try:
            with temporary.open("wb") as sink:
                torch.save({f.name: getattr(state, f.name) for f in fields(state)}, sink)
        except RuntimeError as error:
            # torch tells of a failed write in its own words; what the system said lies beneath.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise
        if before is not None:
            with contextlib.suppress(FileNotFoundError):
                path.replace(before)


def load_snapshot(path: Path, config_digest: str) -> Snapshot:
    """Read what a training goes on from.

    Raises
    ------
    CheckpointError
        The file is damaged, or belongs to another configuration.
    """
    return check_configuration(Snapshot(**_load(path, Snapshot, mmap=False)), path, config_digest)


def load_model(path: Path, config_digest: str) -> Model:
    """Read weights to predict with; they stay on disk until they are copied.

    Raises
    ------
    CheckpointError
        The file is damaged, or belongs to another configuration.
    """
    return check_configuration(read_model(path), path, config_digest)


def read_model(path: Path) -> Model:
    """Read weights of whatever configuration; whoever builds the network checks that.

    Raises
    ------
    CheckpointError
        The file is missing or damaged.
    """
    return Model(**_load(path, Model, mmap=True))


def configuration_of(path: Path) -> str | None:
    """Digest of the configuration that a checkpoint is of; None where it cannot be read."""
    kinds: tuple[type[Snapshot] | type[Model], ...] = (Snapshot, Model)
    for kind in kinds:
        with contextlib.suppress(CheckpointError):
            return str(_load(path, kind, mmap=True)["config_digest"])
    return None


def rng_state() -> dict[str, Any]:
    """States of the generators of Python, numpy and torch, as plain numbers and tensors."""
    version, numbers, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - what libraries may draw from
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "cpu": torch.get_rng_state(),
        "cuda": cuda,
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Set all generators; those of GPUs only where there are as many as before."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _load(path: Path, kind: type[Snapshot] | type[Model], *, mmap: bool) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}", "a trained bundle", "train it first")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    # torch raises whatever its zip reader or its unpickler met; all mean the same to us.
    except Exception as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedError(f"{path} is damaged ({line})", "a whole checkpoint") from error
    names = {f.name for f in fields(kind)}
    # An older version wrote no fields that have a default now.
    needed = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    if not isinstance(state, dict) or not needed <= set(state) <= names:
        raise DamagedError(f"{path} is not a checkpoint of this project", f"{sorted(names)}")
    return state


def check_configuration(state: _State, path: Path, config_digest: str) -> _State:
    """Return a checkpoint if it is of a configuration.

    Raises
    ------
    CheckpointError
        It is of another one.
    """
    if state.config_digest != config_digest:
        raise CheckpointError(
            f"{path} belongs to another configuration ({state.config_digest[:8]})",
            f"that of its hyper_parameters.yaml ({config_digest[:8]})",
            "restore the configuration, or remove the model folder to train anew",
        )
    return state

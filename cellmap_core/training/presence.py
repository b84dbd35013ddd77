"""Where each label id lies in a case: counts, and a bounded fair sample of voxels."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellmap_core.label_table import PRESENT
from cellmap_core.provenance import atomic_path
from cellmap_core.training.mapped_volume import Volume
from cellmap_core.training.volumes import Case, check_ids, let_go

#: Voxels kept for each id of a case; patches jitter around them, so few are enough.
KEPT_VOXELS = 1024
# Slabs of this many voxels are looked at in one go; they bound the memory.
_SLAB_VOXELS = 1 << 18


@dataclass(frozen=True)
class Presence:
    """Counts and sampled voxels of one case.

    Attributes
    ----------
    shape : tuple of int
        Of the case (z, y, x).
    counts : ndarray of int64
        Voxels of each label id.
    voxels : dict
        Id → flat indices, a fair sample of at most `KEPT_VOXELS`; background (0) has none.
    """

    shape: tuple[int, ...]
    counts: NDArray[np.int64]
    voxels: dict[int, NDArray[np.int64]]

    def classes(self, states: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Voxels of each class, from the states of the label table (ids, classes)."""
        return np.asarray(self.counts @ (states == PRESENT), dtype=np.int64)

    def draw(
        self, rng: np.random.Generator, klass: int, states: NDArray[np.uint8]
    ) -> tuple[int, ...]:
        """A voxel (z, y, x) where a class is present; each such voxel is equally likely."""
        weights = self.counts * (states[:, klass] == PRESENT)
        chosen = int(rng.choice(len(weights), p=weights / weights.sum()))
        flat = int(rng.choice(self.voxels[chosen]))
        return tuple(int(i) for i in np.unravel_index(flat, self.shape))


def presence_of(case: Case, ids: int) -> Presence:
    """Where the labels of a case lie; its voxels are read only once for all trainings.

    Parameters
    ----------
    case : Case
        With labels.
    ids : int
        Number of ids in the label table.

    Raises
    ------
    NiftiError
        The volume holds an id that the table does not know.
    """
    assert case.label is not None
    found = _read(case, ids) if case.presence_file else None
    if found is None:
        found = find_presence(case.label, ids, case.label_name)
        _keep_file(case, found)
    case.check_counts(found.counts)
    return found


def _keep_file(case: Case, found: Presence) -> None:
    """Write what was found to the case's file, where it has one."""
    if case.presence_file is None:
        return
    with atomic_path(case.presence_file) as temporary, temporary.open("wb") as sink:
        voxels = {f"id{i}": where for i, where in found.voxels.items()}
        np.savez(sink, shape=found.shape, counts=found.counts, **voxels)  # type: ignore[arg-type]


def _read(case: Case, ids: int) -> Presence | None:
    """What was kept, if it is of as many ids; a damaged file is as good as none."""
    assert case.presence_file is not None
    try:
        with np.load(case.presence_file) as kept:
            shape, counts = tuple(int(n) for n in kept["shape"]), kept["counts"]
            voxels = {int(n[2:]): kept[n] for n in kept.files if n.startswith("id")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    same = shape == case.image.shape and len(counts) == ids
    return Presence(shape, counts, voxels) if same else None


def find_presence(label: Volume, ids: int, case: str) -> Presence:
    """Read a label volume once, slab by slab.

    Parameters
    ----------
    label : Volume
        Shape (z, y, x), label ids.
    ids : int
        Number of ids in the label table.
    case : str
        Name of the case, for messages.

    Raises
    ------
    NiftiError
        The volume holds an id that the table does not know.
    """
    # The same sample whoever looks first.
    rng = np.random.default_rng(0)
    counts = np.zeros(ids, dtype=np.int64)
    kept: dict[int, tuple[NDArray[np.float32], NDArray[np.int64]]] = {}
    section = label.shape[1] * label.shape[2]
    thickness = max(1, _SLAB_VOXELS // section)
    for start in range(0, label.shape[0], thickness):
        let_go(label)
        slab = check_ids(np.asarray(label[start : start + thickness]), ids, case).ravel()
        found = np.bincount(slab, minlength=ids)
        counts += found
        for i in np.flatnonzero(found[1:]) + 1:
            where = np.flatnonzero(slab == i) + start * section
            kept[int(i)] = _keep(rng, where, kept.get(int(i)))
    return Presence(label.shape, counts, {i: where for i, (_, where) in kept.items()})


def _keep(
    rng: np.random.Generator,
    where: NDArray[np.int64],
    before: tuple[NDArray[np.float32], NDArray[np.int64]] | None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The voxels with the lowest random priorities so far: a fair sample of a stream."""
    priority = rng.random(len(where), dtype=np.float32)
    if before is not None:
        # Those that cannot come among the lowest need not be looked at again.
        if len(before[0]) == KEPT_VOXELS:
            low = priority < before[0].max()
            priority, where = priority[low], where[low]
        priority, where = np.concatenate([before[0], priority]), np.concatenate([before[1], where])
    if len(where) > KEPT_VOXELS:
        lowest = np.argpartition(priority, KEPT_VOXELS)[:KEPT_VOXELS]
        priority, where = priority[lowest], where[lowest]
    return priority, where

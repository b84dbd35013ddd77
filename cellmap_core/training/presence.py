"""Where each label id lies in a case: counts, and a bounded fair sample of voxels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellmap_core.label_table import PRESENT
from cellmap_core.training.volumes import check_ids

#: Voxels kept for each id of a case; patches jitter around them, so few are enough.
KEPT_VOXELS = 1024
# Slabs of this many voxels are looked at in one go; they bound the memory.
_SLAB_VOXELS = 1 << 22


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


def find_presence(label: NDArray[Any], ids: int, seed: int, case: str) -> Presence:
    """Read a label volume once, slab by slab.

    Parameters
    ----------
    label : ndarray
        Shape (z, y, x), label ids.
    ids : int
        Number of ids in the label table.
    seed : int
        Of the sample of voxels.
    case : str
        Name of the case, for messages.

    Raises
    ------
    NiftiError
        The volume holds an id that the table does not know.
    """
    rng = np.random.default_rng(seed)
    counts = np.zeros(ids, dtype=np.int64)
    kept: dict[int, tuple[NDArray[np.float32], NDArray[np.int64]]] = {}
    section = label.shape[1] * label.shape[2]
    thickness = max(1, _SLAB_VOXELS // section)
    for start in range(0, label.shape[0], thickness):
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
        priority, where = np.concatenate([before[0], priority]), np.concatenate([before[1], where])
    if len(where) > KEPT_VOXELS:
        lowest = np.argpartition(priority, KEPT_VOXELS)[:KEPT_VOXELS]
        priority, where = priority[lowest], where[lowest]
    return priority, where

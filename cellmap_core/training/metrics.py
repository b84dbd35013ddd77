"""Dice over the known voxels, counts pooled over cases."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellmap_core.label_table import PRESENT, UNKNOWN


class DiceCounts:
    """Counts of known voxels for each class; add part after part, case after case.

    Parameters
    ----------
    classes : sequence of str
        In the order of the channels.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = tuple(classes)
        # hit, predicted, present, known
        self._counts = np.zeros((4, len(self._classes)), dtype=np.int64)

    def add(self, predicted: Any, target: Any, mask: Any) -> None:
        """Count arrays or tensors of bool, shape (C, z, y, x), where ``mask`` is known."""
        predicted, target = predicted & mask, target & mask
        for row, flags in enumerate((predicted & target, predicted, target, mask)):
            for channel, part in enumerate(flags):
                self._counts[row, channel] += int(part.sum())

    @property
    def counts(self) -> NDArray[np.int64]:
        """Shape (4, C): hits, predicted, present and known voxels; adds up over processes."""
        return self._counts

    def dice(self) -> dict[str, float | None]:
        """2 |P ∩ T| / (|P| + |T|); None where no known voxel of the class is present."""
        hit, predicted, present, _ = self._counts
        return self._ratio(2 * hit, predicted + present)

    def trivial(self) -> dict[str, float | None]:
        """Dice of calling every known voxel foreground: the bar to beat."""
        _, _, present, known = self._counts
        return self._ratio(2 * present, known + present)

    def _ratio(self, over: NDArray[np.int64], under: NDArray[np.int64]) -> dict[str, float | None]:
        present = self._counts[2]
        return {
            name: float(over[c] / under[c]) if present[c] else None
            for c, name in enumerate(self._classes)
        }


def mean_dice(dice: dict[str, float | None], classes: Sequence[str]) -> float | None:
    """Mean over those of ``classes`` that have a Dice; None where none has."""
    found = [d for name, d in dice.items() if d is not None and name in classes]
    return fmean(found) if found else None


def known_target(
    labels: NDArray[np.int64], annotated: NDArray[np.bool_], states: NDArray[np.uint8]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Target and mask (C, z, y, x) of label ids (z, y, x), by one look-up.

    Parameters
    ----------
    labels : ndarray
        Label ids.
    annotated : ndarray of bool
        One for each class: annotated in this case.
    states : ndarray of uint8
        The label table's states (ids, classes).
    """
    voxels = np.moveaxis(states[labels], -1, 0)
    return voxels == PRESENT, (voxels != UNKNOWN) & annotated[:, None, None, None]

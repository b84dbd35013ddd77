"""How much of its known voxels each class fills, and what that weighs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_MAX_WEIGHT = 10.0


def class_weights(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Weight of each class that is present, by median frequency balancing.

    The median of the classes' fractions over a class's own (Eigen and Fergus, "Predicting
    depth, surface normals and semantic labels", ICCV 2015), between 0.1 and 10, because a
    larger one lets single voxels steer a step.
    """
    found = fractions(rows)
    middle = float(np.median(list(found.values()))) if found else 0.0
    return {
        name: float(np.clip(middle / fraction, 1 / _MAX_WEIGHT, _MAX_WEIGHT))
        for name, fraction in found.items()
    }


def known_fraction(row: dict[str, Any]) -> float | None:
    """Fraction of a class in all its known voxels of all crops; None where none is known."""
    known = row["voxels"]["present"] + row["voxels"]["absent"]
    return float(row["voxels"]["present"] / known) if known else None


def fractions(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Fraction of each class that is present anywhere."""
    return {r["name"]: f for r in rows if (f := known_fraction(r))}

"""Trainings compared on what all of them scored: a mean over easier classes is no better."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cellmap_core.models import TrainResult
from cellmap_core.report.text import mean_of
from cellmap_core.scores import Scores


class Comparison(NamedTuple):
    """A ranking of algorithms.

    Attributes
    ----------
    ranked : list of str
        Best first; those without a score last.
    dice : dict
        Algorithm → the mean that ranks it, over its folds; None for no score.
    note : str
        What the ranking leaves out; empty where all were scored on the same folds and classes.
    """

    ranked: list[str]
    dice: dict[str, float | None]
    note: str


def scores_of(result: TrainResult) -> Scores:
    """Dice and trivial Dice of a training, by class."""
    return Scores(dice=result.dice, trivial=result.trivial_dice)


def same_classes(results: Iterable[TrainResult]) -> tuple[str, ...]:
    """The classes that every training with a Dice by class has scored."""
    scored = [scores_of(r).scored for r in results if r.dice and r.mean_dice is not None]
    return tuple(c for c in scored[0] if all(c in s for s in scored)) if scored else ()


def compare(results: Sequence[TrainResult]) -> Comparison:
    """Rank algorithms by their mean Dice over the folds and classes that all of them scored."""
    algos = sorted({r.bundle.algo for r in results})
    some = [r for r in results if r.mean_dice is not None]
    cells = _common_cells(some)
    own = {a: mean_of(r.mean_dice for r in results if r.bundle.algo == a) for a in algos}
    by_class = all(r.dice for r in some)
    if not cells or not by_class:
        dice, note = own, _why_not_compared(some, by_class)
    else:
        dice = {a: _mean_over_cells(some, a, cells) for a in algos}
        note = "" if _alike(some, cells) else _what_is_compared(cells)
    ranked = sorted(algos, key=lambda a: 1.0 if (score := dice[a]) is None else -score)
    return Comparison(ranked, dice, note)


def _common_cells(results: Sequence[TrainResult]) -> dict[int, tuple[str, ...]]:
    """Folds that every algorithm has a score of, and the classes that all scored there."""
    algos = {r.bundle.algo for r in results}
    cells = {}
    for fold in sorted({r.bundle.fold for r in results}):
        here = [r for r in results if r.bundle.fold == fold]
        if {r.bundle.algo for r in here} == algos and (classes := same_classes(here)):
            cells[fold] = classes
    return cells


def _mean_over_cells(
    results: Sequence[TrainResult], algo: str, cells: dict[int, tuple[str, ...]]
) -> float | None:
    return mean_of(
        scores_of(r).mean_over(cells[r.bundle.fold])
        for r in results
        if r.bundle.algo == algo and r.bundle.fold in cells
    )


def _alike(results: Sequence[TrainResult], cells: dict[int, tuple[str, ...]]) -> bool:
    """Whether every training scored its fold's cells and nothing else."""
    return all(scores_of(r).scored == cells.get(r.bundle.fold) for r in results)


def _what_is_compared(cells: dict[int, tuple[str, ...]]) -> str:
    folds = "; ".join(f"fold {fold}: {', '.join(classes)}" for fold, classes in cells.items())
    return (
        "The algorithms were not all scored on the same folds and classes. They are ranked by "
        f"`compared Dice`, the mean over what all of them scored ({folds})."
    )


def _why_not_compared(results: Sequence[TrainResult], by_class: bool) -> str:
    if len({r.bundle.algo for r in results}) < 2:
        return ""
    if not by_class:
        silent = sorted({r.bundle.algo for r in results if not r.dice})
        return (
            f"{', '.join(silent)} tells no Dice by class: the ranking is by each one's own mean, "
            "which may be over other classes."
        )
    return (
        "The algorithms have no fold and class in common: the ranking is by means over different "
        "folds or classes, which cannot be compared."
    )

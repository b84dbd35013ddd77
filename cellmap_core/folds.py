"""Folds without leakage: all crops of a dataset together, every class spread evenly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cellmap_core.models import Frozen


class FoldItem(Frozen):
    """One crop as the folds see it: its dataset and the classes present in it."""

    name: str
    dataset: str
    present: tuple[str, ...]


def assign_folds(
    items: Sequence[FoldItem], num_fold: int, by: str = "auto"
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Give every crop a fold.

    Whole groups go, the largest first, each to the fold where it leaves crops and classes
    most even (least sum over folds of the squared share of each class and of all crops).

    Parameters
    ----------
    items : sequence of FoldItem
        The crops, in any order; the result does not depend on it.
    num_fold : int
        Number of folds; at most the number of crops is used.
    by : str
        ``dataset``, ``crop`` or ``auto``: by dataset where there are enough of them.

    Returns
    -------
    folds : dict of str to int
        Fold by crop name.
    notes : tuple of str
        What could not be had: shared datasets, classes missing from a fold.
    """
    datasets = sorted({item.dataset for item in items})
    by_dataset = by == "dataset" or (by == "auto" and len(datasets) >= num_fold)
    groups: dict[str, list[FoldItem]] = {}
    for item in sorted(items, key=lambda i: i.name):
        groups.setdefault(item.dataset if by_dataset else item.name, []).append(item)
    count = min(num_fold, len(groups))
    placed = _place(groups, count)
    folds = {item.name: placed[key] for key, group in groups.items() for item in group}
    notes = _notes(items, folds, count)
    if not by_dataset and len(datasets) < len(items):
        notes = (
            f"crops of one dataset are in different folds ({len(datasets)} datasets for "
            f"{num_fold} folds): validation Dice is optimistic for other specimens",
            *notes,
        )
    return folds, notes


def _place(groups: Mapping[str, list[FoldItem]], count: int) -> dict[str, int]:
    weights = {key: _weight(group) for key, group in groups.items()}
    totals: dict[str, float] = {}
    for weight in weights.values():
        for name, value in weight.items():
            totals[name] = totals.get(name, 0) + value
    loads: list[dict[str, float]] = [{} for _ in range(count)]
    placed: dict[str, int] = {}
    order = sorted(groups, key=lambda key: (-sum(weights[key].values()), key))
    for position, key in enumerate(order):
        empty = [f for f in range(count) if not loads[f]]
        # Every fold must validate something: the last groups fill the folds still empty.
        choices = empty if len(order) - position <= len(empty) else range(count)
        fold = min(choices, key=lambda f: (_cost(loads[f], weights[key], totals), f))
        placed[key] = fold
        for name, value in weights[key].items():
            loads[fold][name] = loads[fold].get(name, 0) + value
    return placed


def _weight(group: Sequence[FoldItem]) -> dict[str, float]:
    """Crops of a group: in all (under the empty name) and with each class present."""
    weight = {"": float(len(group))}
    for item in group:
        for name in item.present:
            weight[name] = weight.get(name, 0) + 1
    return weight


def _cost(load: dict[str, float], new: dict[str, float], totals: dict[str, float]) -> float:
    """How much adding a group raises the sum of squared shares of a fold."""
    return sum(
        ((load.get(n, 0) + v) / totals[n]) ** 2 - (load.get(n, 0) / totals[n]) ** 2
        for n, v in new.items()
    )


def _notes(items: Sequence[FoldItem], folds: dict[str, int], count: int) -> tuple[str, ...]:
    notes = []
    for name in sorted({c for item in items for c in item.present}):
        having = {folds[item.name] for item in items if name in item.present}
        if len(having) == 1:
            (only,) = having
            notes.append(
                f"{name} is present in fold {only} alone: the model of fold {only} never sees it, "
                "the others never validate it"
            )
        elif missing := sorted(set(range(count)) - having):
            listed = ", ".join(map(str, missing))
            notes.append(f"{name} is not present in fold {listed}: not validated there")
    return tuple(notes)

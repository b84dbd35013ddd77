"""Folds without leakage: all crops of a dataset together, every class spread evenly."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from cellmap_core.datalist import Datalist, Entry, read_datalist, write_datalist
from cellmap_core.errors import DatalistError
from cellmap_core.models import Frozen

logger = logging.getLogger(__name__)


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
    notes = _notes(items, folds, count) if count > 1 else ()
    if count < num_fold:
        what = "datasets" if by_dataset else "crops"
        notes = (f"{num_fold} folds asked for, {count} made: there are no more {what}", *notes)
    if not by_dataset and len(datasets) < len(items):
        notes = (
            f"crops of one dataset are in different folds ({len(datasets)} datasets for "
            f"{num_fold} folds): validation Dice is optimistic for other specimens",
            *notes,
        )
    return folds, notes


def with_folds(datalist: Datalist, num_fold: int, by: str = "auto") -> Datalist:
    """The same list with its training cases assigned to folds anew, and notes on them."""
    items = [
        FoldItem(
            name=entry.image,  # Unlike a name, a path is no one else's.
            dataset=entry.cellmap.dataset if entry.cellmap else entry.image,
            present=tuple(datalist.classes[i - 1] for i in entry.present_classes),
        )
        for entry in datalist.training
    ]
    folds, notes = assign_folds(items, num_fold, by)
    for note in notes:
        logger.warning("folds: %s", note)
    training = tuple(e.model_copy(update={"fold": folds[e.image]}) for e in datalist.training)
    return datalist.model_copy(update={"training": training, "notes": notes})


def check_fold_count(source: Path, num_fold: int) -> Datalist:
    """Read a datalist, refusing one with fewer crops to train on than folds."""
    datalist = read_datalist(source)
    count = len(datalist.training)
    if count < num_fold:
        raise DatalistError(
            f"{source} has {count} crops to train on",
            f"at least one for each of {num_fold} folds",
            f"set num_fold to {max(count, 2)} or less, or add crops",
        )
    return datalist


def working_datalist(source: Path, work_dir: Path, num_fold: int, by: str = "auto") -> Path:
    """Put the datalist that training uses into the work folder.

    Folds of the source stand if there are as many as asked for; else they are assigned anew.
    Later stages need the work folder alone.

    Raises
    ------
    DatalistError
        There are fewer training cases than folds.
    """
    datalist = check_fold_count(source, num_fold)
    if datalist.folds() != tuple(range(num_fold)):
        logger.warning(
            "folds: %s has folds %s, %d were asked for: its crops are assigned anew",
            source,
            list(datalist.folds()),
            num_fold,
        )
        datalist = with_folds(datalist, num_fold, by)
    target = work_dir / "datalist.json"
    moved = {
        "training": tuple(_moved(e, datalist.folder, work_dir) for e in datalist.training),
        "testing": tuple(_moved(e, datalist.folder, work_dir) for e in datalist.testing),
    }
    write_datalist(target, datalist.model_copy(update=moved))
    return target


def _moved(entry: Entry, old: Path, new: Path) -> Entry:
    def relative(name: str | None) -> str | None:
        return None if name is None else os.path.relpath(old / name, new.resolve())

    return entry.model_copy(update={"image": relative(entry.image), "label": relative(entry.label)})


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

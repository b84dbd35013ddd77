"""Folds without leakage: all crops of a dataset together, every class spread evenly."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from cellmap_core.datalist import Datalist, Entry, read_datalist, write_datalist
from cellmap_core.errors import DatalistError
from cellmap_core.leakage import joined, leakage_notes, shared_voxels
from cellmap_core.models import Frozen

logger = logging.getLogger(__name__)


# A training needs a crop to train on and one to validate.
_FEWEST = 2
# With fewer datasets than this for each fold, classes may weigh more than datasets.
_MANY = 2
# The part of the classes that must gain by it before crops of a dataset are parted.
_WORTH = 0.25


class FoldItem(Frozen):
    """One crop as the folds see it.

    Attributes
    ----------
    name, dataset : str
        Its name, which no other has, and the specimen it is of.
    present : tuple of str
        Classes present in it.
    together : str
        The same for crops that must be in one fold; empty for a crop that is free.
    """

    name: str
    dataset: str
    present: tuple[str, ...]
    together: str = ""


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
        Number of folds; at most the number of groups is used.
    by : str
        ``dataset``, ``crop`` or ``auto``: by dataset where there are enough of them. With fewer
        than two datasets a fold they are parted all the same if that keeps a quarter of the
        classes from being in one fold alone, where nothing validates them.

    Returns
    -------
    folds : dict of str to int
        Fold by crop name.
    notes : tuple of str
        What could not be had: shared datasets, classes missing from a fold; with the remedy.
    """
    items = sorted(items, key=lambda i: i.name)
    folds, by_dataset, gained = _chosen(items, num_fold, by)
    made, datasets = len(set(folds.values())), len(_groups(items, by_dataset=True))
    crops = len(_groups(items, by_dataset=False))
    notes = []
    if made < num_fold:
        notes.append(
            f"{num_fold} folds asked for, {made} made: {_why_no_more(items, made, by_dataset)}; "
            f"{fold_remedy(made, by_dataset, parts=crops > made)}"
        )
    if not by_dataset and datasets < crops:
        why = f"else {', '.join(gained)} would be in one fold alone; " if by == "auto" else ""
        notes.append(
            f"crops of one dataset are in different folds ({why if gained else ''}{datasets} "
            f"datasets for {num_fold} folds): validation Dice is optimistic for other specimens"
            f"{'; fold_by=dataset keeps them together' if datasets >= num_fold else ''}"
        )
    if made > 1:
        notes += _class_notes(items, folds, by, by_dataset)
    return folds, tuple(notes)


def _chosen(
    items: Sequence[FoldItem], num_fold: int, by: str
) -> tuple[dict[str, int], bool, tuple[str, ...]]:
    """Fold by crop name, whether datasets are whole, and the classes that gain if they are not."""
    whole, parted = (_deal(_groups(items, d), num_fold) for d in (True, False))
    datasets = len(_groups(items, by_dataset=True))
    few = num_fold <= datasets < _MANY * num_fold
    gained = _gained(items, whole, parted) if few else ()
    by_dataset = by == "dataset" or (by == "auto" and datasets >= num_fold and not gained)
    return (whole if by_dataset else parted), by_dataset, gained


def _why_no_more(items: Sequence[FoldItem], made: int, by_dataset: bool) -> str:
    """Why there are no more groups of crops than folds were made."""
    what = "datasets" if by_dataset else "crops"
    count = len({item.dataset for item in items}) if by_dataset else len(items)
    if count == made:
        return f"there are no more {what}"
    shared = "datasets with crops" if by_dataset else "crops"
    return (
        f"{shared} that show the same voxels are in one fold, and the {count} {what} are "
        f"{made} such group{'' if made == 1 else 's'}"
    )


def with_folds(datalist: Datalist, num_fold: int, by: str = "auto") -> Datalist:
    """The same list with its training cases assigned to folds anew, and notes on them.

    Cases that show the same voxels are in one fold.
    """
    pairs = shared_voxels(datalist)
    folds, notes = assign_folds(_items(datalist, pairs), num_fold, by)
    training = tuple(e.model_copy(update={"fold": folds[e.image]}) for e in datalist.training)
    dealt = datalist.model_copy(update={"training": training})
    notes = (*notes, *leakage_notes(dealt, pairs))
    _log(notes)
    return dealt.model_copy(update={"notes": notes})


def _items(datalist: Datalist, pairs: Sequence[tuple[Entry, Entry]]) -> list[FoldItem]:
    """The training cases as the folds see them; ``pairs`` are those that share voxels."""
    trained = {entry.image for entry in datalist.training}
    together = joined((a.image, b.image) for a, b in pairs if b.image in trained)
    return [
        FoldItem(
            name=entry.image,  # Unlike a name, a path is no one else's.
            dataset=specimen_of(entry),
            present=tuple(datalist.classes[i - 1] for i in entry.present_classes),
            together=together.get(entry.image, ""),
        )
        for entry in datalist.training
    ]


def crops_lacking(source: object, count: int, num_fold: int) -> tuple[str, str, str] | None:
    """Return what an error says of fewer crops to train on than folds; None where they do.

    No number of folds does for fewer than two crops: one has to validate.
    """
    if count >= num_fold:
        return None
    return (
        f"{source} has {count} crop{'' if count == 1 else 's'} to train on",
        f"at least one for each of {num_fold} folds",
        f"set num_fold to {count} or less, or add crops"
        if count >= _FEWEST
        else f"add crops: a training needs at least {_FEWEST}, one of them to validate",
    )


def check_fold_count(source: Path, num_fold: int) -> Datalist:
    """Read a datalist, refusing one with fewer crops to train on than folds."""
    datalist = read_datalist(source)
    if lacking := crops_lacking(source, len(datalist.training), num_fold):
        raise DatalistError(*lacking)
    return datalist


def working_datalist(source: Path, work_dir: Path, num_fold: int, by: str = "auto") -> Path:
    """Put the datalist that training uses into the work folder.

    Folds of the source stand if there are as many as asked for; else they are assigned anew.
    Later stages need the work folder alone.

    Raises
    ------
    DatalistError
        There are fewer training cases, or groups of them, than folds.
    """
    datalist = check_fold_count(source, num_fold)
    for remark in datalist.remarks:
        logger.warning("%s", remark)
    if datalist.folds() != tuple(range(num_fold)):
        logger.warning(
            "folds: %s has folds %s, %d were asked for: its crops are assigned anew",
            source,
            list(datalist.folds()),
            num_fold,
        )
        datalist = with_folds(datalist, num_fold, by)
        _check_made(source, datalist, num_fold, by)
    else:
        leaks = leakage_notes(datalist, shared_voxels(datalist))
        _log(leaks)
        notes = tuple(dict.fromkeys((*datalist.notes, *leaks)))
        datalist = datalist.model_copy(update={"notes": notes})
    target = work_dir / "datalist.json"
    moved = {
        "training": tuple(_moved(e, datalist.folder, work_dir) for e in datalist.training),
        "testing": tuple(_moved(e, datalist.folder, work_dir) for e in datalist.testing),
    }
    write_datalist(target, datalist.model_copy(update=moved))
    return target


def _check_made(source: Path, datalist: Datalist, num_fold: int, by: str) -> None:
    made = len(datalist.folds())
    if made < num_fold:
        # Where there are too few datasets, auto has parted them already.
        by_dataset = by == "dataset"
        items = _items(datalist, shared_voxels(datalist))
        raise DatalistError(
            f"{source}: {made} of {num_fold} folds can be made with fold_by={by}: "
            f"{_why_no_more(items, made, by_dataset)}",
            "a group of crops for each fold",
            fold_remedy(made, by_dataset, parts=len(_groups(items, by_dataset=False)) > made),
        )


def fold_remedy(groups: int, by_dataset: bool, parts: bool = True) -> str:
    """Return what to do about fewer groups of crops than folds.

    Parameters
    ----------
    groups : int
        How many there are.
    by_dataset : bool
        Whether a dataset is in one group as a whole.
    parts : bool
        Whether there would be more groups if it were not.
    """
    choices = ["set fold_by=crop"] if by_dataset and parts else []
    choices += [f"set num_fold to {groups} or less"] if groups >= _FEWEST else []
    return " or ".join([*choices, f"add crops{' of other datasets' if by_dataset else ''}"])


def _log(notes: Sequence[str]) -> None:
    for note in notes:
        logger.warning("folds: %s", note)


def specimen_of(entry: Entry) -> str:
    """Return what a case is of: its dataset, or the dataset that shows the same volume."""
    info = entry.cellmap
    return (info.specimen or info.dataset) if info else entry.image


def _moved(entry: Entry, old: Path, new: Path) -> Entry:
    def relative(name: str | None) -> str | None:
        return None if name is None else os.path.relpath(old / name, new.resolve())

    return entry.model_copy(update={"image": relative(entry.image), "label": relative(entry.label)})


def _groups(items: Sequence[FoldItem], by_dataset: bool) -> dict[str, list[FoldItem]]:
    """The crops that go into a fold as one, by the least dataset or name among them."""
    pairs = [(f"n {i.name}", f"d {i.dataset}" if by_dataset else f"n {i.name}") for i in items]
    pairs += [(f"n {i.name}", f"t {i.together}") for i in items if i.together]
    group_of = joined(pairs)
    found: dict[str, list[FoldItem]] = {}
    for item in items:
        found.setdefault(group_of[f"n {item.name}"], []).append(item)
    names = ((min(i.dataset if by_dataset else i.name for i in g), g) for g in found.values())
    return dict(names)


def _deal(groups: Mapping[str, list[FoldItem]], num_fold: int) -> dict[str, int]:
    """Fold by crop name; as many folds as asked for, or as there are groups."""
    placed = _place(groups, min(num_fold, len(groups)))
    return {item.name: placed[key] for key, group in groups.items() for item in group}


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


def _folds_having(items: Sequence[FoldItem], folds: Mapping[str, int]) -> dict[str, set[int]]:
    """The folds in which each class is present."""
    having: dict[str, set[int]] = {}
    for item in items:
        for name in item.present:
            having.setdefault(name, set()).add(folds[item.name])
    return having


def _gained(
    items: Sequence[FoldItem], whole: Mapping[str, int], parted: Mapping[str, int]
) -> tuple[str, ...]:
    """Classes in one fold alone unless datasets are parted; none where they are too few."""
    alone = _folds_having(items, whole)
    more = _folds_having(items, parted)
    gained = sorted(n for n in alone if len(alone[n]) == 1 and len(more[n]) > 1)
    return tuple(gained) if len(gained) >= _WORTH * len(alone) else ()


def _class_notes(
    items: Sequence[FoldItem], folds: Mapping[str, int], by: str, by_dataset: bool
) -> list[str]:
    """A note on each class that a fold cannot validate, with the remedy."""
    notes, every = [], set(folds.values())
    lacking = {n: h for n, h in sorted(_folds_having(items, folds).items()) if h != every}
    remedies = _class_remedies(items, lacking, len(every), by, by_dataset) if lacking else {}
    for name, having in lacking.items():
        if len(having) == 1:
            (only,) = having
            notes.append(
                f"{name} is present in fold {only} alone: the model of fold {only} never sees it, "
                f"the others never validate it; {remedies[name]}"
            )
        else:
            listed = ", ".join(map(str, sorted(every - having)))
            notes.append(
                f"{name} is not present in fold {listed}: not validated there; {remedies[name]}"
            )
    return notes


def _class_remedies(
    items: Sequence[FoldItem],
    lacking: Mapping[str, set[int]],
    made: int,
    by: str,
    by_dataset: bool,
) -> dict[str, str]:
    """What helps each class that is not in every fold; what does not help is left out."""
    better = _folds_having(items, _deal(_groups(items, by_dataset=False), made))
    fewer = {
        count: _folds_having(items, _chosen(items, count, by)[0])
        for count in range(made - 1, _FEWEST - 1, -1)
    }
    remedies = {}
    for name, having in lacking.items():
        if len(better[name]) > len(having):
            remedies[name] = f"fold_by=crop has it in {len(better[name])} folds"
            continue
        remedies[name] = f"annotate it in more crops{' of other datasets' if by_dataset else ''}"
        enough = next((n for n, found in fewer.items() if len(found[name]) == n), None)
        if enough is not None:
            remedies[name] += f", or set num_fold to {enough}, which has it in every fold"
    return remedies

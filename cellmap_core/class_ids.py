"""The label table of datalists made elsewhere, which name classes in one of several ways.

``class_names`` is a plain list (ids from 1 on), MONAI's groups (``{name, index: [ids]}``) or an
object; ``labels`` is nnU-Net's object (``{name: id}``, with a list of ids for a region) or
Decathlon's (``{"id": name}``). A class called background stands for voxels of no class, and in
an object ``ignore`` for voxels of which nothing is known, as nnU-Net has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cellmap_core.errors import DatalistError
from cellmap_core.label_table import Combination, LabelTable

_BACKGROUND, _IGNORE = "background", "ignore"
_EXPECTED = "class_names: [{name, index: [ids]}], or labels: {name: id}"
# Label files of more than 16 bits are not met, and every id has a row in the table.
_LAST_ID = (1 << 16) - 1

Ids = dict[str, tuple[int, ...]]


def table_of(document: Mapping[str, Any]) -> LabelTable:
    """Return the label table that a datalist's document describes.

    Raises
    ------
    DatalistError
        No class is named, a name or an id has two meanings, or an id is not a whole number.
    """
    given, labels = document.get("class_names"), document.get("labels")
    if document.get("label_table") is not None:
        return _own_table(given, document["label_table"])
    if isinstance(given, list) and given:
        if all(isinstance(group, dict) for group in given):
            return _table(_of_groups(given))
        names = _of_names(given)
        if isinstance(labels, dict):
            _check_agreement(names, _of_object(labels))
        return _table(names)
    for value in (given, labels):
        if isinstance(value, dict) and value:
            return _table(_of_object(value), with_ignore=True)
    raise DatalistError("it names no classes", _EXPECTED)


def _own_table(given: Any, rows: Any) -> LabelTable:
    if not isinstance(given, list) or not given:
        raise DatalistError("it names no classes", "class_names: [{name, index: [ids]}]")
    if not isinstance(rows, list):
        raise DatalistError(f"label_table is {type(rows).__name__}", "a list")
    names = [_name(g.get("name") if isinstance(g, dict) else g) for g in given]
    return LabelTable.from_json(_unique(names), rows)


def _of_names(names: Sequence[Any]) -> Ids:
    """Ids of a plain list: its places, from 0 where it begins with background, else from 1."""
    listed = _unique([_name(name) for name in names])
    places = [i for i, name in enumerate(listed) if _is_background(name)]
    if places not in ([], [0]):
        raise DatalistError(
            f"class_names has {listed[places[0]]} at place {places[0] + 1}",
            "background first, which is id 0, or not at all",
        )
    return {name: (i,) for i, name in enumerate(listed, start=0 if places else 1)}


def _of_groups(groups: Sequence[Mapping[str, Any]]) -> Ids:
    names = _unique([_name(group.get("name")) for group in groups])
    return {n: _ids(n, group.get("index")) for n, group in zip(names, groups, strict=True)}


def _of_object(labels: Mapping[str, Any]) -> Ids:
    """Ids of nnU-Net's object, or of Decathlon's, whose keys are the ids; sorted by id."""
    if all(k.isdecimal() and isinstance(value, str) for k, value in labels.items()):
        _unique(list(labels.values()))
        found = {_name(name): _ids(str(name), key) for key, name in labels.items()}
    else:
        found = {_name(name): _ids(str(name), value) for name, value in labels.items()}
    return dict(sorted(found.items(), key=lambda item: min(item[1])))


def _check_agreement(names: Ids, labels: Ids) -> None:
    for name, ids in names.items():
        if name in labels and labels[name] != ids:
            raise DatalistError(
                f"class_names has {name} at id {_text(ids)}, labels at {_text(labels[name])}",
                "one id for a class",
                "leave one of the two keys out",
            )


def _table(ids: Ids, with_ignore: bool = False) -> LabelTable:
    """The table in which an id has every class that lists it."""
    classes = [n for n in ids if not (_is_background(n) or (with_ignore and _is_ignore(n)))]
    if not classes:
        raise DatalistError("it names no class but background", _EXPECTED)
    if first := [n for n in classes if 0 in ids[n]]:
        raise DatalistError(
            f"class {first[0]} has id 0", "id 0 for background alone", "give the class another id"
        )
    background = {i for n in ids if _is_background(n) for i in ids[n]}
    ignored = {i for n in ids if with_ignore and _is_ignore(n) for i in ids[n]}
    of_class = {i for n in classes for i in ids[n]}
    if twice := sorted((of_class & (background | ignored)) | (background & ignored)):
        raise DatalistError(
            f"id {twice[0]} is of a class and of background or ignore", "one of them"
        )
    defined = {0, *background, *ignored, *of_class}
    combinations = (
        Combination(
            id=i,
            present=tuple(n for n in classes if i in ids[n]),
            unknown=tuple(classes) if i in ignored else (),
            undefined=i not in defined,
        )
        for i in range(max(defined) + 1)
    )
    return LabelTable(classes=tuple(classes), combinations=tuple(combinations))


def _ids(name: str, value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    try:
        ids = tuple(int(v) for v in values)
        whole = all(float(v) == i for v, i in zip(values, ids, strict=True))
    except (TypeError, ValueError) as error:
        raise DatalistError(f"class {name} has no ids but {value!r}", _EXPECTED) from error
    if not ids or not whole or min(ids) < 0 or max(ids) > _LAST_ID:
        raise DatalistError(
            f"class {name} has ids {value!r}", f"whole numbers from 0 to {_LAST_ID}"
        )
    return ids


def _name(name: Any) -> str:
    if not isinstance(name, str | int) or not str(name).strip():
        raise DatalistError(f"a class is called {name!r}", "a name")
    return str(name)


def _unique(names: list[str]) -> list[str]:
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise DatalistError(f"it names {twice[0]} twice", "each class once")
    return names


def _is_background(name: str) -> bool:
    return name.strip(" _").lower() == _BACKGROUND


def _is_ignore(name: str) -> bool:
    return name.strip(" _").lower() == _IGNORE


def _text(ids: Iterable[int]) -> str:
    return ", ".join(map(str, ids))

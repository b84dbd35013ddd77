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
        No class is named, a name or an id has two meanings, two keys contradict each other, or
        an id is not a whole number.
    """
    given, labels = document.get("class_names"), document.get("labels")
    if document.get("label_table") is not None:
        table = _own_table(given, document["label_table"])
        ids = {str(g["name"]): tuple(g["index"]) for g in table.groups()}
        if groups := [g for g in given or () if isinstance(g, dict) and g.get("index")]:
            _check_agreement(("label_table", ids), ("class_names", _of_groups(groups)))
        if isinstance(labels, dict):
            _check_agreement(("label_table", ids), ("labels", _of_object(labels)))
        return table
    named = _of_class_names(given) if isinstance(given, list | dict) and given else None
    numbered = _of_object(labels) if isinstance(labels, dict) and labels else None
    if named and numbered:
        _check_agreement(("class_names", named), ("labels", numbered))
    if ids := named or numbered or {}:
        return _table(ids, with_ignore=not isinstance(given, list) or not given)
    raise DatalistError("it names no classes", _EXPECTED)


def _of_class_names(given: list[Any] | dict[str, Any]) -> Ids:
    if isinstance(given, dict):
        return _of_object(given)
    if all(isinstance(group, dict) for group in given):
        return _of_groups(given)
    return _of_names(given)


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


def _check_agreement(one: tuple[str, Ids], other: tuple[str, Ids]) -> None:
    """Refuse two keys of a datalist that give a class two ids, or an id two classes.

    Where a class has several ids, the keys may group the ids in two ways under other names.

    Parameters
    ----------
    one, other : tuple of (str, dict)
        The key's name, and the ids by class.

    Raises
    ------
    DatalistError
        They contradict each other.
    """
    (key, ids), (other_key, others) = one, other
    for name in ids:
        if name in others and set(others[name]) != set(ids[name]):
            raise DatalistError(
                f"{key} has {name} at id {_text(ids[name])}, {other_key} at {_text(others[name])}",
                "one id for a class",
                "leave one of the two keys out",
            )
    if any(len(i) > 1 for i in (*ids.values(), *others.values())):
        return
    called = {i: name for name, own in others.items() for i in own}
    for name, i in ((name, i) for name, own in ids.items() for i in own):
        if i in called and _plain(called[i]) != _plain(name):
            raise DatalistError(
                f"{key} calls id {i} {name}, {other_key} calls it {called[i]}",
                "one class for an id",
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
    return _plain(name) == _BACKGROUND


def _is_ignore(name: str) -> bool:
    return _plain(name) == _IGNORE


def _plain(name: str) -> str:
    return name.strip(" _").lower()


def _text(ids: Iterable[int]) -> str:
    return ", ".join(map(str, ids)) or "none"

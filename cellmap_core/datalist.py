"""``datalist.json``: Auto3DSeg's list of cases, with the label table and the folds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from cellmap_core.errors import DatalistError, PathError
from cellmap_core.label_table import LabelTable
from cellmap_core.models import Frozen
from cellmap_core.paths import expand
from cellmap_core.provenance import write_json

# Fields of an entry that hold class ids.
_ID_FIELDS = ("annotated_classes", "present_classes")


class CaseInfo(Frozen):
    """Where a case comes from. Kept as one object: MONAI joins a folder onto bare strings.

    Attributes
    ----------
    dataset, crop : str
        Its names.
    voxel_nm, translation_nm : tuple of float
        Voxel size and centre of the first voxel (z, y, x).
    alignment : str
        What conversion found of its labels: ``aligned``, ``shifted``, ``unclear`` or
        ``unlabelled``; empty where nobody looked.
    label_shift_nm : tuple of float or None
        How far the labels lie off the EM, where they are shifted.
    """

    dataset: str
    crop: str
    voxel_nm: tuple[float, float, float]
    translation_nm: tuple[float, float, float]
    alignment: str = ""
    label_shift_nm: tuple[float, float, float] | None = None


class Entry(Frozen):
    """One case of the datalist; paths are relative to the datalist's folder.

    Attributes
    ----------
    image, label : str
        NIfTI files; ``label`` is None for a case to predict that has no labels.
    fold : int
        The fold in which the case validates; None in the testing list.
    annotated_classes : tuple of int
        Ids (1..C) of the classes annotated in this crop. At every voxel of the crop all
        other classes are unknown, whatever the label id says.
    present_classes : tuple of int
        Ids of the classes present in this crop; what folds are balanced by.
    cellmap : CaseInfo
        Dataset, crop and geometry.
    """

    image: str
    label: str | None = None
    fold: int | None = None
    annotated_classes: tuple[int, ...] = ()
    present_classes: tuple[int, ...] = ()
    cellmap: CaseInfo | None = None

    @property
    def name(self) -> str:
        """The case as users call it: ``dataset/crop``, or the image's file name."""
        return (
            f"{self.cellmap.dataset}/{self.cellmap.crop}" if self.cellmap else Path(self.image).name
        )

    @property
    def stem(self) -> str:
        """The case's name in file names."""
        return Path(self.image).name.removesuffix(".gz").removesuffix(".nii")


class Datalist(Frozen):
    """The whole list.

    Attributes
    ----------
    folder : Path
        The folder of ``datalist.json``, to which all paths are relative.
    table : LabelTable
        Classes and label ids.
    training, testing : tuple of Entry
        Cases with folds to train on; held-out cases to predict (scored where labelled).
    """

    folder: Path
    table: LabelTable
    training: tuple[Entry, ...]
    testing: tuple[Entry, ...] = ()
    notes: tuple[str, ...] = Field(default=())

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their ids 1..C."""
        return self.table.classes

    def path(self, relative: str) -> Path:
        """A file of the list, by its path there."""
        return self.folder / relative

    def folds(self) -> tuple[int, ...]:
        """The folds in use, sorted."""
        return tuple(sorted({e.fold for e in self.training if e.fold is not None}))

    def split(self, fold: int) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
        """Training and validation cases of one fold."""
        return (
            tuple(e for e in self.training if e.fold != fold),
            tuple(e for e in self.training if e.fold == fold),
        )

    def to_json(self) -> dict[str, Any]:
        """The document as it is written."""
        return {
            "training": [self._row(e) for e in self.training],
            "testing": [self._row(e) for e in self.testing],
            "class_names": self.table.groups(),
            "label_table": self.table.to_json(),
            "notes": list(self.notes),
        }

    def _row(self, entry: Entry) -> dict[str, Any]:
        """An entry as it is written, with class ids as ``{name: id}``."""
        # MONAI's datafold_read takes every item of a list for a path and stops at a number.
        row = entry.model_dump(mode="json", exclude_none=True)
        for key in _ID_FIELDS:
            row[key] = {self.classes[i - 1]: i for i in row[key]}
        return row


def write_datalist(path: Path, datalist: Datalist) -> None:
    """Write ``datalist.json``, whole or not at all."""
    write_json(path, datalist.to_json())


def read_datalist(path: Path) -> Datalist:
    """Read and check a ``datalist.json``.

    Lists made elsewhere work too: where there is no label table, the class names (plain or
    MONAI's groups) give one; where a case does not say which classes are annotated, all are.

    Raises
    ------
    DatalistError
        The file is missing, is not JSON, or an entry is not what the contract says.
    """
    if not path.is_file():
        raise DatalistError(
            f"no datalist at {path}", "a datalist.json", "make it with flows/convert.py"
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DatalistError(f"{path} is not readable JSON ({error})", "a datalist.json") from error
    if not isinstance(document, dict):
        raise DatalistError(f"{path} is no JSON object", "keys training, testing, class_names")
    table = _table(path, document)
    training = _entries(path, document, "training", len(table.classes))
    testing = _entries(path, document, "testing", len(table.classes))
    if missing := [e.name for e in training if e.label is None]:
        raise DatalistError(f"{path}: training case {missing[0]} has no label", "image and label")
    return Datalist(
        folder=path.resolve().parent,
        table=table,
        training=training,
        testing=testing,
        notes=tuple(document.get("notes") or ()),
    )


def _table(path: Path, document: dict[str, Any]) -> LabelTable:
    groups = document.get("class_names")
    if not isinstance(groups, list) or not groups:
        raise DatalistError(f"{path} names no classes", "class_names: [{name, index: [ids]}]")
    names = [str(g.get("name")) if isinstance(g, dict) else str(g) for g in groups]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise DatalistError(f"{path} names {twice[0]} twice", "each class once")
    if document.get("label_table") is not None:
        return LabelTable.from_json(names, _list(path, document, "label_table"))
    if not all(isinstance(g, dict) for g in groups):
        return LabelTable.of(names)
    return _table_of_groups(path, names, groups)


def _table_of_groups(path: Path, names: list[str], groups: list[dict[str, Any]]) -> LabelTable:
    """The table of MONAI's groups alone: an id has every class whose group lists it."""
    try:
        listed = [g["index"] if isinstance(g["index"], list) else [g["index"]] for g in groups]
        indices = [[int(i) for i in group] for group in listed]
        last = max(i for group in indices for i in group)
    except (KeyError, TypeError, ValueError) as error:
        raise DatalistError(f"{path}: class_names without ids", "{name, index: [ids]}") from error
    rows = [
        {"id": i, "present": [n for n, ids in zip(names, indices, strict=True) if i in ids]}
        for i in range(last + 1)
    ]
    return LabelTable.from_json(names, rows)


def _list(path: Path, document: dict[str, Any], key: str) -> list[Any]:
    value = document.get(key)
    if not isinstance(value, list):
        raise DatalistError(f"{path}: {key} is {type(value).__name__}", "a list")
    return value


def _entries(path: Path, document: dict[str, Any], key: str, count: int) -> tuple[Entry, ...]:
    rows = _list(path, document, key) if key == "training" or document.get(key) else []
    entries = tuple(_entry(path, f"{key} entry {n}", row, count) for n, row in enumerate(rows))
    images = [os.path.normpath(entry.image) for entry in entries]
    if twice := sorted({i for i in images if images.count(i) > 1}):
        raise DatalistError(f"{path}: {key} lists {twice[0]} twice", "each image once")
    return entries


def _entry(path: Path, where: str, row: Any, count: int) -> Entry:
    if not isinstance(row, dict):
        raise DatalistError(f"{path}: {where} is {type(row).__name__}", "image, label, fold")
    known = {k: v for k, v in row.items() if k in Entry.model_fields and v is not None}
    for key in _ID_FIELDS:
        if isinstance(known.get(key), dict):
            known[key] = tuple(known[key].values())
    _expand_paths(path, where, known)
    known.setdefault("annotated_classes", tuple(range(1, count + 1)))
    known.setdefault("present_classes", known["annotated_classes"])
    try:
        entry = Entry.model_validate(known)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        raise DatalistError(
            f"{path}: {where}, {field}: {problem['msg'].lower()}", "image, label, fold"
        ) from error
    if strange := [
        i for i in (*entry.annotated_classes, *entry.present_classes) if not 0 < i <= count
    ]:
        raise DatalistError(f"{path}: {where} has class id {strange[0]}", f"ids 1 to {count}")
    return entry


def _expand_paths(path: Path, where: str, row: dict[str, Any]) -> None:
    """Replace ``~`` and variables in the paths of an entry.

    Raises
    ------
    DatalistError
        A variable is not set, or a home folder is not known.
    """
    for key in ("image", "label"):
        if isinstance(row.get(key), str):
            try:
                row[key] = expand(row[key])
            except PathError as error:
                raise DatalistError(
                    f"{path}: {where}, {key}: {error.found}", "", error.do
                ) from error

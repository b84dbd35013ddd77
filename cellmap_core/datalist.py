"""``datalist.json``: Auto3DSeg's list of cases, with the label table and the folds."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from cellmap_core.class_ids import table_of
from cellmap_core.errors import DatalistError, PathError
from cellmap_core.label_table import LabelTable
from cellmap_core.models import Frozen
from cellmap_core.names import distinct_names
from cellmap_core.nifti_names import volume_stem
from cellmap_core.paths import expand
from cellmap_core.provenance import write_json

# Fields of an entry that hold class ids.
_ID_FIELDS = ("annotated_classes", "present_classes")
# Fields of an entry that are not in the file.
_DERIVED = ("title", "file_name")
# Lists of held-out cases, as this and other tools call them.
_TESTING, _VALIDATION = ("testing", "test"), ("validation", "val")


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
    overlaps : tuple of str or None
        Names of the crops that show some of the same voxels; None where none does.
    specimen : str or None
        The dataset that shows the same raw volume, where that is another one.
    """

    dataset: str
    crop: str
    voxel_nm: tuple[float, float, float]
    translation_nm: tuple[float, float, float]
    alignment: str = ""
    label_shift_nm: tuple[float, float, float] | None = None
    overlaps: tuple[str, ...] | None = None
    specimen: str | None = None


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
    title, file_name : str
        The case's name, and its name in file names, where its own are those of others too.
    """

    image: str
    label: str | None = None
    fold: int | None = None
    annotated_classes: tuple[int, ...] = ()
    present_classes: tuple[int, ...] = ()
    cellmap: CaseInfo | None = None
    title: str = Field("", exclude=True)
    file_name: str = Field("", exclude=True)

    @property
    def name(self) -> str:
        """The case as users call it: ``dataset/crop``, or the image's file name."""
        if self.title:
            return self.title
        info = self.cellmap
        return f"{info.dataset}/{info.crop}" if info else Path(self.image).name

    @property
    def stem(self) -> str:
        """The case's name in file names."""
        return self.file_name or volume_stem(self.image)


class Datalist(Frozen):
    """The whole list.

    Attributes
    ----------
    folder : Path
        The folder to which all paths are relative: the ``dataroot`` that was given, else the
        folder of ``datalist.json``.
    table : LabelTable
        Classes and label ids.
    training, testing : tuple of Entry
        Cases with folds to train on; held-out cases to predict (scored where labelled).
    notes : tuple of str
        What the folds could not have, and which cases show the same voxels.
    remarks : tuple of str
        What the file says that is not used as another tool would; not written again.
    """

    folder: Path
    table: LabelTable
    training: tuple[Entry, ...]
    testing: tuple[Entry, ...] = ()
    notes: tuple[str, ...] = Field(default=())
    remarks: tuple[str, ...] = ()

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


def read_datalist(path: Path, dataroot: Path | None = None) -> Datalist:
    """Read and check a ``datalist.json``.

    Lists made elsewhere work too: where there is no label table, their class names or labels
    give one; where a case does not say which classes are annotated, all are. Cases of a list
    ``validation`` are held out, as those of ``testing``.

    Parameters
    ----------
    path : Path
        The file.
    dataroot : Path, optional
        Folder to which its paths are relative (default: the file's own folder). MONAI's runners
        copy the list and name this folder apart from it.

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
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        raise DatalistError(f"{path} is not readable JSON ({error})", "a datalist.json") from error
    if not isinstance(document, dict):
        raise DatalistError(f"{path} is no JSON object", "keys training, testing, class_names")
    root = dataroot or path.parent
    document = {key: _expanded(path, key, rows, root) for key, rows in document.items()}
    try:
        table = table_of(document)
    except DatalistError as error:
        raise DatalistError(f"{path}: {error.found}", error.expected, error.do) from error
    training = _entries(path, document, "training", len(table.classes))
    if missing := [e.name for e in training if e.label is None]:
        raise DatalistError(f"{path}: training case {missing[0]} has no label", "image and label")
    testing = _held_out(path, document, len(table.classes))
    titles = _names_of((*training, *testing), path.parent, lambda e: e.name, "/")
    return Datalist(
        folder=root.resolve(),
        table=table,
        training=_with_names(training, titles, path.parent),
        testing=_with_names(testing, titles, path.parent),
        notes=tuple(document.get("notes") or ()),
        remarks=_remarks(path, document),
    )


def _held_out(path: Path, document: dict[str, Any], count: int) -> tuple[Entry, ...]:
    """The cases of all lists of held-out cases; one that several lists have counts once."""
    found: dict[str, Entry] = {}
    for key in (*_TESTING, *_VALIDATION):
        for entry in _entries(path, document, key, count):
            known = found.get(os.path.normpath(entry.image))
            if known is None or known.label is None:
                found[os.path.normpath(entry.image)] = entry.model_copy(update={"fold": None})
    return tuple(found.values())


def _remarks(path: Path, document: dict[str, Any]) -> tuple[str, ...]:
    """What is not used as another tool would: validation lists, and lists of unknown names."""
    remarks = [
        f"{path}: the cases of its list {key!r} ({len(document[key])}) are held out: the ensemble "
        "predicts and scores them, and no model is trained or chosen by them. Folds validate "
        "cases of 'training'; to choose which, give those the key 'fold'"
        for key in _VALIDATION
        if document.get(key)
    ]
    known = {"training", *_TESTING, *_VALIDATION, "class_names", "label_table", "notes"}
    remarks += [
        f"{path}: the cases of its list {key!r} ({len(rows)}) are not used; expected one of "
        "'training', 'validation' and 'testing'"
        for key, rows in document.items()
        if key not in known and isinstance(rows, list) and rows and all(map(_is_case, rows))
    ]
    return tuple(remarks)


def _is_case(row: Any) -> bool:
    image = row.get("image") if isinstance(row, dict) else row
    return bool(image) and (isinstance(row, dict) or ".nii" in str(image))


def _names_of(
    entries: Iterable[Entry], folder: Path, name_of: Callable[[Entry], str], joint: str
) -> dict[str, str]:
    """Image → a name that no other image has, for those that share theirs."""
    images: dict[str, set[str]] = {}
    for entry in entries:
        images.setdefault(name_of(entry), set()).add(_absolute(folder, entry))
    shared = {name: sorted(places) for name, places in images.items() if len(places) > 1}
    taken = frozenset(images)
    return {
        place: name
        for base, places in shared.items()
        for place, name in distinct_names(base, places, taken - {base}, joint).items()
    }


def _with_names(
    entries: Sequence[Entry], titles: dict[str, str], folder: Path
) -> tuple[Entry, ...]:
    stems = _names_of(entries, folder, lambda e: e.stem, "_")
    places = [_absolute(folder, entry) for entry in entries]
    return tuple(
        entry.model_copy(update={"title": titles.get(place, ""), "file_name": stems.get(place, "")})
        for entry, place in zip(entries, places, strict=True)
    )


def _absolute(folder: Path, entry: Entry) -> str:
    return os.path.normpath(folder.resolve() / entry.image)


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
    if isinstance(row, str) and not where.startswith("training"):
        row = {"image": row}  # As Decathlon lists cases to predict.
    if not isinstance(row, dict):
        raise DatalistError(f"{path}: {where} is {type(row).__name__}", "image, label, fold")
    fields = Entry.model_fields.keys() - set(_DERIVED)
    known = {k: v for k, v in row.items() if k in fields and v is not None}
    for key in _ID_FIELDS:
        if isinstance(known.get(key), dict):
            known[key] = tuple(known[key].values())
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


def _expanded(path: Path, key: str, rows: Any, root: Path) -> Any:
    """A list of cases with ``~`` and variables in its paths replaced; other values as they are.

    Raises
    ------
    DatalistError
        A variable is not set, or a home folder is not known.
    """
    if not isinstance(rows, list):
        return rows
    named = [(f"{path}: {key} entry {n}", row) for n, row in enumerate(rows)]
    if key in (*_TESTING, *_VALIDATION):  # In other lists, texts are names or notes.
        named = [
            (w, _expanded_path(w, row, root) if isinstance(row, str) else row) for w, row in named
        ]
    return [_expanded_row(where, row, root) for where, row in named]


def _expanded_row(where: str, row: Any, root: Path) -> Any:
    if not isinstance(row, dict):
        return row
    keys = [key for key in ("image", "label") if isinstance(row.get(key), str)]
    return {**row, **{key: _expanded_path(f"{where}, {key}", row[key], root) for key in keys}}


def _expanded_path(where: str, path: str, root: Path) -> str:
    try:
        return expand(path, root)
    except PathError as error:
        raise DatalistError(f"{where}: {error.found}", "", error.do) from error

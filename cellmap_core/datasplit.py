"""``datasplit.csv``: which crops of which volumes, with which classes, for what use.

Rows have five columns (split, raw store, raw path, label store, label path with the classes
in brackets) or three (the paths joined). Quotes, comments, a trailing scale level and
relative paths are taken as they are met; a row that cannot be read is kept with its reason.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from cellmap_core.errors import CellmapError, DatasplitError, RowError
from cellmap_core.grid import Grid
from cellmap_core.models import Frozen

SPLITS = ("train", "validate", "test")

# Stands for a comma inside [nuc,mito] while a row is split at its commas.
_INNER_COMMA = "\x1f"
_BRACKETS = re.compile(r"\[([^\]]*)\]")
_LEVEL = re.compile(r"/s\d+/?$")


class CropRef(Frozen):
    """One crop to convert: where it is and what is asked of it; nothing is opened yet.

    Attributes
    ----------
    dataset, crop : str
        Names, from the store and the label path.
    split : str
        ``train``, ``validate`` or ``test``.
    raw, labels : str
        Absolute locations of the raw multiscale group and of the crop's group of classes;
        ``labels`` is empty for a crop to predict.
    classes : tuple of str
        Classes the row lists; empty means all that the crop has.
    grid : Grid or None
        The crop's own grid where no label array tells it.
    """

    dataset: str
    crop: str
    split: str
    raw: str
    labels: str = ""
    classes: tuple[str, ...] = ()
    grid: Grid | None = None

    @property
    def name(self) -> str:
        """The crop as users call it."""
        return f"{self.dataset}/{self.crop}"

    @property
    def stem(self) -> str:
        """The crop's name in file names."""
        return re.sub(r"[^\w.-]", "-", f"{self.dataset}_{self.crop}")


class BadRow(Frozen):
    """A row that names no crop, and why."""

    line: int
    text: str
    reason: str


class Datasplit(Frozen):
    """All crops of a datasplit, each once, and the rows that could not be read."""

    crops: tuple[CropRef, ...]
    bad_rows: tuple[BadRow, ...] = ()

    def classes(self) -> tuple[str, ...]:
        """Every class the rows list, in the order first met."""
        return tuple(dict.fromkeys(c for crop in self.crops for c in crop.classes))


def read_datasplit(path: Path) -> Datasplit:
    """Read a datasplit; relative paths are relative to its folder.

    Raises
    ------
    DatasplitError
        The file is missing, is not text, or holds no row at all.
    """
    rows = _numbered_rows(path)
    crops: dict[tuple[str, str], CropRef] = {}
    bad: list[BadRow] = []
    for line, text in rows:
        try:
            _add(crops, parse_row(text, path.resolve().parent))
        except CellmapError as error:
            bad.append(BadRow(line=line, text=text, reason=str(error)))
    return Datasplit(crops=tuple(crops.values()), bad_rows=tuple(bad))


def parse_row(text: str, folder: Path) -> CropRef:
    """Read one row.

    Raises
    ------
    RowError
        The row has another number of columns, an unknown split or no crop in its label path.
    """
    protected = _BRACKETS.sub(lambda m: m.group().replace(",", _INNER_COMMA), text)
    columns = [c.strip() for c in next(csv.reader([protected], skipinitialspace=True))]
    if len(columns) == 5:
        split, raw_store, raw_path, label_store, label_path = columns
        raw, labels = f"{raw_store}/{raw_path}", f"{label_store}/{label_path}"
    elif len(columns) == 3:
        split, raw, labels = columns
    else:
        raise RowError(f"{len(columns)} columns", "5 (split, store, raw, store, labels) or 3")
    if split not in SPLITS:
        raise RowError(f"split {split!r}", f"one of {', '.join(SPLITS)}")
    labels, classes = _take_classes(labels)
    crop = labels.rstrip("/").rsplit("/", 1)[-1]
    if not crop or not raw.strip("/"):
        raise RowError("an empty path", "paths of the raw group and of the crop's labels")
    return CropRef(
        dataset=_dataset_of(labels),
        crop=crop,
        split=split,
        raw=_absolute(_LEVEL.sub("", raw), folder),
        labels=_absolute(labels, folder),
        classes=classes,
    )


def read_test_manifest(path: Path, crops: Sequence[CropRef]) -> tuple[CropRef, ...]:
    """Crops to predict from the challenge's ``test_crop_manifest.csv``.

    The raw is that of the same dataset in the datasplit, else the CellMap layout beside the
    manifest (``<dataset>/<dataset>.zarr/recon-1/em/fibsem-uint8``). Where classes of a crop
    have several voxel sizes, the finest one's grid counts.
    """
    raw_of = {crop.dataset: crop.raw for crop in crops}
    found: dict[tuple[str, str], CropRef] = {}
    for line, row in enumerate(_dict_rows(path), start=2):
        try:
            dataset, name = row["dataset"], f"crop{row['crop_name'].removeprefix('crop')}"
            z, y, x = (int(n) for n in _numbers(row["shape"]))
            voxel, origin = _numbers(row["voxel_size"]), _numbers(row["translation"])
            grid = Grid(
                shape_vox=(z, y, x),
                voxel_nm=(voxel[0], voxel[1], voxel[2]),
                translation_nm=(origin[0], origin[1], origin[2]),
            )
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            raise DatasplitError(
                f"{path}, line {line} cannot be read ({error!r})",
                "columns crop_name, dataset, class_label, voxel_size, translation, shape",
            ) from error
        default = path.resolve().parent / dataset / f"{dataset}.zarr/recon-1/em/fibsem-uint8"
        known = found.get((dataset, name))
        if known is None or (known.grid and grid.voxel_nm < known.grid.voxel_nm):
            found[dataset, name] = CropRef(
                dataset=dataset,
                crop=name,
                split="test",
                raw=raw_of.get(dataset, str(default)),
                grid=grid,
            )
    return tuple(found.values())


def _numbered_rows(path: Path) -> list[tuple[int, str]]:
    text = _read_text(path, "a datasplit CSV; write one row a crop")
    rows = [
        (number, line.strip())
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if rows and rows[0][1].split(",")[0].strip().strip('"').lower() in {"split", "usage", "use"}:
        rows = rows[1:]
    if not rows:
        raise DatasplitError(f"{path} is empty", "at least one row: split, raw, labels[classes]")
    return rows


def _dict_rows(path: Path) -> list[dict[str, str]]:
    text = _read_text(path, "a test crop manifest CSV")
    return list(csv.DictReader(text.splitlines()))


def _read_text(path: Path, expected: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DatasplitError(f"no file {path}", expected, "check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasplitError(f"{path} cannot be read ({error})", expected) from error


def _add(crops: dict[tuple[str, str], CropRef], new: CropRef) -> None:
    """Take a crop in; rows of the same crop become one with the classes of all."""
    known = crops.get((new.dataset, new.crop))
    if known is None:
        crops[new.dataset, new.crop] = new
        return
    if known.split != new.split:
        raise RowError(
            f"{new.name} as {new.split}, and earlier as {known.split}", "one split a crop"
        )
    if (known.raw, known.labels) != (new.raw, new.labels):
        raise RowError(f"{new.name} a second time with other paths", "one place a crop")
    classes = tuple(dict.fromkeys((*known.classes, *new.classes)))
    crops[new.dataset, new.crop] = known.model_copy(update={"classes": classes})


def _take_classes(labels: str) -> tuple[str, tuple[str, ...]]:
    """Split ``…/crop1/[nuc,mito]`` into the path and the classes."""
    match = _BRACKETS.search(labels)
    if match is None:
        return _LEVEL.sub("", labels).rstrip("/"), ()
    names = match.group(1).replace(_INNER_COMMA, ",").split(",")
    classes = tuple(dict.fromkeys(n.strip() for n in names if n.strip()))
    return labels[: match.start()].rstrip("/"), classes


def _dataset_of(location: str) -> str:
    """The dataset's name: that of the innermost ``<name>.zarr`` (or ``.n5``) in a path."""
    for part in reversed(location.split("/")):
        if part.endswith((".zarr", ".n5")):
            return part.rsplit(".", 1)[0]
    raise RowError(f"no .zarr in {location}", "<dataset>.zarr/…/crop<N>")


def _absolute(location: str, folder: Path) -> str:
    # Text, not Path: a doubled slash of an s3:// location must survive.
    if "://" in location or location.startswith("/"):
        return location.rstrip("/")
    return f"{folder}/{location}".rstrip("/")


def _numbers(text: str) -> list[float]:
    """The numbers of ``[96;96;96]`` (also with commas)."""
    return [float(n) for n in re.split(r"[;,\s]+", text.strip().strip("[]()")) if n]

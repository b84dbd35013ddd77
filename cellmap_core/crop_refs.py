"""What every form of a datasplit becomes: references to crops, and the rows that name none."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from cellmap_core.errors import CellmapError, DatasplitError, RowError
from cellmap_core.grid import Grid
from cellmap_core.models import Frozen
from cellmap_core.provenance import key_of

SPLITS = ("train", "validate", "test")


# Names after which the underscore that parts them from the dataset is the last but our own.
_PLAIN_CROP = re.compile(r"(?!recon)[^_]+|crop\d+_recon-[^_]+")


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
    line : int
        Line of the CSV that first names the crop, or its place in the listing of folders.
    """

    dataset: str
    crop: str
    split: str
    raw: str
    labels: str = ""
    classes: tuple[str, ...] = ()
    grid: Grid | None = None
    line: int = 0

    @property
    def name(self) -> str:
        """The crop as users call it."""
        return f"{self.dataset}/{self.crop}"

    @property
    def stem(self) -> str:
        """The crop's name in file names, which no other crop has."""
        plain = re.sub(r"[^\w.-]", "-", f"{self.dataset}_{self.crop}")
        unchanged = plain == f"{self.dataset}_{self.crop}"
        if unchanged and _PLAIN_CROP.fullmatch(self.crop):
            return plain
        # a_b/c and a/b_c, or two names that differ in a space, would be one file.
        return f"{plain}-{key_of(self.dataset, self.crop)[:6]}"


class BadRow(Frozen):
    """A row that names no crop, and why."""

    line: int
    text: str
    reason: str


class Datasplit(Frozen):
    """All crops of a datasplit, each once, and the rows that could not be read.

    Attributes
    ----------
    crops : tuple of CropRef
        The crops, in the order first met.
    bad_rows : tuple of BadRow
        What could not be read.
    stored_classes : tuple of str
        Classes found in the crops' folders, where no row lists any. They are not listed in the
        crops: a folder for a class does not say that somebody annotated it.
    """

    crops: tuple[CropRef, ...]
    bad_rows: tuple[BadRow, ...] = ()
    stored_classes: tuple[str, ...] = ()

    def classes(self) -> tuple[str, ...]:
        """Every class the rows list, in the order first met, or else that is stored."""
        listed = (c for crop in self.crops for c in crop.classes)
        return tuple(dict.fromkeys((*listed, *self.stored_classes)))


def gather(
    rows: Iterable[tuple[int, str]], read: Callable[[str], CropRef], source: object
) -> Datasplit:
    """Read rows one by one; rows of one crop become one, and what names no crop is kept.

    Parameters
    ----------
    rows : iterable of (int, str)
        Number and text of each row.
    read : callable
        Makes a reference of a row's text, or raises a CellmapError.
    source : object
        Where the rows are from, for messages.

    Raises
    ------
    DatasplitError
        No row can be read.
    """
    crops: dict[str, CropRef] = {}
    bad: list[BadRow] = []
    for line, text in rows:
        try:
            _add(crops, read(text).model_copy(update={"line": line}))
        except CellmapError as error:
            bad.append(BadRow(line=line, text=text, reason=str(error)))
    if not crops:
        first = f" (first: line {bad[0].line}: {bad[0].reason})" if bad else ""
        raise DatasplitError(f"{source} names no crop that can be read{first}", "at least one")
    return Datasplit(crops=tuple(crops.values()), bad_rows=tuple(bad))


def check_split(split: str) -> str:
    """Give a split back, or refuse it.

    Raises
    ------
    RowError
        It is none of the known ones.
    """
    split = split.lower()
    if split not in SPLITS:
        raise RowError(f"split {split!r}", f"one of {', '.join(SPLITS)}")
    return split


def in_store(location: str) -> tuple[str, str, tuple[str, ...]]:
    """The dataset, its store and the path in it, from the innermost ``<dataset>.zarr`` (``.n5``).

    Raises
    ------
    RowError
        There is no such part.
    """
    parts = location.split("/")
    for at in reversed(range(len(parts))):
        if parts[at].endswith((".zarr", ".n5")):
            store = "/".join(parts[: at + 1])
            return parts[at].rsplit(".", 1)[0], store, tuple(parts[at + 1 :])
    raise RowError(f"no .zarr in {location}", "<dataset>.zarr/…/crop<N>")


def _add(crops: dict[str, CropRef], new: CropRef) -> None:
    """Take a crop in; rows of the same crop become one with the classes of all."""
    known = crops.get(new.name)
    if known is not None and _alignment(known) != _alignment(new):
        # Another reconstruction of the same volume is another crop, and needs its own files.
        new = new.model_copy(update={"crop": f"{new.crop}_{_alignment(new)}"})
        known = crops.get(new.name)
    if known is None:
        crops[new.name] = new
        return
    if known.split != new.split:
        raise RowError(
            f"{new.name} as {new.split}, and earlier as {known.split}", "one split a crop"
        )
    if (known.raw, known.labels) != (new.raw, new.labels):
        raise RowError(
            f"{new.name} a second time with other paths ({new.labels})", f"only {known.labels}"
        )
    classes = tuple(dict.fromkeys((*known.classes, *new.classes)))
    crops[new.name] = known.model_copy(update={"classes": classes})


def _alignment(ref: CropRef) -> str:
    """The reconstruction a crop belongs to: the first folder in its store (``recon-1``)."""
    try:
        _, _, inside = in_store(ref.labels)
    except RowError:
        return ""
    return inside[0] if inside else ""

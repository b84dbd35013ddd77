"""What every form of a datasplit becomes: references to crops, and the rows that name none."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

from cellmap_core.errors import CellmapError, DatasplitError, RowError
from cellmap_core.grid import Grid
from cellmap_core.models import Frozen
from cellmap_core.names import distinct_names
from cellmap_core.provenance import key_of

Split = Literal["train", "validate", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

# The folder of a reconstruction, the first in a store of CellMap's layout.
_RECON = re.compile(r"recon-")
# Parts of the path of an image in a store of CellMap's layout: recon-N/em/<image>.
_EM_DEPTH = 3
# What the uses of crops are called in the lists of other tools.
_SYNONYMS: dict[str, Split] = {
    "training": "train",
    "validation": "validate",
    "valid": "validate",
    "val": "validate",
    "testing": "test",
}
# Ends the name of a crop to predict whose own name is that of a crop of the datasplit.
_TEST_SUFFIX = "-test"

# Names after which the underscore that parts them from the dataset is the last but our own.
_PLAIN_CROP = re.compile(r"(?!recon)[^_]+|crop\d+_recon-[^_]+")


class CropRef(Frozen):
    """One crop to convert: where it is and what is asked of it; nothing is opened yet.

    Attributes
    ----------
    dataset, crop : str
        Names, from the store and the label path; together they are those of no other crop.
    split : str
        ``train``, ``validate`` or ``test``.
    raw, labels : str
        Absolute locations of the raw multiscale group and of the crop's group of classes;
        ``labels`` is empty for a crop to predict.
    classes : tuple of str
        Classes the row lists; empty means all that the crop has.
    store : str
        The store that the dataset is named after; empty where a list names the dataset.
    grid : Grid or None
        The crop's own grid where no label array tells it.
    line : int
        Line of the CSV that first names the crop, or its place in the listing of folders.
    """

    dataset: str
    crop: str
    split: Split
    raw: str
    labels: str = ""
    classes: tuple[str, ...] = ()
    store: str = ""
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
    listed_twice : tuple of (CropRef, CropRef)
        Crops that a test manifest lists too, each with the crop that is predicted for that.
    """

    crops: tuple[CropRef, ...]
    bad_rows: tuple[BadRow, ...] = ()
    stored_classes: tuple[str, ...] = ()
    listed_twice: tuple[tuple[CropRef, CropRef], ...] = ()

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
    texts = dict(rows)
    bad: dict[int, str] = {}
    refs: list[CropRef] = []
    for line, text in texts.items():
        try:
            refs.append(read(text).model_copy(update={"line": line}))
        except CellmapError as error:
            bad[line] = str(error)
    crops: dict[str, CropRef] = {}
    for ref in _with_crop_names(_with_dataset_names(refs)):
        try:
            _add(crops, ref)
        except RowError as error:
            bad[ref.line] = str(error)
    bad_rows = tuple(BadRow(line=n, text=texts[n], reason=bad[n]) for n in sorted(bad))
    if not crops:
        first = f" (first: line {bad_rows[0].line}: {bad_rows[0].reason})" if bad_rows else ""
        raise DatasplitError(f"{source} names no crop that can be read{first}", "at least one")
    return Datasplit(crops=tuple(crops.values()), bad_rows=bad_rows)


def check_split(split: str) -> Split:
    """Return the split that a name means, whatever its case.

    Raises
    ------
    RowError
        It is none of the known ones.
    """
    name = split.strip().lower()
    for known in SPLITS:
        if known in (name, _SYNONYMS.get(name)):
            return known
    raise RowError(f"split {split!r}", f"one of {', '.join(SPLITS)}")


def with_test_crops(datasplit: Datasplit, crops: Sequence[CropRef]) -> Datasplit:
    """Return the datasplit with more crops to predict.

    One that has the name of a crop of the datasplit gets a name of its own, and thus files of
    its own: the two may differ in extent.
    """
    known = {crop.name: crop for crop in datasplit.crops}
    taken = {*known, *(crop.name for crop in crops)}
    added, twice = [], []
    for crop in crops:
        new = crop
        if crop.name in known:
            while new.name in taken:
                new = new.model_copy(update={"crop": f"{new.crop}{_TEST_SUFFIX}"})
            twice.append((known[crop.name], new))
        taken.add(new.name)
        added.append(new)
    crops = (*datasplit.crops, *added)
    return datasplit.model_copy(update={"crops": crops, "listed_twice": tuple(twice)})


def names_of_stores(crops: Iterable[CropRef]) -> dict[str, dict[str, str]]:
    """Base name of stores → names of the datasets in them → store."""
    found: dict[str, dict[str, str]] = {}
    for crop in crops:
        if crop.store:
            found.setdefault(in_store(crop.store)[0], {})[crop.dataset] = crop.store
    return found


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


def place_of(location: str) -> str:
    """Return the one name of a location: links in a local path are followed."""
    return location if "://" in location else os.path.realpath(location)


def volume_of(raw: str) -> str:
    """Return the name of the volume that a raw image shows.

    All images of one reconstruction in CellMap's layout (``<store>/recon-N/em/<image>``) have
    one coordinate system, and the reconstruction is their volume. Another image is its own.
    """
    place = place_of(raw)
    try:
        _, store, inside = in_store(place)
    except RowError:
        return place
    if len(inside) == _EM_DEPTH and _RECON.match(inside[0]) and inside[1] == "em":
        return f"{store}/{inside[0]}"
    return place


def tissue_of(ref: CropRef) -> str:
    """Return what all reconstructions of a crop have in common; empty where nothing tells."""
    try:
        _, store, inside = in_store(ref.labels)
    except RowError:
        return ""
    return (
        "/".join((place_of(store), *inside[1:])) if inside[:1] and _RECON.match(inside[0]) else ""
    )


def _with_dataset_names(refs: Sequence[CropRef]) -> list[CropRef]:
    """Name the datasets of stores with the same base name after the folders of the stores."""
    places = {ref.store: place_of(ref.store) for ref in refs if ref.store}
    # A place that is spelt in several ways has the name of one spelling, in any order of rows.
    spelling = {
        place: min(s for s, p in places.items() if p == place) for place in set(places.values())
    }
    by_base: dict[str, list[str]] = {}
    for store in spelling.values():
        by_base.setdefault(in_store(store)[0], []).append(store)
    taken = {*by_base, *(ref.dataset for ref in refs if not ref.store)}
    name_of: dict[str, str] = {}
    for base, stores in sorted(by_base.items()):
        if len(stores) > 1 and not _are_mirrors(stores):
            others = frozenset(taken - {base}) | {*name_of.values()}
            name_of.update(distinct_names(base, stores, others))
    named = []
    for ref in refs:
        name = name_of.get(spelling[places[ref.store]]) if ref.store else None
        named.append(ref.model_copy(update={"dataset": name}) if name else ref)
    return named


def _are_mirrors(stores: Sequence[str]) -> bool:
    """Whether stores are taken for copies of one: at one place of a disk, a bucket, a server.

    A data set that is downloaded in parts has crops in each. Held for one, it stays in one fold.
    """
    kinds = {store.partition("://")[0] if "://" in store else "" for store in stores}
    tails = {tuple(store.split("/")[-2:]) for store in stores}
    return len(kinds) == len(stores) and len(tails) == 1


def _with_crop_names(refs: Sequence[CropRef]) -> list[CropRef]:
    """Name the reconstructions of a crop: the first, in the order of their names, is plain."""
    alignments: dict[str, set[str]] = {}
    for ref in refs:
        alignments.setdefault(ref.name, set()).add(_alignment(ref))
    # Another reconstruction of the same volume is another crop, and needs its own files.
    return [
        ref
        if (alignment := _alignment(ref)) == min(alignments[ref.name])
        else ref.model_copy(update={"crop": f"{ref.crop}_{alignment}"})
        for ref in refs
    ]


def _add(crops: dict[str, CropRef], new: CropRef) -> None:
    """Take a crop in; rows of the same crop become one with the classes of all."""
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

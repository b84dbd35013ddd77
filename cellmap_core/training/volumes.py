"""Cases as arrays mapped from disk: opened in no time, and never all in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellmap_core.datalist import Datalist, Entry
from cellmap_core.errors import NiftiError
from cellmap_core.label_table import whole_ids
from cellmap_core.nifti import common_geometry, fill
from cellmap_core.nifti_header import read_header
from cellmap_core.nifti_names import files_of
from cellmap_core.provenance import atomic_path, file_digest, key_of
from cellmap_core.training.mapped_volume import MappedVolume, Volume

#: Folder of decompressed volumes inside a work_dir; it can be deleted at any time.
CACHE_NAME = ".cache"


@dataclass(frozen=True)
class Case:
    """One case, mapped from disk.

    Attributes
    ----------
    name : str
        As users call it.
    image : Volume
        Shape (z, y, x), any type.
    label : Volume or None
        Shape (z, y, x), label ids; None for a case to predict.
    annotated : ndarray of bool
        One for each class, in the order of the table.
    presence_file : Path or None
        Where what a look at all its labels told is kept; named by their content.
    label_file : Path or None
        The file of the labels, for messages.
    undefined : tuple of int
        Ids inside the label table that no label file may hold.
    """

    name: str
    image: Volume
    label: Volume | None
    annotated: NDArray[np.bool_]
    presence_file: Path | None = None
    label_file: Path | None = None
    undefined: tuple[int, ...] = ()

    @property
    def label_name(self) -> str:
        """The case and the file of its labels, for messages."""
        return self.name if self.label_file is None else f"{self.name} ({self.label_file})"

    def let_go(self) -> None:
        """Take the voxels that were read out of this process's memory; see `let_go`."""
        for volume in (self.image, self.label):
            if volume is not None:
                let_go(volume)

    def labels_at(self, where: tuple[slice, ...], ids: int) -> NDArray[np.int64]:
        """Label ids of a part, checked to be in a table of ``ids`` entries."""
        assert self.label is not None
        labels = check_ids(np.asarray(self.label[where]), ids, self.label_name)
        if self.undefined:
            self.check_counts(np.bincount(labels.ravel(), minlength=ids))
        return labels

    def check_counts(self, counts: NDArray[np.int64]) -> None:
        """Refuse labels with an id that has no meaning, by the voxels of each id.

        Raises
        ------
        NiftiError
            There is such an id.
        """
        if found := [i for i in self.undefined if counts[i]]:
            raise NiftiError(
                f"{self.label_name}: label id {found[0]}",
                "ids that the datalist gives a meaning",
                "add it to a class or to background in the datalist, or correct the file",
            )


def let_go(volume: Volume) -> None:
    """Take the pages of a mapped volume out of this process's memory."""
    if isinstance(volume, MappedVolume):
        volume.let_go()


def check_ids(labels: NDArray[Any], ids: int, case: str) -> NDArray[np.int64]:
    """Return labels as int64.

    Raises
    ------
    NiftiError
        An id is not a whole number, or the label table does not know it.
    """
    labels = whole_ids(labels, case)
    low, high = (labels.min(), labels.max()) if labels.size else (0, 0)
    if low < 0 or high >= ids:
        raise NiftiError(
            f"{case}: label id {low if low < 0 else high}",
            f"ids 0 to {ids - 1} of the datalist's label_table",
            "convert the crop again, or correct the label_table",
        )
    return labels.astype(np.int64)


def open_cases(
    datalist: Datalist, entries: Sequence[Entry], cache: Path, *, in_memory: bool = False
) -> tuple[Case, ...]:
    """Open cases of a datalist (see `open_case`)."""
    return tuple(open_case(datalist, entry, cache, in_memory=in_memory) for entry in entries)


def open_case(datalist: Datalist, entry: Entry, cache: Path, *, in_memory: bool = False) -> Case:
    """Open one case; its voxels stay on disk, or are read at once.

    Raises
    ------
    GeometryError
        Image and label are not one grid.
    NiftiError
        A file is missing or damaged.
    """
    image_path = datalist.path(entry.image)
    label_path = datalist.path(entry.label) if entry.label else None
    label: Volume | None = None
    digest = ""
    if label_path is not None:
        common_geometry(image_path, label_path)
        label, digest = open_volume(label_path, cache)
    image: Volume = open_volume(image_path, cache)[0]
    annotated = np.zeros(len(datalist.classes), dtype=bool)
    annotated[[c - 1 for c in entry.annotated_classes]] = True
    presence_file = cache / f"{digest}.presence.npz" if digest else None
    if in_memory:
        image, label = np.array(image), None if label is None else np.array(label)
    return Case(
        entry.name, image, label, annotated, presence_file, label_path, datalist.table.undefined
    )


def open_volume(path: Path, cache: Path) -> tuple[MappedVolume, str]:
    """Map a volume (z, y, x); one that is compressed or scaled is unpacked once into ``cache``.

    Returns
    -------
    volume, digest : MappedVolume, str
        The voxels, and the digest of the file (of a pair, of both). It is the name of the
        unpacked copy too, so that a changed file gets a new one.
    """
    stored = read_header(path)
    digests = [file_digest(file) for file in files_of(path)]
    digest = digests[0] if len(digests) == 1 else key_of(digests)
    if stored.mappable:
        return MappedVolume(stored.data, stored.stored, stored.shape(), stored.offset), digest
    copy = cache / f"{digest}.npy"
    if not copy.is_file():
        with atomic_path(copy) as temporary:
            volume = np.lib.format.open_memmap(
                temporary, mode="w+", dtype=stored.dtype, shape=stored.shape()
            )
            fill(volume, path)
            volume.flush()
            del volume
    mapped = np.lib.format.open_memmap(copy, mode="r")
    return MappedVolume(copy, mapped.dtype, mapped.shape, mapped.offset), digest

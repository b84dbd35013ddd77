"""Labels of a prediction: every predicted combination of classes has an id of its own.

The ids of the datalist's label table keep their meaning. Combinations that this table lacks get
further ids, and the table of all of them is written beside the labels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellmap_core.errors import DatalistError
from cellmap_core.grid import Shape
from cellmap_core.label_table import PRESENT, UNKNOWN, Combination, LabelTable
from cellmap_core.provenance import write_json

#: Suffixes of the files beside ``<case>.zarr``: the label ids, and the table of these ids.
LABELS_SUFFIX = ".nii.gz"
TABLE_SUFFIX = ".labels.json"

# Classes coded at a time: a code of 31 bits and the number of a combination fit into 64 bits.
_GROUP = 31
# Voxels coded in one go; they bound the memory.
_CODED_VOXELS = 1 << 20
# Sections are handed on about this many bytes at a time.
_SLAB_BYTES = 8 << 20


class PredictedLabels:
    """Label ids of one prediction, in a scratch file until all combinations are known.

    Parameters
    ----------
    table : LabelTable
        Of the datalist; its ids are kept.
    shape : tuple of int
        Of the volume (z, y, x).
    scratch : Path
        Folder for the scratch file, which takes one integer a voxel.
    """

    def __init__(self, table: LabelTable, shape: Shape, scratch: Path) -> None:
        self._given, self._shape, self._scratch = table, shape, scratch
        # A combination is a number with one bit a class, the first class highest.
        self._ids = {
            int("".join(map(str, states)), 2): number
            for states, number in table.id_of().items()
            if UNKNOWN not in states
        }
        self._next = self._first = len(table.combinations)
        self._codes = self._mapped(table.dtype)

    def add(self, where: tuple[slice, ...], predicted: NDArray[np.bool_]) -> None:
        """Take a part of the prediction.

        Parameters
        ----------
        where : tuple of slice
            In the volume (z, y, x).
        predicted : ndarray of bool
            Shape (C, z, y, x), one channel for each class of the table.
        """
        depth, y, x = predicted.shape[1:]
        step = max(1, _CODED_VOXELS // (y * x))
        first = where[0].start
        for start in range(0, depth, step):
            part = predicted[:, start : start + step]
            combinations, index = _combinations(part)
            numbers = np.array([self._number_of(c) for c in combinations], np.uint32)
            self._widen()
            sections = slice(first + start, first + start + part.shape[1])
            self._codes[(sections, *where[1:])] = numbers[index]

    @property
    def further(self) -> int:
        """Number of predicted combinations that the datalist's table lacks."""
        return self._next - self._first

    def table(self) -> LabelTable:
        """The table of the prediction: the datalist's, then what it lacks, in a fixed order."""
        classes = self._given.classes
        further = [
            Combination(
                id=self._first + place,
                present=tuple(
                    name
                    for bit, name in enumerate(reversed(classes))
                    if combination >> bit & 1 == PRESENT
                )[::-1],
            )
            for place, combination in enumerate(self._lacking())
        ]
        return self._given.model_copy(
            update={"combinations": (*self._given.combinations, *further)}
        )

    def slabs(self) -> Iterator[NDArray[Any]]:
        """Yield the ids of `table` in consecutive z slabs (n, y, x)."""
        ids = np.arange(self._next, dtype=np.min_scalar_type(self._next - 1))
        for place, combination in enumerate(self._lacking()):
            ids[self._ids[combination]] = self._first + place
        step = max(1, _SLAB_BYTES // max(1, self._codes[0].nbytes))
        for start in range(0, self._shape[0], step):
            yield ids[self._codes[start : start + step]]

    def _lacking(self) -> list[int]:
        """The combinations that the datalist's table lacks; blocks may come in any order."""
        return sorted(c for c, number in self._ids.items() if number >= self._first)

    def _number_of(self, combination: int) -> int:
        if combination not in self._ids:
            self._ids[combination] = self._next
            self._next += 1
        return self._ids[combination]

    def _widen(self) -> None:
        """Let the scratch file hold the largest number in use."""
        dtype = np.min_scalar_type(self._next - 1)
        if dtype.itemsize <= self._codes.dtype.itemsize:
            return
        narrow, self._codes = self._codes, self._mapped(dtype)
        for source, target in zip(narrow, self._codes, strict=True):
            target[:] = source
        (self._scratch / narrow.dtype.name).unlink()

    def _mapped(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        path = self._scratch / dtype.name
        with path.open("wb") as file:
            # Taken up front: on a full disk a mapped page would end the process.
            os.posix_fallocate(file.fileno(), 0, int(np.prod(self._shape)) * dtype.itemsize)
        return np.memmap(path, dtype, "r+", shape=self._shape)


def _combinations(predicted: NDArray[np.bool_]) -> tuple[list[int], NDArray[np.int64]]:
    """The combinations in a part (C, z, y, x), and at each voxel the place of its own."""
    combinations, codes = [0], np.zeros(predicted.shape[1:], np.int64)
    for start in range(0, len(predicted), _GROUP):
        group = predicted[start : start + _GROUP]
        for channel in group:
            codes <<= 1
            codes |= channel
        found, codes = _numbered(codes)
        bits = len(group)
        combinations = [
            combinations[code >> bits] << bits | code & ((1 << bits) - 1) for code in found
        ]
    return combinations, codes


def _numbered(codes: NDArray[np.int64]) -> tuple[list[int], NDArray[np.int64]]:
    """The codes that occur, sorted, and each voxel's place among them."""
    flat = codes.ravel()
    # Codes come in runs, so only their starts are sorted.
    starts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    found = np.unique(np.concatenate([flat[:1], flat[starts]]))
    return found.tolist(), np.searchsorted(found, flat).reshape(codes.shape)


def labels_path(prediction: Path) -> Path:
    """Return the path of a prediction's label ids, beside ``<case>.zarr``."""
    return prediction.with_suffix(LABELS_SUFFIX)


def table_path(prediction: Path) -> Path:
    """Return the path of the table of a prediction's label ids, beside ``<case>.zarr``."""
    return prediction.with_suffix(TABLE_SUFFIX)


def write_table(path: Path, table: LabelTable, predicted: Sequence[str]) -> None:
    """Write the table of a prediction's label ids.

    Parameters
    ----------
    path : Path
        ``<case>.labels.json``.
    table : LabelTable
        What each id says; also written as MONAI's groups ``class_names``.
    predicted : sequence of str
        The classes that the models could predict. Of the others the ids say nothing.
    """
    document = {
        "predicted_classes": list(predicted),
        "class_names": table.groups(),
        "label_table": table.to_json(),
    }
    write_json(path, document)


def read_table(path: Path) -> LabelTable:
    """Read the table of a prediction's label ids.

    Raises
    ------
    DatalistError
        The file is missing or is not such a table.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        names = [group["name"] for group in document["class_names"]]
        rows = document["label_table"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatalistError(
            f"{path} cannot be read ({error!r})", "the label table of a prediction", "predict again"
        ) from error
    return LabelTable.from_json(names, rows)

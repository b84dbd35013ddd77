"""Label ids as they are counted: small unsigned numbers, whatever the file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cellmap_core.errors import StatisticsError
from cellmap_core.label_table import whole_ids

# Ids below this are looked up in a table, larger ones by a search.
_TABLE = 1 << 16

Numbers = NDArray[np.unsignedinteger[Any]]


class LabelIds(Protocol):
    """Turns slabs of a label file into numbers, and numbers back into label ids."""

    def numbers(self, labels: NDArray[Any]) -> Numbers:
        """A slab's labels as small unsigned numbers, of the same shape."""

    def id_of(self, number: int) -> int:
        """The label id that a number stands for."""


class TableIds:
    """Ids of a label table: each is its own number, and none may lie outside the table.

    Parameters
    ----------
    count : int
        Ids of the table, 0 to ``count`` - 1.
    file : Path or None
        Where the labels are, for messages.
    """

    def __init__(self, count: int, file: Path | None = None) -> None:
        self._count = count
        self._file = file

    def numbers(self, labels: NDArray[Any]) -> Numbers:
        """See :class:`LabelIds`.

        Raises
        ------
        StatisticsError
            An id is not in the table.
        NiftiError
            An id is not a whole number.
        """
        labels = whole_ids(labels, str(self._file or "the label file"))
        low, high = labels.min(), labels.max()
        if not (low >= 0 and high < self._count):
            where = f"{self._file} has " if self._file else ""
            raise StatisticsError(
                f"{where}label ids from {low} to {high}",
                f"ids 0 to {self._count - 1} of the label table",
                "convert the crop again, or correct class_names and label_table in datalist.json",
            )
        if labels.dtype.kind == "u":
            return labels
        return labels.astype(np.min_scalar_type(max(self._count - 1, np.iinfo(np.uint16).max)))

    def id_of(self, number: int) -> int:
        """See :class:`LabelIds`."""
        return number


class AnyIds:
    """Ids of no known table, up to 64 bits: numbered as they come, but bytes as they are."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._bytes = False
        self._number: dict[int, int] = {}

    def numbers(self, labels: NDArray[Any]) -> Numbers:
        """See :class:`LabelIds`.

        Raises
        ------
        NiftiError
            An id is not a whole number.
        """
        if labels.dtype == np.uint8:
            self._bytes = True
            return labels
        labels = whole_ids(labels, "the label file")
        if labels.min() >= 0 and labels.max() < _TABLE:
            small = labels.astype(np.uint16, copy=False)
            found = np.flatnonzero(np.bincount(small.ravel()))
            table = np.zeros(_TABLE, np.uint32)
            table[found] = self._numbered(found.tolist())
            result = table[small]
        else:
            found, place = np.unique(labels, return_inverse=True)
            result = np.array(self._numbered(found.tolist()), np.uint32)[place]
        smallest = np.min_scalar_type(max(len(self._ids) - 1, 0))
        return result.reshape(labels.shape).astype(smallest)

    def id_of(self, number: int) -> int:
        """See :class:`LabelIds`."""
        return number if self._bytes else self._ids[number]

    def _numbered(self, ids: list[int]) -> list[int]:
        for i in ids:
            if i not in self._number:
                self._number[i] = len(self._ids)
                self._ids.append(i)
        return [self._number[i] for i in ids]

"""From the states of each class to one integer a voxel, crop by crop.

A crop is coded with ids of its own while it streams by, because which combinations occur
in the whole data set is known only when all crops are read; the ids all crops share then
replace them by one look-up.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellmap_core.annotation import States
from cellmap_core.errors import AnnotationError
from cellmap_core.grid import Shape
from cellmap_core.label_table import ABSENT, PRESENT, LabelTable
from cellmap_core.label_table import States as Combination

_STATES = 3
#: Type of a crop's own ids.
CODE_DTYPE = np.dtype(np.uint16)
_IDS = 1 << 16

_Ids = NDArray[np.uint16]


class Coder:
    """Codes the blocks of one crop; remembers the combinations it met, in order."""

    def __init__(self) -> None:
        self._ids: dict[Combination, int] = {}

    @property
    def seen(self) -> tuple[Combination, ...]:
        """Combinations by the crop's own id."""
        return tuple(self._ids)

    def encode(self, states: Iterable[States | int], shape: Shape) -> NDArray[np.uint16]:
        """Code one block from the states of each class.

        Parameters
        ----------
        states : iterable of ndarray or int
            For each class an array of ``shape``, or one state for the whole block. Of the 48
            classes of a crop few have an edge in a block; only those cost time.
        shape : tuple of int
            Of the block.

        Raises
        ------
        AnnotationError
            More combinations than 16 bits can tell.
        """
        whole_block: list[int] = []
        varying: list[int] = []
        packed = _Packed(shape)
        for number, state in enumerate(states):
            whole_block.append(state if isinstance(state, int) else ABSENT)
            if not isinstance(state, int):
                varying.append(number)
                packed.add(state)
        if not whole_block:
            raise AnnotationError("a crop without classes", "at least one class")
        if not varying:
            return np.full(shape, self._own(tuple(whole_block)), CODE_DTYPE)
        table = np.zeros(_IDS, CODE_DTYPE)
        for code, part in packed.combinations().items():
            combination = list(whole_block)
            for number, state in zip(varying, part, strict=True):
                combination[number] = state
            table[code] = self._own(tuple(combination))
        return look_up(table, packed.codes)

    def _own(self, combination: Combination) -> int:
        number = self._ids.setdefault(combination, len(self._ids))
        if number >= _IDS:
            raise AnnotationError(f"{number} combinations of classes in one crop", str(_IDS - 1))
        return number


class _Packed:
    """The states of some classes as one 16-bit number a voxel.

    Each class is one more digit of base three. When the digits are full the numbers that
    occur are counted off anew, so the number of classes has no limit.
    """

    def __init__(self, shape: Shape) -> None:
        self.codes: _Ids = np.zeros(shape, np.uint16)
        self._counted: list[Combination] = [()]
        self._digits = 0

    def add(self, state: States) -> None:
        """Add one class."""
        if len(self._counted) * _STATES ** (self._digits + 1) > _IDS:
            self._count_off()
        self.codes *= _STATES
        self.codes += state
        self._digits += 1

    def combinations(self) -> dict[int, Combination]:
        """The states behind each code that occurs."""
        span = _STATES**self._digits
        digits = [_STATES**place for place in reversed(range(self._digits))]
        return {
            code: (*self._counted[code // span], *(code // d % _STATES for d in digits))
            for code in _used(self.codes)
        }

    def _count_off(self) -> None:
        occurring = self.combinations()
        if len(occurring) * _STATES > _IDS:
            raise AnnotationError(
                f"{len(occurring)} combinations of classes in one block", str(_IDS // _STATES)
            )
        table = np.zeros(_IDS, np.uint16)
        table[list(occurring)] = np.arange(len(occurring), dtype=np.uint16)
        self.codes = look_up(table, self.codes)
        self._counted, self._digits = list(occurring.values()), 0


def _used(codes: _Ids) -> list[int]:
    """Every code that occurs, sorted. Codes come in runs, so only their starts are looked at."""
    flat = codes.ravel()
    starts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    found: list[int] = np.unique(np.concatenate([flat[:1], flat[starts]])).tolist()
    return found


def look_up(table: NDArray[Any], codes: _Ids) -> NDArray[Any]:
    """The entry of a table of 2¹⁶ for each code (z, y, x)."""
    result = np.empty(codes.shape, table.dtype)
    for section, out in zip(codes, result, strict=True):
        # numpy widens an index before it looks up: of a section that stays in the cache. Every
        # 16-bit number is a valid index, so the mode changes no result; it is the fast one.
        np.take(table, section, mode="wrap", out=out)
    return result


def shared_table(classes: tuple[str, ...], seen: Iterable[Iterable[Combination]]) -> LabelTable:
    """The label table of all crops, from the combinations of each in the datasplit's order.

    Crops added at the end leave the ids of the earlier ones as they are.
    """
    return LabelTable.of(classes, (c for combinations in seen for c in sorted(combinations)))


def present_classes(classes: tuple[str, ...], seen: Iterable[Combination]) -> tuple[str, ...]:
    """Classes present anywhere in a crop."""
    held = {i for states in seen for i, state in enumerate(states) if state == PRESENT}
    return tuple(name for i, name in enumerate(classes) if i in held)

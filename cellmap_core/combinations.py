"""From the states of each class to one integer a voxel, crop by crop.

A crop is coded with ids of its own while it streams by, because which combinations occur
in the whole data set is known only when all crops are read; the ids all crops share then
replace them by one look-up.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from cellmap_core.annotation import States
from cellmap_core.errors import AnnotationError
from cellmap_core.label_table import PRESENT, LabelTable
from cellmap_core.label_table import States as Combination

_STATES = 3
#: Type of a crop's own ids.
CODE_DTYPE = np.dtype(np.uint16)


class Coder:
    """Codes the blocks of one crop; remembers the combinations it met, in order."""

    def __init__(self) -> None:
        self._ids: dict[Combination, int] = {}

    @property
    def seen(self) -> tuple[Combination, ...]:
        """Combinations by the crop's own id."""
        return tuple(self._ids)

    def encode(self, states: Iterable[States]) -> NDArray[np.uint16]:
        """Code one block from the states of each class, all of one shape.

        Raises
        ------
        AnnotationError
            More combinations than 16 bits can tell.
        """
        block: NDArray[np.int64] | None = None
        met: list[Combination] = [()]
        for state in states:
            # Pair the id so far with the next class's state, then close the gaps: the ids
            # never outgrow the combinations that occur, however many classes there are.
            paired = state.astype(np.int64) if block is None else block * _STATES + state
            used = np.flatnonzero(np.bincount(paired.ravel()))
            met = [(*met[pair // _STATES], int(pair % _STATES)) for pair in used]
            renumber = np.zeros(int(used[-1]) + 1, np.int64)
            renumber[used] = np.arange(len(used))
            block = renumber[paired]
        if block is None:
            raise AnnotationError("a crop without classes", "at least one class")
        own = np.array([self._ids.setdefault(c, len(self._ids)) for c in met])
        if len(self._ids) > np.iinfo(CODE_DTYPE).max:
            raise AnnotationError(f"{len(self._ids)} combinations of classes in one crop", "65535")
        return own[block].astype(CODE_DTYPE)


def shared_table(classes: tuple[str, ...], seen: Iterable[Iterable[Combination]]) -> LabelTable:
    """The label table of all crops, from the combinations of each in the datasplit's order.

    Crops added at the end leave the ids of the earlier ones as they are.
    """
    return LabelTable.of(classes, (c for combinations in seen for c in sorted(combinations)))


def present_classes(classes: tuple[str, ...], seen: Iterable[Combination]) -> tuple[str, ...]:
    """Classes present anywhere in a crop."""
    held = {i for states in seen for i, state in enumerate(states) if state == PRESENT}
    return tuple(name for i, name in enumerate(classes) if i in held)

"""Label table: one integer a voxel, and what each integer says of every class.

0 is background, 1..C are the classes in the order asked. Where classes overlap, or a class
is unknown at a voxel, further ids stand for one combination each, the same for all crops.
A target is one look-up in the table after cropping; a one-hot volume never exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellmap_core.errors import DatalistError, NiftiError
from cellmap_core.models import Frozen

#: The three states of a class at a voxel.
ABSENT, PRESENT, UNKNOWN = 0, 1, 2

# What a slope in a file's header makes of whole numbers is off by its rounding.
_ROUNDING = 1e-3

#: States of all classes at a voxel, in the order of the table's classes.
States = tuple[int, ...]


class Combination(Frozen):
    """What one label id says: the classes present and the classes unknown at a voxel.

    ``undefined`` marks an id between others that has no meaning: no label file may hold it.
    """

    id: int
    present: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    undefined: bool = False


class LabelTable(Frozen):
    """All label ids of a data set.

    Attributes
    ----------
    classes : tuple of str
        The classes asked for; class ``classes[c - 1]`` alone has id ``c``.
    combinations : tuple of Combination
        Every id from 0 on, without gaps.
    """

    classes: tuple[str, ...]
    combinations: tuple[Combination, ...]

    @classmethod
    def of(cls, classes: Sequence[str], seen: Iterable[States] = ()) -> LabelTable:
        """Build the table: background, each class alone, then ``seen`` in its order.

        Parameters
        ----------
        classes : sequence of str
            Class names in the order asked.
        seen : iterable of States
            Combinations met in the data; those that have an id already are skipped.
        """
        alone = [tuple(int(i == c) for i in range(len(classes))) for c in range(len(classes))]
        order: dict[States, None] = dict.fromkeys([(ABSENT,) * len(classes), *alone])
        order.update(dict.fromkeys(seen))
        combinations = tuple(
            Combination(
                id=i,
                present=tuple(n for n, s in zip(classes, states, strict=True) if s == PRESENT),
                unknown=tuple(n for n, s in zip(classes, states, strict=True) if s == UNKNOWN),
            )
            for i, states in enumerate(order)
        )
        return cls(classes=tuple(classes), combinations=combinations)

    @classmethod
    def from_json(cls, classes: Sequence[str], rows: Sequence[dict[str, Any]]) -> LabelTable:
        """Read the ``label_table`` of a datalist, refusing gaps and unknown classes."""
        try:
            combinations = tuple(Combination.model_validate(row) for row in rows)
        except ValueError as error:
            raise DatalistError(
                f"a label_table entry that cannot be read ({str(error).splitlines()[0]})",
                "entries {id, present: [names], unknown: [names]}",
            ) from error
        ids = [c.id for c in combinations]
        if not ids or ids != list(range(len(ids))):
            raise DatalistError(f"label_table ids {ids}", "every id from 0 on, in order")
        named = {n for c in combinations for n in (*c.present, *c.unknown)}
        if strange := sorted(named - set(classes)):
            raise DatalistError(
                f"label_table names {', '.join(strange)}", f"only {', '.join(classes)}"
            )
        return cls(classes=tuple(classes), combinations=combinations)

    def to_json(self) -> list[dict[str, Any]]:
        """The ``label_table`` of a datalist."""
        return [
            {"id": c.id, "present": list(c.present), "unknown": list(c.unknown)}
            | ({"undefined": True} if c.undefined else {})
            for c in self.combinations
        ]

    def groups(self) -> list[dict[str, Any]]:
        """MONAI's class groups: for each class the ids at which it is present."""
        return [
            {"name": name, "index": [c.id for c in self.combinations if name in c.present]}
            for name in self.classes
        ]

    def states(self) -> NDArray[np.uint8]:
        """The look-up: shape (ids, classes), each ABSENT, PRESENT or UNKNOWN."""
        table = np.zeros((len(self.combinations), len(self.classes)), dtype=np.uint8)
        for c in self.combinations:
            for k, name in enumerate(self.classes):
                if name in c.present:
                    table[c.id, k] = PRESENT
                elif name in c.unknown:
                    table[c.id, k] = UNKNOWN
        return table

    def id_of(self) -> dict[States, int]:
        """Label id by the states of all classes; the first where several say the same."""
        ids: dict[States, int] = {}
        for c, row in zip(self.combinations, self.states(), strict=True):
            if not c.undefined:
                ids.setdefault(tuple(int(s) for s in row), c.id)
        return ids

    @property
    def undefined(self) -> tuple[int, ...]:
        """Ids below the last that no label file may hold."""
        return tuple(c.id for c in self.combinations if c.undefined)

    @property
    def exclusive(self) -> bool:
        """Whether no id stands for two classes at once."""
        return bool(((self.states() == PRESENT).sum(axis=1) <= 1).all())

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest unsigned type that holds every id."""
        return np.min_scalar_type(max(len(self.combinations) - 1, 0))


def whole_ids(labels: NDArray[Any], name: str) -> NDArray[Any]:
    """Return labels as whole numbers; those of an integer type unchanged.

    Parameters
    ----------
    labels : ndarray
        Label ids of any number type.
    name : str
        The file or case, for messages.

    Raises
    ------
    NiftiError
        An id is not a whole number, or no number at all.
    """
    if labels.dtype.kind != "f":
        return labels
    whole = np.rint(labels)
    with np.errstate(invalid="ignore"):
        odd = ~(np.abs(whole - labels) <= _ROUNDING)  # Also where a label is not finite.
    if odd.any():
        raise NiftiError(
            f"{name} has the label id {labels[odd][0]:g}",
            "whole numbers",
            "save the labels as integers, resampled by nearest neighbour",
        )
    ids: NDArray[Any] = whole.astype(np.int64)
    return ids

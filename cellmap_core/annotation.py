"""How a class array says present, absent and unknown: CellMap's annotation encoding."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellmap_core.errors import AnnotationError
from cellmap_core.label_table import ABSENT, PRESENT, UNKNOWN
from cellmap_core.models import Frozen

States = NDArray[np.uint8]


class Encoding(Frozen):
    """The meaning of the values of one class array.

    Attributes
    ----------
    absent : int
        Value of voxels where the class is not.
    present : int or None
        Value where it is (semantic); None where every other value is an instance id.
    unknown : int or None
        Value of voxels nobody could tell; None where the array has none.
    """

    absent: int
    present: int | None = None
    unknown: int | None = None

    def states(self, values: NDArray[Any], location: str) -> States:
        """Turn stored values into ABSENT, PRESENT and UNKNOWN.

        Raises
        ------
        AnnotationError
            The array is not of integers, or a semantic array has a value that its encoding
            does not name.
        """
        if values.dtype.kind not in "uib":
            raise AnnotationError(f"{location} holds {values.dtype}", "an integer label array")
        unknown = np.zeros(values.shape, bool) if self.unknown is None else values == self.unknown
        absent = values == self.absent
        states = np.full(values.shape, PRESENT, dtype=np.uint8)
        states[absent] = ABSENT
        states[unknown] = UNKNOWN
        if self.present is not None:
            strange = ~absent & ~unknown & (values != self.present)
            if strange.any():
                raise AnnotationError(
                    f"{location} holds the value {values[strange][0]}",
                    f"absent {self.absent}, present {self.present} or unknown {self.unknown}",
                )
        return states


def read_encoding(*attributes: dict[str, Any], location: str) -> Encoding:
    """The encoding in the first of several attribute sets (array, class group) that has one.

    Raises
    ------
    AnnotationError
        None of them has a ``cellmap.annotation`` with an encoding: meaning is never guessed.
    """
    for document in attributes:
        annotation = (document.get("cellmap") or {}).get("annotation") or {}
        kind = annotation.get("annotation_type") or {}
        if encoding := kind.get("encoding"):
            instances = "instance" in str(kind.get("type", ""))
            return _encoding(encoding, instances, location)
    raise AnnotationError(
        f"{location} has no annotation encoding", "cellmap.annotation.annotation_type.encoding"
    )


def _encoding(encoding: dict[str, Any], instances: bool, location: str) -> Encoding:
    try:
        return Encoding(
            absent=encoding["absent"],
            present=None if instances else encoding.get("present"),
            unknown=encoding.get("unknown"),
        )
    except (KeyError, ValueError) as error:
        raise AnnotationError(
            f"{location} has encoding {encoding}", "integers absent, present and unknown"
        ) from error


def union(parts: list[States]) -> States:
    """The state of a union of classes from those of all its parts.

    Present where any part is present, absent where every part is absent, else unknown.
    """
    present = np.any([p == PRESENT for p in parts], axis=0)
    absent = np.all([p == ABSENT for p in parts], axis=0)
    return np.where(present, PRESENT, np.where(absent, ABSENT, UNKNOWN)).astype(np.uint8)

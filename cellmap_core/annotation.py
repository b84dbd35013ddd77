"""How a class array says present, absent and unknown: CellMap's annotation encoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellmap_core.errors import AnnotationError
from cellmap_core.label_table import ABSENT, PRESENT, UNKNOWN
from cellmap_core.models import Frozen

States = NDArray[np.uint8]
Mask = NDArray[np.bool_]

# Values that cannot stand for a class: a label array of them is somebody's mistake.
_LABEL_KINDS = "uib"


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

    def state(self, value: int, location: str) -> int:
        """The state that one stored value stands for."""
        if value == self.absent:
            return ABSENT
        if value == self.unknown:
            return UNKNOWN
        if self.present is not None and value != self.present:
            raise AnnotationError(
                f"{location} holds the value {value}",
                f"absent {self.absent}, present {self.present} or unknown {self.unknown}",
            )
        return PRESENT

    def masks(self, values: NDArray[Any], location: str) -> tuple[Mask, Mask | None]:
        """Where stored values say present, and where unknown (None for nowhere).

        Raises
        ------
        AnnotationError
            A semantic array has a value that its encoding does not name.
        """
        plain = self.absent == ABSENT and self.present == PRESENT and values.dtype == np.uint8
        if plain and values.max(initial=0) <= PRESENT:
            return values.view(np.bool_), None  # The common case, without a pass over the values.
        absent = values == self.absent
        known = int(np.count_nonzero(absent))
        if self.present is not None:
            present = values == self.present
            known += int(np.count_nonzero(present))
            if known == values.size:
                return present, None
        unknown = np.zeros_like(absent) if self.unknown is None else values == self.unknown
        some = bool(unknown.any())
        if self.present is None:
            return ~(absent | unknown), unknown if some else None
        if known + int(np.count_nonzero(unknown)) != values.size:
            strange = values[~(absent | present | unknown)][0]
            self.state(int(strange), location)
        return present, unknown


def check_type(dtype: np.dtype[Any], location: str) -> None:
    """Refuse a label array that is not of integers."""
    if dtype.kind not in _LABEL_KINDS:
        raise AnnotationError(f"{location} holds {dtype}", "an integer label array")


def read_encoding(*attributes: dict[str, Any], location: str) -> Encoding:
    """The encoding in the first of several attribute sets (array, class group) that has one.

    Raises
    ------
    AnnotationError
        None of them has a ``cellmap.annotation`` with an encoding: meaning is never guessed.
    """
    found: list[Encoding] = []
    for document in attributes:
        kind = _part(_part(_part(document, "cellmap"), "annotation"), "annotation_type")
        if encoding := kind.get("encoding"):
            instances = "instance" in str(kind.get("type", ""))
            found.append(_encoding(encoding, instances, location))
    if not found:
        raise AnnotationError(
            f"{location} has no annotation encoding", "cellmap.annotation.annotation_type.encoding"
        )
    if other := [encoding for encoding in found if encoding != found[0]]:
        raise AnnotationError(
            f"{location}: its array and its group have different encodings ({found[0]} and "
            f"{other[0]})",
            "one encoding",
            "correct the attributes of one of them",
        )
    return found[0]


def class_names(attributes: dict[str, Any]) -> tuple[str, ...]:
    """The classes that a crop's own annotation names; none where it names none."""
    names = _part(_part(attributes, "cellmap"), "annotation").get("class_names")
    return tuple(str(name) for name in names) if isinstance(names, list) else ()


def _part(document: dict[str, Any], name: str) -> dict[str, Any]:
    part = document.get(name)
    return part if isinstance(part, dict) else {}


def _encoding(encoding: Any, instances: bool, location: str) -> Encoding:
    try:
        if any(isinstance(encoding.get(s), bool) for s in ("absent", "present", "unknown")):
            raise TypeError("a boolean is no value")  # noqa: TRY301 - one message for all
        made = Encoding(
            absent=encoding["absent"],
            present=None if instances else encoding.get("present"),
            unknown=encoding.get("unknown"),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise AnnotationError(
            f"{location} has encoding {encoding}", "integers absent, present and unknown"
        ) from error
    values = [v for v in (made.absent, made.present, made.unknown) if v is not None]
    if len({*values}) < len(values):
        raise AnnotationError(f"{location} has encoding {encoding}", "one value for each state")
    return made


def union(parts: Sequence[States | int]) -> States | int:
    """The state of a union of classes from those of all its parts.

    Present where any part is present, absent where every part is absent, else unknown. A
    part may be one state for the whole block; so is the union of such parts.
    """
    if all(isinstance(part, int) for part in parts):
        return PRESENT if PRESENT in parts else UNKNOWN if UNKNOWN in parts else ABSENT
    shape = np.broadcast_shapes(*(np.shape(part) for part in parts))
    present, absent = np.zeros(shape, bool), np.ones(shape, bool)
    for part in parts:
        present |= np.equal(part, PRESENT)
        absent &= np.equal(part, ABSENT)
    return np.where(present, PRESENT, np.where(absent, ABSENT, UNKNOWN)).astype(np.uint8)

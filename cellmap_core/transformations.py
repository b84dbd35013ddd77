"""Coordinate transformations of OME-NGFF 0.4 and 0.5: a scale, then a translation.

The list of a level holds exactly one scale and at most one translation, which follows it; the
list of the whole multiscale obeys the same rule and is applied afterwards. Anything else is
refused: readers disagree about it, and the voxels would lie somewhere else for each of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cellmap_core.errors import MetadataError

_ORDER = "one scale, then at most one translation, as OME-NGFF 0.4 and 0.5 allow them"
_AXES = 3


class Transformation(NamedTuple):
    """A position is ``scale * index + translation``, in the order and unit of the axes."""

    scale: NDArray[np.float64]
    translation: NDArray[np.float64]

    def then(self, outer: Transformation) -> Transformation:
        """Return this transformation followed by another."""
        return Transformation(
            self.scale * outer.scale, self.translation * outer.scale + outer.translation
        )

    def in_unit(self, factors: NDArray[np.float64]) -> Transformation:
        """Return this transformation in another unit, ``factors`` of it in one of each axis."""
        return Transformation(self.scale * factors, self.translation * factors)


def read_transformation(rows: Any, location: str, required: bool = True) -> Transformation:
    """Read one ``coordinateTransformations`` list.

    Parameters
    ----------
    rows : list of dict or None
        The list as it is stored.
    location : str
        Whose list it is, for messages.
    required : bool
        Whether it must have a scale.

    Raises
    ------
    MetadataError
        The list is malformed, or has other transformations or another order than OME-NGFF
        allows.
    """
    if rows is not None and not isinstance(rows, list):
        raise MetadataError(f"{location} has transformations {rows!r:.60}", "a list")
    steps = [step for row in rows or () if (step := _step(row, location)) is not None]
    kinds = [kind for kind, _ in steps]
    for kind in ("scale", "translation"):
        if kinds.count(kind) > 1:
            raise MetadataError(f"{location} has {kinds.count(kind)} {kind}s", _ORDER)
    if kinds == ["translation", "scale"]:
        raise MetadataError(
            f"{location} has a translation before its scale",
            _ORDER,
            "write the translation in the unit of the axes and put it last",
        )
    if required and "scale" not in kinds:
        raise MetadataError(f"{location} has no scale", "a scale transformation")
    vectors = dict(steps)
    return Transformation(
        scale=vectors.get("scale", np.ones(_AXES)),
        translation=vectors.get("translation", np.zeros(_AXES)),
    )


def _step(row: Any, location: str) -> tuple[str, NDArray[np.float64]] | None:
    """Kind and numbers of one transformation; None for the identity."""
    kind = row.get("type") if isinstance(row, dict) else row
    if kind == "identity":
        return None
    if not isinstance(row, dict) or kind not in ("scale", "translation"):
        raise MetadataError(f"{location} has a transformation {kind!r:.60}", _ORDER)
    if kind not in row and "path" in row:
        raise MetadataError(
            f"{location} keeps its {kind} in the array {row['path']}",
            "numbers in the metadata",
            f"write them as {kind}",
        )
    return kind, _vector(row, kind, location)


def _vector(row: dict[str, Any], kind: str, location: str) -> NDArray[np.float64]:
    try:
        if any(isinstance(v, bool) for v in row[kind]):
            raise TypeError("a boolean is no number")  # noqa: TRY301 - one message for all
        vector = np.array([float(v) for v in row[kind]])
    except (KeyError, TypeError, ValueError) as error:
        raise MetadataError(f"{location}: unreadable {kind}", "three numbers") from error
    if not np.isfinite(vector).all():
        raise MetadataError(f"{location}: {kind} {vector.tolist()}", "finite numbers")
    if vector.shape != (_AXES,):
        raise MetadataError(f"{location}: {kind} of {len(vector)} numbers", "three numbers")
    return vector

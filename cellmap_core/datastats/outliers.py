"""Crops that are not like the others, or cannot be learned from: to be looked at by a person."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellmap_core.models import Frozen
from cellmap_core.nifti_names import volume_stem

# EM is exported with some 0.5 % of its voxels cut off at each end.
_SATURATED = 0.03
# Modified z-score above which a value is an outlier: Iglewicz and Hoaglin, "How to detect and
# handle outliers" (1993).
_MAX_SCORE = 3.5
_NORMAL = 0.6745
# Of fewer crops nobody can say what the usual contrast is.
_MIN_CROPS = 6
# Brightness and contrast must also differ by this part of the middle crop's contrast.
_MIN_DIFFERENCE = 0.5


class Outlier(Frozen):
    """A crop to look at.

    Attributes
    ----------
    case : str
        ``dataset/crop``, or the image's file name.
    image, label : Path
        Its files.
    reasons : tuple of str
        What is odd, and what it does to a training.
    """

    case: str
    image: Path
    label: Path
    reasons: tuple[str, ...]

    def text(self) -> str:
        """The reasons as one line."""
        return "; ".join(self.reasons)


def find_outliers(cases: Sequence[dict[str, Any]]) -> tuple[Outlier, ...]:
    """Find crops that are blank, saturated, of another contrast, of one label only or misaligned.

    Parameters
    ----------
    cases : sequence of dict
        What ``case_statistics`` returned.
    """
    contrast = _contrast(cases)
    found = []
    for case, odd in zip(cases, contrast, strict=True):
        reasons = (*_of_image(case), *odd, *_of_labels(case))
        if reasons:
            found.append(
                Outlier(
                    case=name_of(case),
                    image=Path(case["image_filepath"]),
                    label=Path(case["label_filepath"]),
                    reasons=reasons,
                )
            )
    return tuple(found)


def name_of(case: dict[str, Any]) -> str:
    """``dataset/crop`` of a case, or its file name without suffixes; longer if others have it."""
    if title := case.get("case"):
        return str(title)
    if about := case.get("cellmap"):
        return f"{about['dataset']}/{about['crop']}"
    return volume_stem(case["image_filepath"])


def _is_blank(ops: dict[str, Any]) -> bool:
    """Whether a channel has one value, at least in the box around what is above 0."""
    return bool(ops["max"] == ops["min"])


def _of_image(case: dict[str, Any]) -> Iterator[str]:
    stats = case["image_stats"]
    channels = stats["intensity"]
    for number, (ops, box) in enumerate(zip(channels, stats["cropped_shape"], strict=True)):
        if _is_blank(ops):
            where = "" if len(channels) == 1 else f"channel {number}: "
            whole = "every voxel" if box == stats["shape"][number] else "all that is not black"
            yield f"{where}blank ({whole} is {ops['min']:g})"
    for part, end in zip(case.get("saturation") or (), ("black", "white"), strict=False):
        if part > _SATURATED:
            yield f"saturated ({part:.1%} of the known voxels are plain {end})"


def _of_labels(case: dict[str, Any]) -> Iterator[str]:
    rows = case["class_stats"]
    known = [row for row in rows if row["present"] + row["absent"]]
    if not known:
        yield "no voxel of any class is known: it teaches nothing"
    elif not any(row["present"] and row["absent"] for row in known):
        held = [row["name"] for row in known if row["present"]]
        yield f"one label only ({', '.join(held) or 'background'}): it has no boundary to learn"
    about = case.get("cellmap") or {}
    if about.get("alignment") == "shifted":
        shift = ", ".join(
            f"{axis} {nm:+.0f}"
            for axis, nm in zip("zyx", about["label_shift_nm"], strict=True)
            if nm
        )
        yield f"misaligned (labels lie {shift} nm off the EM)"


def _contrast(cases: Sequence[dict[str, Any]]) -> list[list[str]]:
    """For each case what is unusual about its brightness and contrast."""
    result: list[list[str]] = [[] for _ in cases]
    usable = [
        i for i, case in enumerate(cases) if not _is_blank(case["image_stats"]["intensity"][0])
    ]
    if len(usable) < _MIN_CROPS:
        return result
    ops = [cases[i]["image_stats"]["intensity"][0] for i in usable]
    middle = float(np.median([o["stdev"] for o in ops]))
    for what, key in (("brightness", "mean"), ("contrast", "stdev")):
        values = np.array([o[key] for o in ops])
        usual = float(np.median(values))
        for i, value, score in zip(usable, values.tolist(), _scores(values), strict=True):
            if score > _MAX_SCORE and abs(value - usual) > _MIN_DIFFERENCE * middle:
                result[i].append(f"another {what} ({key} {value:.4g}, usually {usual:.4g})")
    return result


def _scores(values: NDArray[np.float64]) -> list[float]:
    """Modified z-scores: distance from the median in (robust) deviations."""
    distance = np.abs(values - np.median(values))
    deviation = float(np.median(distance))
    if deviation == 0:
        return [float("inf") if d > 0 else 0.0 for d in distance]
    return [float(_NORMAL * d / deviation) for d in distance]

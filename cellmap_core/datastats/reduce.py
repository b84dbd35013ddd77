"""Summary over cases, in the schema of Auto3DSeg's ``datastats.yaml``.

MONAI's reduction rules, with one repair: labels are matched by their value, never by their
place in a case's list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cellmap_core.datastats.distribution import ops_of_rows, summary_of_ops

Case = dict[str, Any]


def summarize(cases: Sequence[Case], classes: Sequence[str]) -> dict[str, Any]:
    """Reduce case statistics to ``stats_summary``.

    Parameters
    ----------
    cases : sequence of dict
        What ``case_statistics`` returned, in any order: the result is the same.
    classes : sequence of str
        All class names, in the order of their ids 1..C.

    Returns
    -------
    dict
        Auto3DSeg's summary, and ``class_stats``: a row for each class of ``classes`` over the
        crops in which it is annotated. Intensities are None where no case has such a voxel.
    """
    # One order whatever the order they come in: a sum of floats depends on it.
    ordered = sorted(cases, key=lambda c: (c["image_filepath"], c["label_filepath"]))
    images = [c["image_stats"] for c in ordered]
    per_axis = {
        "shape": [i["shape"][0] for i in images],
        "channels": [i["channels"] for i in images],
        "cropped_shape": [i["cropped_shape"][0] for i in images],
        "spacing": [i["spacing"] for i in images],
        "sizemm": [i["sizemm"] for i in images],
    }
    foreground = [c["image_foreground_stats"]["intensity"] for c in ordered]
    return {
        "image_stats": {
            **{name: ops_of_rows(rows) for name, rows in per_axis.items()},
            "intensity": _intensity([i["intensity"] for i in images]),
        },
        "image_foreground_stats": {"intensity": _intensity(foreground)},
        "label_stats": _label_stats(ordered),
        "class_stats": [
            {"name": name, "index": number, **_class_row(ordered, number)}
            for number, name in enumerate(classes, start=1)
        ],
        "n_cases": len(ordered),
    }


def _intensity(per_case: Sequence[list[dict[str, Any]]]) -> dict[str, float] | None:
    """Summary over the cases that have such voxels (a channel list is empty where none)."""
    some = [channels[0] for channels in per_case if channels]
    return summary_of_ops(some) if some else None


def _label_stats(cases: Sequence[Case]) -> dict[str, Any]:
    by_value: dict[int, list[dict[str, Any]]] = {}
    for case in cases:
        stats = case["label_stats"]
        for value, row in zip(stats["labels"], stats["label"], strict=True):
            by_value.setdefault(value, []).append(row)
    labels = sorted(by_value)
    return {
        "labels": labels,
        "image_intensity": _intensity([c["label_stats"]["image_intensity"] for c in cases]),
        "label": [_label_row(by_value[value]) for value in labels],
    }


def _label_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One label value over the cases that have it."""
    row: dict[str, Any] = {
        "foreground_percentage": ops_of_rows([r["foreground_percentage"] for r in rows]),
        "image_intensity": _intensity([r["image_intensity"] for r in rows]),
    }
    if "shape" in rows[0]:
        row["ncomponents"] = ops_of_rows([r["ncomponents"] for r in rows])
        row["shape"] = ops_of_rows([box for r in rows for box in r["shape"]])
    return row


def _class_row(cases: Sequence[Case], number: int) -> dict[str, Any]:
    """One class over the crops in which it is annotated.

    A crop where the class is annotated but unknown at every voxel is neither present nor
    absent.
    """
    rows = [r for c in cases for r in c["class_stats"] if r["index"] == number]
    fractions = [r["foreground_percentage"] for r in rows]
    known = [f for f in fractions if f is not None]
    present = sum(f > 0 for f in known)
    return {
        "annotated_in": len(rows),
        "present_in": present,
        "absent_in": len(known) - present,
        "voxels": {s: sum(r[s] for r in rows) for s in ("present", "absent", "unknown")},
        "foreground_percentage": ops_of_rows(known) if known else None,
        "image_intensity": _intensity([r["image_intensity"] for r in rows]),
    }

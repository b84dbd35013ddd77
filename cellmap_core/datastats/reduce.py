"""Summary over cases, in the schema of Auto3DSeg's ``datastats.yaml``.

MONAI's reduction rules, with one repair: labels are matched by their value, never by their
place in a case's list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cellmap_core.datastats.distribution import ops_of_rows, summary_of_ops

Case = dict[str, Any]

# Between the 10 and 90 % of a normal distribution, in its deviations.
_NORMAL_SPREAD = 2.5631


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
        crops in which it is annotated, and ``normalisation``: one scale for all crops. Intensities
        are None where no case has such a voxel.
    """
    ordered = _ordered(cases)
    summary = summarize_plain(ordered)
    rows = [
        {"name": name, "index": number, **_class_row(ordered, number)}
        for number, name in enumerate(classes, start=1)
    ]
    scale = _scale([c["image_stats"]["intensity"] for c in ordered])
    return {**summary, "normalisation": scale, "class_stats": rows}


def summarize_plain(cases: Sequence[Case]) -> dict[str, Any]:
    """Reduce case statistics to Auto3DSeg's ``stats_summary`` and nothing else.

    Parameters
    ----------
    cases : sequence of dict
        What ``plain_statistics`` returned, in any order: the result is the same. Labels and
        histograms are summed up where the cases have them.
    """
    ordered = _ordered(cases)
    summary: dict[str, Any] = {"image_stats": _image_stats([c["image_stats"] for c in ordered])}
    if "label_stats" in ordered[0]:
        foreground = [c["image_foreground_stats"]["intensity"] for c in ordered]
        summary["image_foreground_stats"] = {"intensity": _intensity(foreground)}
        summary["label_stats"] = _label_stats(ordered)
    if "image_histogram" in ordered[0]:
        histograms = [c["image_histogram"] for c in ordered]
        summary["image_histogram"] = {"histogram": _histogram(histograms)}
    return {**summary, "n_cases": len(ordered)}


def _ordered(cases: Sequence[Case]) -> list[Case]:
    """One order whatever the order they come in: a sum of floats depends on it."""
    return sorted(cases, key=lambda c: (c["image_filepath"], c["label_filepath"]))


def _image_stats(images: Sequence[dict[str, Any]]) -> dict[str, Any]:
    per_axis = {
        "shape": [shape for i in images for shape in i["shape"]],
        "channels": [i["channels"] for i in images],
        "cropped_shape": [shape for i in images for shape in i["cropped_shape"]],
        "spacing": [i["spacing"] for i in images],
        "sizemm": [i["sizemm"] for i in images],
    }
    return {
        **{name: ops_of_rows(rows) for name, rows in per_axis.items()},
        "intensity": _intensity([i["intensity"] for i in images]),
    }


def _scale(per_case: Sequence[list[dict[str, Any]]]) -> dict[str, float] | None:
    """One intensity scale for all crops, which no blank, bright or burnt one moves.

    Clipped to where 95 % of the crops have their 0.5 and 99.5 % percentiles; the middle is the
    crops' median, the deviation that of a normal distribution with their 10 and 90 %. None
    where every crop is blank.
    """
    ops = [o for channels in per_case for o in channels if o["max"] > o["min"]]
    if not ops:
        return None
    spread = [(o["percentile_90_0"] - o["percentile_10_0"]) / _NORMAL_SPREAD for o in ops]
    stdev = float(np.median(spread)) or float(np.median([o["stdev"] for o in ops]))
    return {
        "clip_low": float(np.percentile([o["percentile_00_5"] for o in ops], 5)),
        "clip_high": float(np.percentile([o["percentile_99_5"] for o in ops], 95)),
        "mean": float(np.median([o["median"] for o in ops])),
        "stdev": stdev,
    }


def _histogram(per_case: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Counts added up by channel; the edges are the same in all cases."""
    return [
        {
            "counts": np.sum([channel["counts"] for channel in channels], axis=0).tolist(),
            "bin_edges": channels[0]["bin_edges"],
        }
        for channels in zip(*per_case, strict=True)
    ]


def _intensity(per_case: Sequence[list[dict[str, Any]]]) -> dict[str, float] | None:
    """Summary over all channels of the cases that have such voxels (the others list none)."""
    some = [ops for channels in per_case for ops in channels]
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

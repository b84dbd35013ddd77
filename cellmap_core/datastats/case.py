"""Statistics of one case, in the schema of Auto3DSeg's ``datastats_by_case.yaml``.

The numbers follow MONAI's rules (``monai.auto3dseg.analyzer``) where those are right. Where
they are not: every axis of the image is cropped, labels are by value and sorted, a blank
case keeps its row, and a voxel of which nothing is known is not foreground.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellmap_core.datalist import Entry
from cellmap_core.datastats.distribution import Distribution
from cellmap_core.datastats.tally import Tally, tally
from cellmap_core.errors import StatisticsError
from cellmap_core.label_table import ABSENT, PRESENT, UNKNOWN, LabelTable


def case_statistics(entry: Entry, folder: Path, table: LabelTable, do_ccp: bool) -> dict[str, Any]:
    """Statistics of one labelled case.

    Parameters
    ----------
    entry : Entry
        The case.
    folder : Path
        The datalist's folder, to which the entry's paths are relative.
    table : LabelTable
        What each label id says of every class.
    do_ccp : bool
        Whether to count connected components of each label id.

    Returns
    -------
    dict
        Auto3DSeg's keys, axes in the order x, y, z. Spacing and ``sizemm`` are in the unit of
        the NIfTI header, which is nm in files of ours. ``foreground_percentage`` is a
        fraction, as Auto3DSeg's is. Intensity lists hold one item (one channel), or none
        where there is no such voxel. Beside ``label_stats`` there is ``class_stats``: a row
        for each class annotated in the crop.

    Raises
    ------
    StatisticsError
        Image and label are not one grid, a label id is not in the table, an annotated class
        is not one of the classes, or an intensity is not finite.
    NiftiError
        A file cannot be read.
    """
    classes = len(table.classes)
    if strange := [c for c in entry.annotated_classes if not 1 <= c <= classes]:
        raise StatisticsError(f"annotated_classes {strange}", f"ids 1 to {classes} of the classes")
    if entry.label is None:
        raise StatisticsError("a case without a label", "image and label")
    image, label = folder / entry.image, folder / entry.label
    counted = tally(image, label, len(table.combinations), do_ccp)
    annotated = sorted(set(entry.annotated_classes))
    states = table.states()[:, [c - 1 for c in annotated]]
    foreground = _intensity(counted, (states == PRESENT).any(axis=1))
    return {
        "image_filepath": str(image),
        "label_filepath": str(label),
        "image_stats": _image_stats(counted),
        "image_foreground_stats": {"intensity": foreground},
        "label_stats": {
            "labels": sorted(counted.by_id),
            "image_intensity": foreground,
            "label": _label_rows(counted),
        },
        "class_stats": [
            {"name": table.classes[c - 1], "index": c, **_class_row(counted, states[:, k])}
            for k, c in enumerate(annotated)
        ],
    }


def _intensity(counted: Tally, chosen: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Intensity of the voxels whose id is chosen: one channel, or none without a voxel.

    MONAI reports the intensity 0 for no voxels, which then counts in every mean.
    """
    merged = Distribution.merged(d for i, d in counted.by_id.items() if chosen[i])
    return [merged.ops()] if merged.total else []


def _image_stats(counted: Tally) -> dict[str, Any]:
    shape, spacing = list(counted.grid.shape_vox[::-1]), list(counted.grid.voxel_nm[::-1])
    return {
        "shape": [shape],
        "channels": 1,
        "cropped_shape": [list(counted.box_vox[::-1])],
        "spacing": spacing,
        "sizemm": [n * s for n, s in zip(shape, spacing, strict=True)],
        "intensity": [counted.in_box.ops()],
    }


def _label_rows(counted: Tally) -> list[dict[str, Any]]:
    voxels = int(np.prod(counted.grid.shape_vox))
    rows = []
    for i in sorted(counted.by_id):
        row: dict[str, Any] = {"image_intensity": [counted.by_id[i].ops()]}
        if counted.shapes is not None:
            row["shape"] = counted.shapes[i]
            row["ncomponents"] = len(counted.shapes[i])
        row["foreground_percentage"] = counted.by_id[i].total / voxels
        rows.append(row)
    return rows


def _class_row(counted: Tally, states: NDArray[np.uint8]) -> dict[str, Any]:
    """Voxels by state, and what the known ones are like; ``states`` is the class by id."""
    voxels = {
        state: sum(d.total for i, d in counted.by_id.items() if states[i] == state)
        for state in (ABSENT, PRESENT, UNKNOWN)
    }
    known = voxels[PRESENT] + voxels[ABSENT]
    return {
        "present": voxels[PRESENT],
        "absent": voxels[ABSENT],
        "unknown": voxels[UNKNOWN],
        "known_fraction": known / (known + voxels[UNKNOWN]),
        "foreground_percentage": voxels[PRESENT] / known if known else None,
        "image_intensity": _intensity(counted, states == PRESENT),
    }

"""Statistics of one case, in the schema of Auto3DSeg's ``datastats_by_case.yaml``.

The numbers follow MONAI's rules (``monai.auto3dseg.analyzer``) where those are right. Where
they are not: every axis of the image is cropped, labels are by value and sorted, a blank
case keeps its row, and a voxel of which nothing is known is not foreground.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cellmap_core.datalist import Entry
from cellmap_core.datastats.distribution import Distribution
from cellmap_core.datastats.tally import Tally, tally
from cellmap_core.errors import StatisticsError
from cellmap_core.label_table import ABSENT, PRESENT, UNKNOWN, LabelTable

# An image of fewer values than this has many voxels at each of them.
_MIN_VALUES = 32
# This near an end of the values, in parts of their range, is at it.
_END = 1e-6


class Bins(NamedTuple):
    """A histogram wanted of a channel: equal bins from ``low`` to ``high``."""

    number: int
    low: float
    high: float


def case_statistics(entry: Entry, folder: Path, table: LabelTable, do_ccp: bool) -> dict[str, Any]:
    """Statistics of one labelled case of our datalist.

    Parameters
    ----------
    entry : Entry
        The case.
    folder : Path
        The datalist's folder, to which the entry's paths are relative.
    table : LabelTable
        What each label id says of every class.
    do_ccp : bool
        Whether to find the connected components of each label id.

    Returns
    -------
    dict
        Auto3DSeg's keys, axes in the order of the file (x, y, z in files of ours). Spacing and
        ``sizemm`` are in nm. ``foreground_percentage`` is a
        fraction, as Auto3DSeg's is. Intensity lists hold one item a channel, or none where
        there is no such voxel. Beside ``label_stats`` there is ``class_stats``, a row for each
        class annotated in the crop, and ``saturation``, the parts of the known voxels at the
        lowest and the highest value of the crop.

    Raises
    ------
    GeometryError
        Image and label are not one grid.
    StatisticsError
        A label id is not in the table, an annotated class is not one of the classes, or an
        intensity is not finite.
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
    if strange := [i for i in counted.voxels() if i in table.undefined]:
        raise StatisticsError(
            f"{label} has the label id {strange[0]}",
            "ids that the datalist gives a meaning",
            "add it to a class or to background in the datalist, or correct the file",
        )
    annotated = sorted(set(entry.annotated_classes))
    states = table.states()[:, [c - 1 for c in annotated]]
    foreground, known = (states == PRESENT).any(axis=1), (states != UNKNOWN).any(axis=1)
    return {
        "image_filepath": str(image),
        "label_filepath": str(label),
        "image_stats": _image_stats(counted),
        **_label_stats(counted, lambda i: bool(foreground[i])),
        "class_stats": [
            {"name": table.classes[c - 1], "index": c, **_class_row(counted, states[:, k])}
            for k, c in enumerate(annotated)
        ],
        "saturation": _saturation(counted, lambda i: bool(known[i])),
    }


def plain_statistics(
    image: Path, label: Path | None, do_ccp: bool, bins: Sequence[Bins] = ()
) -> dict[str, Any]:
    """Statistics of a case that no label table explains: Auto3DSeg's keys alone.

    Parameters
    ----------
    image : Path
        NIfTI file.
    label : Path or None
        NIfTI file of any integer ids, where there are labels; ids above 0 are foreground.
    do_ccp : bool
        Whether to find the connected components of each label id.
    bins : sequence of Bins
        A histogram for each channel, or one for all; none gives no histogram.

    Raises
    ------
    GeometryError, StatisticsError, NiftiError
        As of :func:`case_statistics`.
    """
    counted = tally(image, label, components=do_ccp and label is not None)
    stats: dict[str, Any] = {
        "image_filepath": str(image),
        "label_filepath": "None" if label is None else str(label),
        "image_stats": _image_stats(counted),
    }
    if bins:
        stats["image_histogram"] = _histograms(counted, bins)
    return stats if label is None else {**stats, **_label_stats(counted, lambda i: i > 0)}


def _image_stats(counted: Tally) -> dict[str, Any]:
    shape, spacing = list(counted.geometry.shape_vox[::-1]), list(counted.geometry.voxel_nm[::-1])
    return {
        "shape": [list(shape) for _ in counted.channels],
        "channels": len(counted.channels),
        "cropped_shape": [list(channel.box_vox[::-1]) for channel in counted.channels],
        "spacing": spacing,
        "sizemm": [n * s for n, s in zip(shape, spacing, strict=True)],
        "intensity": [channel.in_box.ops() for channel in counted.channels],
    }


def _label_stats(counted: Tally, foreground: Callable[[int], bool]) -> dict[str, Any]:
    inside = _intensity(counted, foreground)
    voxels = counted.voxels()
    return {
        "image_foreground_stats": {"intensity": inside},
        "label_stats": {
            "labels": list(voxels),
            "image_intensity": inside,
            "label": [_label_row(counted, i, n) for i, n in voxels.items()],
        },
    }


def _label_row(counted: Tally, label: int, voxels: int) -> dict[str, Any]:
    row: dict[str, Any] = {"image_intensity": [c.by_id[label].ops() for c in counted.channels]}
    if counted.shapes is not None:
        row["shape"] = counted.shapes[label]
        row["ncomponents"] = len(counted.shapes[label])
    row["foreground_percentage"] = voxels / int(np.prod(counted.geometry.shape_vox))
    return row


def _intensity(counted: Tally, chosen: Callable[[int], bool]) -> list[dict[str, Any]]:
    """Intensity of the voxels whose id is chosen, an item a channel; none without a voxel.

    MONAI reports the intensity 0 for no voxels, which then counts in every mean.
    """
    return [of.ops() for of in _merged(counted, chosen) if of.total]


def _merged(counted: Tally, chosen: Callable[[int], bool]) -> list[Distribution]:
    return [
        Distribution.merged(of for i, of in channel.by_id.items() if chosen(i))
        for channel in counted.channels
    ]


def _class_row(counted: Tally, states: NDArray[np.uint8]) -> dict[str, Any]:
    """Voxels by state, and what the known ones are like; ``states`` is the class by id."""
    voxels = {
        state: sum(n for i, n in counted.voxels().items() if states[i] == state)
        for state in (ABSENT, PRESENT, UNKNOWN)
    }
    known = voxels[PRESENT] + voxels[ABSENT]
    return {
        "present": voxels[PRESENT],
        "absent": voxels[ABSENT],
        "unknown": voxels[UNKNOWN],
        "known_fraction": known / (known + voxels[UNKNOWN]),
        "foreground_percentage": voxels[PRESENT] / known if known else None,
        "image_intensity": _intensity(counted, lambda i: states[i] == PRESENT),
    }


def _saturation(counted: Tally, known: Callable[[int], bool]) -> list[float] | None:
    """Parts of the known voxels at the crop's own two ends; None where it has few values.

    Its own ends, not those of the type: 12 bits in 16, and floats from 0 to 1, saturate too.
    """
    of = _merged(counted, known)[0]
    if len(of.values) < _MIN_VALUES:
        return None
    near = _END * (of.values[-1] - of.values[0])
    low, high = of.values <= of.values[0] + near, of.values >= of.values[-1] - near
    return [int(of.counts[end].sum()) / of.total for end in (low, high)]


def _histograms(counted: Tally, bins: Sequence[Bins]) -> list[dict[str, Any]]:
    wanted = list(bins) * len(counted.channels) if len(bins) == 1 else list(bins)
    if len(wanted) != len(counted.channels):
        raise StatisticsError(
            f"{len(counted.channels)} channels", f"{len(wanted)}, one for each histogram asked for"
        )
    everything = _merged(counted, lambda _: True)
    made = [of.histogram(*of_channel) for of, of_channel in zip(everything, wanted, strict=True)]
    return [{"counts": counts, "bin_edges": edges} for counts, edges in made]

"""One case of the ensemble: probabilities, masks, labels and scores, a block at a time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellmap_core.datalist import Datalist, Entry
from cellmap_core.inference.blocks import Block, plan_blocks, predict_block
from cellmap_core.inference.members import Member, Networks
from cellmap_core.inference.ome_zarr import create_masks
from cellmap_core.inference.predicted_labels import (
    PredictedLabels,
    labels_path,
    table_path,
    write_table,
)
from cellmap_core.models import CasePrediction
from cellmap_core.nifti import read_geometry, write_slabs
from cellmap_core.provenance import replace_folder, scratch_folder
from cellmap_core.training.mapped_volume import Volume
from cellmap_core.training.metrics import DiceCounts, known_target
from cellmap_core.training.volumes import Case

THRESHOLD = 0.5
#: Folder of predictions whose case failed later on.
EARLIER_NAME = "earlier"


def mean_probabilities(
    image: Volume, block: Block, members: Sequence[Member], networks: Networks
) -> NDArray[np.float32]:
    """Mean over the members of a block's probabilities (C, z, y, x).

    Each class is averaged over the members that could learn it; it is 0 where none could.
    """
    total: NDArray[np.float32] | None = None
    for member in members:
        part = predict_block(networks.of(member), image, block, member.config)
        part *= member.learnt[:, None, None, None]
        total = part if total is None else np.add(total, part, out=total)
    assert total is not None
    voters = np.sum([m.learnt for m in members], axis=0)
    total /= np.maximum(voters, 1)[:, None, None, None].astype(np.float32)
    return total


def predict_case(
    cases: Datalist,
    entry: Entry,
    case: Case,
    members: Sequence[Member],
    classes: Sequence[str],
    networks: Networks,
    target: Path,
) -> CasePrediction:
    """Predict one case: masks as ``target``, labels and the table of their ids beside it.

    The labels have affine and axis order of the image; the masks are in world axes z, y, x
    where the image is not oblique (see `ImageGeometry.order`).

    Parameters
    ----------
    cases : Datalist
        Classes and label table.
    entry, case : Entry, Case
        The case and its voxels.
    members, networks : sequence of Member, Networks
        The models.
    classes : sequence of str
        The classes to write.
    target : Path
        ``<case>.zarr``; the labels are ``<case>.nii.gz``, their table ``<case>.labels.json``.

    Returns
    -------
    CasePrediction
        With Dice over the known voxels where the case has labels.
    """
    image = cases.path(entry.image)
    geometry = read_geometry(image)
    numbers = {name: cases.classes.index(name) for name in classes}
    counts, foreground = DiceCounts(cases.classes), dict.fromkeys(classes, 0)
    states = cases.table.states()
    attributes = {"members": [m.name for m in members], "threshold": THRESHOLD}
    order = geometry.order()
    with scratch_folder(target) as scratch:
        made = scratch / target.name
        masks = create_masks(made, geometry, classes, attributes)
        labels = PredictedLabels(cases.table, geometry.shape_vox, scratch)
        for block in plan_blocks(geometry.shape_vox, [m.config for m in members]):
            predicted = mean_probabilities(case.image, block, members, networks) > THRESHOLD
            labels.add(block.core, predicted)
            for name, c in numbers.items():
                part = predicted[c].astype(np.uint8)
                masks[name][order.place(block.core)] = order.reordered(part)
                foreground[name] += int(predicted[c].sum())
            if case.label is not None:
                truth = case.labels_at(block.core, len(states))
                counts.add(predicted, *known_target(truth, case.annotated, states))
        table = labels.table()
        write_slabs(labels_path(made), geometry, table.dtype, labels.slabs(), image)
        write_table(table_path(made), table, classes)
        _publish(made, target)
    scored = case.label is not None
    return CasePrediction(
        case=entry.name,
        prediction=target,
        dice=_of(classes, counts.dice()) if scored else {},
        trivial_dice=_of(classes, counts.trivial()) if scored else {},
        foreground_fraction={n: v / case.image.size for n, v in foreground.items()},
        further_ids=labels.further,
    )


def _publish(made: Path, target: Path) -> None:
    """Rename masks, labels and table to their final names, in the place of earlier ones."""
    # A kill in between may leave labels without a table, never with the table of others.
    table_path(target).unlink(missing_ok=True)
    labels_path(made).replace(labels_path(target))
    table_path(made).replace(table_path(target))
    replace_folder(made, target)


def set_aside(target: Path) -> Path | None:
    """Move an earlier prediction of a case out of the way of those that are up to date.

    Parameters
    ----------
    target : Path
        ``<case>.zarr``; its labels and their table are moved too.

    Returns
    -------
    Path or None
        The folder ``earlier/<number>`` beside it; None where there is no prediction.
    """
    files = [p for p in (target, labels_path(target), table_path(target)) if p.exists()]
    if not files:
        return None
    names = (target.parent / EARLIER_NAME / str(number) for number in itertools.count(1))
    folder = next(name for name in names if not any((name / p.name).exists() for p in files))
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        path.rename(folder / path.name)
    return folder


def _of(classes: Sequence[str], dice: dict[str, float | None]) -> dict[str, float | None]:
    return {name: dice[name] for name in classes}

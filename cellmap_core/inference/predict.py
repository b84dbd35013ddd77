"""One case of the ensemble: probabilities, masks, labels and scores, a block at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellmap_core.combinations import Coder
from cellmap_core.datalist import Datalist, Entry
from cellmap_core.inference.blocks import Block, plan_blocks, predict_block
from cellmap_core.inference.members import Member, Networks
from cellmap_core.inference.ome_zarr import atomic_folder, create_masks
from cellmap_core.label_table import States
from cellmap_core.models import CasePrediction
from cellmap_core.nifti import read_grid, write_volume
from cellmap_core.training.metrics import DiceCounts, known_target
from cellmap_core.training.volumes import Case

THRESHOLD = 0.5


def mean_probabilities(
    image: NDArray[Any], block: Block, members: Sequence[Member], networks: Networks
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


def likeliest(probabilities: NDArray[np.float32]) -> NDArray[np.int64]:
    """Id (1..C) of the likeliest class of those above the threshold, 0 where there is none."""
    best = np.argmax(probabilities, axis=0)
    return np.where(np.max(probabilities, axis=0) > THRESHOLD, best + 1, 0)


def label_ids(probabilities: NDArray[np.float32], ids: Mapping[States, int]) -> NDArray[np.int64]:
    """Label ids of the predicted combinations of classes, as the datalist's table has them.

    A combination that the data never had gets the id of its likeliest class.
    """
    coder = Coder()
    z, y, x = probabilities.shape[1:]
    coded = coder.encode(((p > THRESHOLD).astype(np.uint8) for p in probabilities), (z, y, x))
    found = np.array([ids.get(states, -1) for states in coder.seen])[coded]
    return np.where(found < 0, likeliest(probabilities), found)


def predict_case(
    cases: Datalist,
    entry: Entry,
    case: Case,
    members: Sequence[Member],
    classes: Sequence[str],
    networks: Networks,
    target: Path,
) -> CasePrediction:
    """Predict one case and write it: masks as ``target``, labels beside it as ``.nii.gz``.

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
        ``<case>.zarr``.

    Returns
    -------
    CasePrediction
        With Dice over the known voxels where the case has labels.
    """
    grid = read_grid(cases.path(entry.image))
    numbers = {name: cases.classes.index(name) for name in classes}
    counts, foreground = DiceCounts(cases.classes), dict.fromkeys(classes, 0)
    states, ids, dtype = cases.table.states(), cases.table.id_of(), cases.table.dtype
    attributes = {"members": [m.name for m in members], "threshold": THRESHOLD}
    with (
        atomic_folder(target) as folder,
        tempfile.TemporaryDirectory(dir=target.parent, prefix=".labels.") as scratch,
    ):
        masks = create_masks(folder, grid, classes, attributes)
        labels = np.memmap(Path(scratch) / "labels", dtype, "w+", shape=grid.shape_vox)
        for block in plan_blocks(grid.shape_vox, [m.config for m in members]):
            probabilities = mean_probabilities(case.image, block, members, networks)
            labels[block.core] = label_ids(probabilities, ids)
            predicted = probabilities > THRESHOLD
            for name, c in numbers.items():
                masks[name][block.core] = predicted[c].astype(np.uint8)
                foreground[name] += int(predicted[c].sum())
            if case.label is not None:
                truth = case.labels_at(block.core, len(states))
                counts.add(predicted, *known_target(truth, case.annotated, states))
        write_volume(target.with_suffix(".nii.gz"), grid, labels)
    dice = counts.dice() if case.label is not None else {}
    return CasePrediction(
        case=entry.name,
        prediction=target,
        dice={name: dice[name] for name in classes if name in dice},
        foreground_fraction={n: v / case.image.size for n, v in foreground.items()},
    )

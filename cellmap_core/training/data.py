"""What one training sees: the sampler of its training cases, and its validation cases."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellmap_core.datalist import read_datalist
from cellmap_core.errors import TrainingError
from cellmap_core.training.config import TrainConfig
from cellmap_core.training.patches import PatchSampler, look_up
from cellmap_core.training.volumes import Case, open_cases

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoldData:
    """The data of one fold.

    Attributes
    ----------
    sampler : PatchSampler
        Of the training cases.
    validation : tuple of Case
        The cases of the fold.
    states : ndarray of uint8
        The label table's states (ids, classes).
    look_up : ndarray of uint8
        The same with a row for padding.
    learnable : list of str
        Classes annotated and present in the training cases.
    """

    sampler: PatchSampler
    validation: tuple[Case, ...]
    states: NDArray[np.uint8]
    look_up: NDArray[np.uint8]
    learnable: list[str]


def open_fold(config: TrainConfig, cache: Path) -> FoldData:
    """Open the cases of a fold; decompressed volumes go to ``cache``.

    Raises
    ------
    TrainingError
        The datalist has other classes than the bundle, or nothing to learn.
    DatalistError, NiftiError
        The datalist or a case cannot be read.
    """
    datalist = read_datalist(config.datalist, config.dataroot)
    in_memory = config.cache == "memory"
    if datalist.classes != config.classes:
        raise TrainingError(
            f"{config.datalist} has classes {', '.join(datalist.classes)}",
            f"{', '.join(config.classes)}, for which the bundle was made",
            "generate the bundles again",
        )
    training, validation = datalist.split(config.fold)
    if not training or not validation:
        raise TrainingError(
            f"{config.datalist}: fold {config.fold} has {len(training)} training and "
            f"{len(validation)} validation cases",
            "at least one of each",
            "convert again with fewer folds, or train another fold",
        )
    cases = open_cases(datalist, training, cache, in_memory=in_memory)
    sampler = PatchSampler(cases, datalist.table, config)
    learnable = [config.classes[c] for c in sampler.learnable]
    _tell(config, cases, learnable)
    return FoldData(
        sampler=sampler,
        validation=open_cases(datalist, validation, cache, in_memory=in_memory),
        states=datalist.table.states(),
        look_up=look_up(datalist.table),
        learnable=learnable,
    )


def _tell(config: TrainConfig, cases: Sequence[Case], learnable: Sequence[str]) -> None:
    """Say what goes on, but not as one would think."""
    name = f"{config.algo}_{config.fold}"
    if missing := [c for c in config.classes if c not in learnable]:
        logger.warning(
            "%s: nothing to learn of %s: not annotated and present in any training case",
            name, ", ".join(missing),
        )  # fmt: skip
    patch = config.patch_size_vox
    smaller = [
        case for case in cases if any(n < p for n, p in zip(case.image.shape, patch, strict=True))
    ]
    if smaller:
        logger.warning(
            "%s: %d of %d training cases are smaller than the patch of %s voxels on some axis; "
            "what lies beyond them is unknown",
            name, len(smaller), len(cases), " × ".join(map(str, patch)),
        )  # fmt: skip

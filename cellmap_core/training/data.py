"""What one training sees: the sampler of its training cases, and its validation cases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellmap_core.datalist import read_datalist
from cellmap_core.errors import TrainingError
from cellmap_core.training.config import TrainConfig
from cellmap_core.training.patches import PatchSampler, look_up
from cellmap_core.training.volumes import Case, open_cases


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
    datalist = read_datalist(config.datalist)
    if datalist.classes != config.classes:
        raise TrainingError(
            f"{config.datalist} has classes {', '.join(datalist.classes)}",
            f"{', '.join(config.classes)}, for which the bundle was made",
            "generate the bundles again",
        )
    training, validation = datalist.split(config.fold)
    sampler = PatchSampler(open_cases(datalist, training, cache), datalist.table, config)
    return FoldData(
        sampler=sampler,
        validation=open_cases(datalist, validation, cache),
        states=datalist.table.states(),
        look_up=look_up(datalist.table),
        learnable=[config.classes[c] for c in sampler.learnable],
    )

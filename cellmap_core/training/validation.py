"""Validation: masked Dice over whole cases, predicted block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from cellmap_core.inference.blocks import plan_blocks, predict_block
from cellmap_core.training.config import TrainConfig
from cellmap_core.training.metrics import DiceCounts, known_target
from cellmap_core.training.team import Team
from cellmap_core.training.volumes import Case

_THRESHOLD = 0.5


def validate(
    network: torch.nn.Module,
    cases: Sequence[Case],
    states: NDArray[np.uint8],
    config: TrainConfig,
    team: Team,
    after_block: Callable[[], None],
) -> DiceCounts:
    """Predict the cases and count what is known.

    Parameters
    ----------
    network : Module
        Put in eval mode here.
    cases : sequence of Case
        Labelled cases.
    states : ndarray of uint8
        The label table's states (ids, classes).
    config : TrainConfig
        Window, overlap and normalisation.
    team : Team
        The processes that share the blocks.
    after_block : callable
        Called after each block; may raise to leave.

    Returns
    -------
    DiceCounts
        Pooled over the cases.
    """
    counts = DiceCounts(config.classes)
    network.eval()
    blocks = [(c, b) for c in cases for b in plan_blocks(c.image.shape, [config])]
    for number in team.share(len(blocks)):
        case, block = blocks[number]
        predicted = predict_block(network, case.image, block, config) > _THRESHOLD
        labels = case.labels_at(block.core, len(states))
        counts.add(predicted, *known_target(labels, case.annotated, states))
        case.let_go()
        after_block()
    counts.counts[:] = team.add_up(torch.from_numpy(counts.counts).to(team.device)).cpu().numpy()
    return counts

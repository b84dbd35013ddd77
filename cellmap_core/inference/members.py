"""The models of an ensemble; their weights stay on disk until a block needs them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cellmap_core.bundles.names import is_ours
from cellmap_core.errors import CellmapError, EnsembleError
from cellmap_core.models import BundleRef, Failure
from cellmap_core.provenance import file_digest
from cellmap_core.training.algorithms import build_network
from cellmap_core.training.checkpoint import Model
from cellmap_core.training.config import TrainConfig
from cellmap_core.training.config_files import read_bundle_config
from cellmap_core.training.result import best_checkpoint
from cellmap_core.training.trained import load_trained

logger = logging.getLogger(__name__)

# One for each of our algorithms; every search of DiNTS finds an architecture of its own.
_KEPT_NETWORKS = 3


@dataclass(frozen=True)
class Member:
    """One trained bundle.

    Attributes
    ----------
    name : str
        Of the bundle.
    config : TrainConfig
        How its network is built and fed.
    model : Model
        Its best weights, mapped from disk.
    digest : str
        Of the checkpoint.
    learnt : ndarray of bool
        One for each class: whether the model could learn it.
    """

    name: str
    config: TrainConfig
    model: Model
    digest: str
    learnt: NDArray[np.bool_]


def open_members(
    bundles: Sequence[BundleRef], classes: Sequence[str]
) -> tuple[list[Member], list[Failure]]:
    """Open the best models; a bundle without a usable one is a failure by name.

    Raises
    ------
    EnsembleError
        No bundle has a usable model.
    """
    members, failures = [], []
    ours = [b for b in bundles if is_ours(b.folder)]
    if others := [b.name for b in bundles if b not in ours]:
        logger.warning(
            "%s are of other templates and not in the ensemble; MONAI's AlgoEnsembleBuilder takes "
            "them and ours", ", ".join(others),
        )  # fmt: skip
    for bundle in ours:
        try:
            members.append(_open(bundle, classes))
        except CellmapError as error:
            failures.append(Failure(item=bundle.name, reason=str(error)))
    if not members:
        reasons = "; ".join(f"{f.item}: {f.reason}" for f in failures) or "no bundle of ours"
        raise EnsembleError(f"no trained model ({reasons})", "at least one", "run the train stage")
    return members, failures


def _open(bundle: BundleRef, classes: Sequence[str]) -> Member:
    path = best_checkpoint(bundle.folder)
    config, model = load_trained(path, read_bundle_config(bundle.folder))
    if model.training_params:
        logger.info(
            "%s was trained with %s in place of what its hyper_parameters.yaml says",
            bundle.name, ", ".join(f"{k}={v}" for k, v in model.training_params.items()),
        )  # fmt: skip
    if tuple(model.classes) != tuple(classes):
        raise EnsembleError(
            f"{path} has classes {', '.join(model.classes)}", f"the datalist's {', '.join(classes)}"
        )
    learnt = np.array([name in model.trained_classes for name in classes])
    return Member(bundle.name, config, model, file_digest(path), learnt)


class Networks:
    """Networks to predict with: a few, whatever the number of members and architectures."""

    def __init__(self) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._built: dict[str, torch.nn.Module] = {}
        self._holds: dict[str, str] = {}

    def of(self, member: Member) -> torch.nn.Module:
        """The network with a member's weights, in eval mode; valid until the next call."""
        config = member.config
        kind = config.network_key
        if kind not in self._built:
            while len(self._built) >= _KEPT_NETWORKS:
                oldest = next(iter(self._built))
                del self._built[oldest]
                self._holds.pop(oldest, None)
            self._built[kind] = build_network(config).to(self._device).eval()
        if self._holds.get(kind) != member.digest:
            self._built[kind].load_state_dict(member.model.model)
            self._holds[kind] = member.digest
        return self._built[kind]

"""Training a bundle with other values than it was generated with, as MONAI's AutoRunner asks."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cellmap_core.datalist import Datalist
from cellmap_core.provenance import held
from cellmap_core.training.algorithms.dints import DintsConfig
from cellmap_core.training.checkpoint import configuration_of
from cellmap_core.training.config import TrainConfig
from cellmap_core.training.config_files import (
    MODEL_FOLDER,
    check_overrides,
    differing,
    overridable,
    overrides_for,
)
from cellmap_core.training.facts import Memory
from cellmap_core.training.result import is_finished
from cellmap_core.training.rules import SET_BY_USER, derive_from, facts_for
from cellmap_core.training.search import search_config

logger = logging.getLogger(__name__)

_GIB = 1 << 30


def with_params(
    written: TrainConfig, datastats: Path, cases: Datalist, params: Mapping[str, Any]
) -> TrainConfig:
    """The configuration of a bundle with training parameters.

    They have the effect that the same overrides have when a bundle is generated: values that
    follow from them by rule change too (the warm-up with ``num_epochs``), and what the user set
    at generation or in the file stays.

    Parameters
    ----------
    written : TrainConfig
        The bundle's ``hyper_parameters.yaml``.
    datastats : Path
        What the bundle was generated from.
    cases : Datalist
        Its cases.
    params : mapping
        Name → value. A name of another algorithm is passed over, since MONAI's runners give the
        same parameters to all algorithms.

    Raises
    ------
    OptionError
        No algorithm has a value of that name, or a value is not valid.
    StatisticsError
        The datastats cannot be read.
    """
    given = overrides_for(written.algo, check_overrides(params))
    if passed := sorted({name.rpartition(".")[2] for name in params} - set(given)):
        logger.info("%s has no %s; other algorithms have", written.algo, ", ".join(passed))
    if not given:
        return written
    facts = facts_for(datastats, cases, written.fold, _memory(written))
    fixed = {"algo", "fold", "datalist", "dataroot", "ckpt_path", "num_epochs", "classes"}
    identity = written.model_dump(include=fixed | {"background_channel"})
    values = written.model_dump(mode="json", include=set(overridable(written.algo)))
    set_before = {n: v for n, v in values.items() if _set_by_user(written, n)}
    derived = derive_from(facts, identity, set_before)
    edited = differing(written, derived)
    config = derive_from(facts, identity, {**set_before, **edited, **given})
    return config.model_copy(update={"training_params": differing(config, written)})


def _set_by_user(config: TrainConfig, name: str) -> bool:
    return name in config.rules and config.rules[name].reason == SET_BY_USER


def _memory(config: TrainConfig) -> Memory | None:
    """The memory that the bundle was generated for, where its rules say it."""
    inputs = config.rules["micro_batch"].inputs if "micro_batch" in config.rules else {}
    if inputs.get("memory") not in ("gpu", "host") or "memory_gib" not in inputs:
        return None
    return Memory(kind=inputs["memory"], size_bytes=round(inputs["memory_gib"] * _GIB))


def set_old_model_aside(bundle: Path, config: TrainConfig) -> Path | None:
    """Make room for a training anew, unless there is one of these values that can go on.

    A runner that asks for a training that is finished wants it anew: the data may be others.

    Parameters
    ----------
    bundle : Path
        The bundle's folder.
    config : TrainConfig
        Of the training that is to begin.

    Returns
    -------
    Path or None
        Where the old model is now; None where there was none, or an unfinished training of this
        configuration.

    Raises
    ------
    BusyError
        Another training writes there.
    """
    folder = bundle / MODEL_FOLDER
    own = {config.digest}
    if isinstance(config, DintsConfig):
        own.add(search_config(config).digest)
    found = {configuration_of(path) for path in folder.rglob("*.pt")} - {None}
    if found <= own and not is_finished(bundle):
        return None
    with held(folder):
        names = (bundle / f"{MODEL_FOLDER}_{number}" for number in itertools.count(1))
        aside = next(path for path in names if not path.exists())
        folder.rename(aside)
    logger.warning("%s is trained anew; its old model is kept in %s", bundle.name, aside)
    return aside

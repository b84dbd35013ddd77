"""What the rules of a training look at: the data, and the memory there is."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from cellmap_core.cluster.jobs import Resources
from cellmap_core.cluster.profiles import site_of
from cellmap_core.datastats.balance import class_weights
from cellmap_core.datastats.reports import read_summary
from cellmap_core.errors import StatisticsError
from cellmap_core.grid import Triple
from cellmap_core.machine import gpu_memory_bytes, gpus, memory_bytes
from cellmap_core.models import Frozen

logger = logging.getLogger(__name__)

_GIB = 1 << 30
_SET = "--gpu_memory_gb, or stages.train.gpu_memory_gb in the site profile"
# A container's limit or a driver's reserve moves by less than this from one look to the next.
_COARSE = _GIB


class Memory(Frozen):
    """What a training may fill.

    Attributes
    ----------
    kind : str
        ``gpu``: a GPU's own memory; ``host``: that of the machine, where there is no GPU.
    size_bytes : int
        In whole GiB.
    """

    kind: Literal["gpu", "host"]
    size_bytes: int


class Facts(Frozen):
    """What the rules look at, z, y, x.

    Attributes
    ----------
    shape_vox : tuple of float
        Median size of the cases.
    voxel_nm : tuple of float
        Median voxel size of the cases.
    intensity : dict
        Auto3DSeg's summary over whole images: min, max, mean, stdev, percentiles.
    training_cases, validation_cases : int
        Cases this fold trains and validates on.
    scale : dict or None
        Our report's scale of intensities; other reports have none.
    memory : Memory
        Where the network is trained.
    exclusive : bool
        Whether no two classes overlap anywhere.
    class_weights : dict
        Class → weight by median frequency, of our report; other reports have none.
    """

    shape_vox: Triple
    voxel_nm: Triple
    intensity: dict[str, float]
    training_cases: int
    validation_cases: int = 0
    scale: dict[str, float] | None = None
    memory: Memory = Memory(kind="gpu", size_bytes=24 * _GIB)
    exclusive: bool = False
    class_weights: dict[str, float] = {}


def memory_there(gpu_memory_gb: float | None = None) -> Memory:
    """The memory to train in.

    Parameters
    ----------
    gpu_memory_gb : float, optional
        Of the GPUs to train on, where they are not in this machine (default: what the site
        profile says of its trainings' jobs, else this machine's GPUs, else its host memory
        within cgroup and SLURM limits).
    """
    if gpu_memory_gb is not None:
        return Memory(kind="gpu", size_bytes=_coarse(gpu_memory_gb * _GIB))
    if (site := site_of()) is not None:
        return _of_jobs(site.of("train"))
    found = gpu_memory_bytes()
    if found is None:
        return _assumed(f"neither nvidia-smi nor torch tells the memory of GPU {','.join(gpus())}")
    if found:
        return Memory(kind="gpu", size_bytes=_coarse(found))
    if devices := gpus():
        logger.warning(
            "torch does not see GPU %s: patch and batch sizes are those for training on the CPU; "
            "where trainings have GPUs, set %s",
            ",".join(devices),
            _SET,
        )
    return Memory(kind="host", size_bytes=_coarse(memory_bytes()))


def _of_jobs(train: Resources) -> Memory:
    """What a training's job has; this process may run on a machine without any GPU."""
    if not train.gpus:
        return Memory(kind="host", size_bytes=_coarse(train.memory_gb * 1e9))
    if train.gpu_memory_gb is None:
        return _assumed("the site profile does not tell the memory of the GPUs of its trainings")
    return Memory(kind="gpu", size_bytes=_coarse(train.gpu_memory_gb * _GIB))


def _assumed(why: str) -> Memory:
    """The usual GPU's memory, with a warning that it is a guess."""
    usual: Memory = Facts.model_fields["memory"].default
    logger.warning("%s: %d GiB are assumed; set %s", why, usual.size_bytes // _GIB, _SET)
    return usual


def _coarse(size: float) -> int:
    return max(1, round(size / _COARSE)) * _COARSE


def read_facts(datastats: Path, training_cases: int, **more: Any) -> Facts:
    """Read what the rules need from a ``datastats.yaml``."""
    return facts_of(read_summary(datastats), training_cases, **more)


def facts_of(summary: Mapping[str, Any], training_cases: int, **more: Any) -> Facts:
    """What the rules need of a ``stats_summary`` (its axes are x, y, z).

    Parameters
    ----------
    summary : mapping
        Auto3DSeg's, of the training cases.
    training_cases : int
        Cases to train on.
    **more
        Fields of `Facts` that the summary does not tell.

    Raises
    ------
    StatisticsError
        The summary lacks what a rule needs.
    """
    try:
        stats = summary["image_stats"]
        intensity = {k: _number(v) for k, v in stats["intensity"].items() if k != "percentile"}
        shape, spacing = _zyx(stats["shape"]["median"]), _zyx(stats["spacing"]["median"])
        scale = summary.get("normalisation")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise StatisticsError(
            f"stats_summary lacks {error}",
            "Auto3DSeg's stats_summary with image_stats shape, spacing and intensity",
            "run the analysis again",
        ) from error
    if not all(0 < n < math.inf for n in (*shape, *spacing)):
        raise StatisticsError(
            f"stats_summary has shape {shape} and spacing {spacing}",
            "sizes above zero",
            "look at the images' headers, and run the analysis again",
        )
    needed = {"min", "max", "mean", "stdev", "percentile_00_5", "percentile_99_5"}
    if missing := sorted(needed - set(intensity)):
        raise StatisticsError(f"stats_summary lacks intensity {', '.join(missing)}", "all of OPS")
    return Facts(
        shape_vox=shape,
        voxel_nm=spacing,
        intensity=intensity,
        training_cases=training_cases,
        scale=scale,
        class_weights=class_weights(summary.get("class_stats", [])),
        **more,
    )


def _number(value: Any) -> float:
    """A number that Auto3DSeg writes bare or in a list, one entry a channel."""
    while isinstance(value, list):
        value = value[0]
    return float(value)


def _zyx(value: Any) -> Triple:
    """An x, y, z list, perhaps in a list of one, turned round."""
    while isinstance(value[0], list):
        value = value[0]
    x, y, z = (float(v) for v in value)
    return z, y, x

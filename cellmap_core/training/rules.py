"""From datastats and datalist to the values of a training, each with its reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cellmap_core.datalist import Datalist
from cellmap_core.datastats.reports import read_summary
from cellmap_core.errors import StatisticsError
from cellmap_core.grid import Shape, Triple
from cellmap_core.models import Frozen
from cellmap_core.training.config import Rule, TrainConfig, check_overrides, make_config

# 96 voxels at 8 nm are 0.77 µm: a whole mitochondrion's width, and two such patches train
# in some 10 GB of GPU memory with 32 filters.
_PATCH_EDGE_VOX = 96
_PATCH_MIN_VOX = 32
_PATCH_MULTIPLE = 16
_MAX_LEVELS = 5
# Filters of the first level of Auto3DSeg's SegResNet.
_WIDTH = 32
_BOTTLENECK_VOX = 4
_BLOCKS_DOWN = (1, 2, 2, 4, 4)


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
    training_cases : int
        Cases this fold trains on.
    scale : dict or None
        Our report's scale of intensities; other reports have none.
    """

    shape_vox: Triple
    voxel_nm: Triple
    intensity: dict[str, float]
    training_cases: int
    scale: dict[str, float] | None = None


_Made = tuple[Any, str, dict[str, Any]]
_Maker = Callable[[Facts, Mapping[str, Any]], _Made]


def derive(
    datastats: Path,
    datalist: Datalist,
    identity: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> TrainConfig:
    """Run all rules for one bundle.

    Parameters
    ----------
    datastats : Path
        Auto3DSeg's ``datastats.yaml`` of the training cases.
    datalist : Datalist
        The cases and folds.
    identity : mapping
        algo, fold, datalist, ckpt_path and num_epochs.
    overrides : mapping
        Values that the user set; they take the place of a rule and feed the later ones.

    Raises
    ------
    StatisticsError
        The datastats cannot be read or lack what a rule needs.
    OptionError
        An override is unknown or its value cannot be.
    """
    given = check_overrides(overrides)
    values: dict[str, Any] = {**identity, "classes": datalist.classes, **given}
    rules = {name: Rule(reason="set by the user") for name in given}
    facts = read_facts(datastats, len(datalist.split(int(identity["fold"]))[0]))
    for name, make in _RULES.items():
        if name not in given:
            values[name], reason, inputs = make(facts, values)
            rules[name] = Rule(reason=reason, inputs=inputs)
    return make_config({**values, "rules": rules})


def propose(summary: Mapping[str, Any], training_cases: int) -> dict[str, tuple[Any, str]]:
    """What the rules say of a ``stats_summary`` with nothing overridden: value and reason.

    Raises
    ------
    StatisticsError
        The summary lacks what a rule needs.
    """
    facts = facts_of(summary, training_cases)
    values: dict[str, Any] = {}
    said = {}
    for name, make in _RULES.items():
        values[name], reason, _ = make(facts, values)
        said[name] = (values[name], reason)
    return said


def read_facts(datastats: Path, training_cases: int) -> Facts:
    """Read what the rules need from a ``datastats.yaml``."""
    return facts_of(read_summary(datastats), training_cases)


def facts_of(summary: Mapping[str, Any], training_cases: int) -> Facts:
    """What the rules need of a ``stats_summary`` (its axes are x, y, z)."""
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
    needed = {"min", "max", "mean", "stdev", "percentile_00_5", "percentile_99_5"}
    if missing := sorted(needed - set(intensity)):
        raise StatisticsError(f"stats_summary lacks intensity {', '.join(missing)}", "all of OPS")
    return Facts(
        shape_vox=shape,
        voxel_nm=spacing,
        intensity=intensity,
        training_cases=training_cases,
        scale=scale,
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


def _voxel(facts: Facts, _: Mapping[str, Any]) -> _Made:
    return (
        facts.voxel_nm,
        "the median voxel size of the cases; rotations stay between axes of equal size",
        {"spacing_median_nm": facts.voxel_nm},
    )


def _patch(facts: Facts, values: Mapping[str, Any]) -> _Made:
    levels = values.get("blocks_down")
    multiple = max(_PATCH_MULTIPLE, 2 ** (len(levels) - 1)) if levels else _PATCH_MULTIPLE
    finest = min(facts.voxel_nm)
    sizes = []
    for size, voxel in zip(facts.shape_vox, facts.voxel_nm, strict=True):
        physical = _PATCH_EDGE_VOX * finest / voxel
        wanted = min(max(_PATCH_MIN_VOX, physical), max(_PATCH_MIN_VOX, size))
        sizes.append(math.ceil(wanted / multiple) * multiple)
    patch: Shape = (sizes[0], sizes[1], sizes[2])
    return (
        patch,
        f"{_PATCH_EDGE_VOX} voxels of the finest axis and the same length in nm on the others, "
        f"not beyond the median case, in multiples of {multiple}",
        {"shape_median_vox": facts.shape_vox, "spacing_median_nm": facts.voxel_nm},
    )


def _blocks(_: Facts, values: Mapping[str, Any]) -> _Made:
    patch = values["patch_size_vox"]
    levels = 1
    while levels < _MAX_LEVELS and all(
        n % 2**levels == 0 and n // 2**levels >= _BOTTLENECK_VOX for n in patch
    ):
        levels += 1
    return (
        _BLOCKS_DOWN[:levels],
        f"as many levels (at most {_MAX_LEVELS}) as leave {_BOTTLENECK_VOX} voxels at the lowest",
        {"patch_size_vox": list(patch)},
    )


def _dsdepth(_: Facts, values: Mapping[str, Any]) -> _Made:
    levels = len(values["blocks_down"])
    return (
        max(1, min(4, levels - 1)),
        "an output at each decoder level, at most 4",
        {"levels": levels},
    )


def _filters(_: Facts, __: Mapping[str, Any]) -> _Made:
    return _WIDTH, "the width of Auto3DSeg's own SegResNet", {}


def _batch(_: Facts, values: Mapping[str, Any]) -> _Made:
    voxels = math.prod(values["patch_size_vox"])
    return (
        max(1, min(8, 2 * _PATCH_EDGE_VOX**3 // voxels)),
        f"as many voxels as two patches of {_PATCH_EDGE_VOX}³, at most 8 patches",
        {"patch_voxels": voxels},
    )


def _steps(facts: Facts, values: Mapping[str, Any]) -> _Made:
    seen = values["batch_size"] * math.prod(values["patch_size_vox"])
    voxels = facts.training_cases * math.prod(facts.shape_vox)
    return (
        max(25, min(250, math.ceil(voxels / seen))),
        "an epoch sees about as many voxels as the training cases have, in 25 to 250 steps",
        {"training_cases": facts.training_cases, "shape_median_vox": facts.shape_vox},
    )


def _rate(_: Facts, values: Mapping[str, Any]) -> _Made:
    width = values["init_filters"]
    return (
        2e-4 * _WIDTH / width,
        f"Auto3DSeg's 2e-4 for {_WIDTH} filters with AdamW, inversely to the width: Adam's steps "
        "add up over a layer's inputs; falls to 0 along a cosine",
        {"init_filters": width},
    )


def _normalisation(facts: Facts, _: Mapping[str, Any]) -> _Made:
    if facts.scale is not None:
        return (
            facts.scale,
            "clip to where 95 % of the crops have their 0.5 and 99.5 % percentiles, centre on the "
            "crops' median, divide by their spread; one scale for all keeps what intensities mean",
            facts.scale,
        )
    found = facts.intensity
    low, high = found["percentile_00_5"], found["percentile_99_5"]
    if high <= low:
        low, high = found["min"], found["max"]
    stdev = found["stdev"] if found["stdev"] > 0 else 1.0
    return (
        {"clip_low": low, "clip_high": high, "mean": found["mean"], "stdev": stdev},
        "clip to the 0.5 and 99.5 % percentiles, then mean 0 and stdev 1 over all cases; "
        "one scale for all keeps what EM intensities mean",
        {k: found[k] for k in ("percentile_00_5", "percentile_99_5", "mean", "stdev")},
    )


# In this order: a later rule looks at the values of earlier ones.
_RULES: dict[str, _Maker] = {
    "voxel_nm": _voxel,
    "patch_size_vox": _patch,
    "blocks_down": _blocks,
    "dsdepth": _dsdepth,
    "init_filters": _filters,
    "batch_size": _batch,
    "num_steps_per_epoch": _steps,
    "learning_rate": _rate,
    "normalisation": _normalisation,
}

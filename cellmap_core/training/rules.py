"""From datastats, datalist and memory to the values of a training, each with its reason."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cellmap_core.datalist import Datalist
from cellmap_core.grid import Shape
from cellmap_core.training.algorithms import algorithm
from cellmap_core.training.algorithms.algorithm import Algorithm, Made, Maker
from cellmap_core.training.config import Rule, TrainConfig
from cellmap_core.training.config_files import check_overrides, make_config, overrides_for
from cellmap_core.training.facts import Facts, Memory, facts_of, memory_there, read_facts

logger = logging.getLogger(__name__)

#: The reason of a value that no rule made.
SET_BY_USER = "set by the user"
# 96 voxels at 8 nm are 0.77 µm: a whole mitochondrion's width.
_PATCH_EDGE_VOX = 96
_MAX_BATCH = 8
# What torch's allocator, its kernels' workspaces and the display leave of a GPU; and what a
# machine's other processes, the page cache above all, should be left.
_USABLE = {"gpu": 0.8, "host": 0.6}
# Weight, gradient, two moments of Adam and the moving average, float32.
_WEIGHT_BYTES = 20
# Logits, their gradient, target and mask of a class, with a seventh more for the coarser levels.
_CLASS_BYTES = 12
_GIB = 1 << 30
_EMA_DECAY = 0.999
_MAX_WARMUP = 500
# Validation may take this part of the time that the steps between two of them take.
_VALIDATION_PART = 1 / 4


def derive(
    datastats: Path,
    datalist: Datalist,
    identity: Mapping[str, Any],
    overrides: Mapping[str, Any],
    memory: Memory | None = None,
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
    memory : Memory, optional
        To train in (default: this machine's).

    Raises
    ------
    StatisticsError
        The datastats cannot be read or lack what a rule needs.
    OptionError
        An override is unknown or its value cannot be.
    """
    algo = algorithm(str(identity["algo"]))
    check_overrides(overrides)
    facts = facts_for(datastats, datalist, int(identity["fold"]), memory)
    config = derive_from(facts, {**identity, "classes": datalist.classes}, overrides)
    _warn_of_memory(algo, facts.memory, config)
    return config


def facts_for(
    datastats: Path, datalist: Datalist, fold: int, memory: Memory | None = None
) -> Facts:
    """What the rules of a fold look at; see `derive`."""
    training, validation = datalist.split(fold)
    return read_facts(
        datastats,
        len(training),
        validation_cases=len(validation),
        memory=memory or memory_there(),
        exclusive=datalist.table.exclusive,
    )


def derive_from(
    facts: Facts, identity: Mapping[str, Any], overrides: Mapping[str, Any]
) -> TrainConfig:
    """Run all rules for one bundle, from facts instead of a report on disk.

    Parameters
    ----------
    facts : Facts
        The data and the memory.
    identity : mapping
        algo, fold, datalist, ckpt_path, num_epochs and classes.
    overrides : mapping
        See `derive`.
    """
    algo = algorithm(str(identity["algo"]))
    given = overrides_for(algo.name, check_overrides(overrides))
    values: dict[str, Any] = {**identity, **given}
    rules = {name: Rule(reason=SET_BY_USER) for name in given}
    for name, make in _rules(algo):
        if name not in given:
            values[name], reason, inputs = make(facts, values)
            rules[name] = Rule(reason=reason, inputs=inputs)
    return make_config({**values, "rules": rules})


def _warn_of_memory(algo: Algorithm, memory: Memory, config: TrainConfig) -> None:
    needed = training_bytes(algo, memory, config.model_dump())
    if needed > usable_bytes(memory):
        logger.warning(
            "%s_%d: one patch of %s voxels takes some %.0f GiB by estimate, of %.0f GiB of %s "
            "memory; set a smaller patch_size_vox or a narrower network in the overrides",
            config.algo, config.fold, " × ".join(map(str, config.patch_size_vox)),
            needed / _GIB, memory.size_bytes / _GIB, memory.kind,
        )  # fmt: skip


def propose(summary: Mapping[str, Any], training_cases: int) -> dict[str, tuple[Any, str]]:
    """What the rules say of a ``stats_summary`` with nothing overridden: value and reason.

    They are those of ``segresnet`` with 100 epochs on this machine.

    Raises
    ------
    StatisticsError
        The summary lacks what a rule needs.
    """
    facts = facts_of(summary, training_cases, memory=memory_there())
    values: dict[str, Any] = {"num_epochs": 100, "classes": ("any",)}
    said = {}
    for name, make in _rules(algorithm("segresnet")):
        values[name], reason, _ = make(facts, values)
        said[name] = (values[name], reason)
    return said


def _rules(algo: Algorithm) -> Iterator[tuple[str, Maker]]:
    """All rules of an algorithm in order: a later one looks at the values of earlier ones."""
    yield "voxel_nm", _voxel
    yield "activation", _activation
    yield from algo.width_rules.items()
    yield "patch_size_vox", lambda facts, values: _patch(algo, facts, values)
    yield from algo.depth_rules.items()
    yield "batch_size", _batch
    yield "micro_batch", lambda facts, values: _micro_batch(algo, facts, values)
    yield "sw_batch_size", _windows
    yield "num_steps_per_epoch", _steps
    yield "validate_every", _validate_every
    yield "learning_rate", algo.learning_rate
    yield "warmup_steps", _warmup
    yield "ema_decay", _ema
    yield "early_stop_epochs", _early_stop
    yield "class_weighting", _class_weighting
    yield "class_weights", _class_weights
    yield "normalisation", _normalisation
    yield "cache", _cache


def training_bytes(
    algo: Algorithm, memory: Memory, values: Mapping[str, Any], patches: int = 1
) -> int:
    """Memory that a micro-batch takes in a training, and what comes with it.

    Parameters
    ----------
    algo : Algorithm
        Tells what its network keeps.
    memory : Memory
        Of what kind it is: a GPU keeps activations in 16 bits.
    values : mapping
        At least those of the network, ``patch_size_vox`` and ``classes``.
    patches : int
        Of the micro-batch.
    """
    fixed, patch = _need(algo, memory, values)
    return round(fixed + patches * patch)


def _need(algo: Algorithm, memory: Memory, values: Mapping[str, Any]) -> tuple[float, float]:
    """Bytes that any batch takes, and those of each patch."""
    need = algo.need(values)
    half = memory.kind == "gpu" and values.get("precision", "auto") != "fp32"
    voxel = need.voxel_bytes * (0.5 if half else 1.0) + _CLASS_BYTES * len(values["classes"])
    return need.parameters * _WEIGHT_BYTES, voxel * math.prod(values["patch_size_vox"])


def usable_bytes(memory: Memory) -> float:
    """What of a memory a training may count on, by the rules."""
    return _USABLE[memory.kind] * memory.size_bytes


def _voxel(facts: Facts, _: Mapping[str, Any]) -> Made:
    return (
        facts.voxel_nm,
        "the median voxel size of the cases; rotations stay between axes of equal size",
        {"spacing_median_nm": facts.voxel_nm},
    )


def _activation(facts: Facts, _: Mapping[str, Any]) -> Made:
    return (
        "sigmoid",
        "each class for itself: classes of a hierarchy overlap, and a class that is unknown "
        "somewhere does not touch the others"
        + ("; softmax would do too, no two classes overlap" if facts.exclusive else ""),
        {"no_overlap": facts.exclusive},
    )


def _patch(algo: Algorithm, facts: Facts, values: Mapping[str, Any]) -> Made:
    """The wanted size, cut down axis by axis until one patch fits into the memory."""
    levels = values.get("blocks_down")
    multiple = max(algo.multiple, 2 ** (len(levels) - 1)) if levels else algo.multiple
    least = math.ceil(algo.least_edge / multiple) * multiple
    finest = min(facts.voxel_nm)
    sizes = []
    for size, voxel in zip(facts.shape_vox, facts.voxel_nm, strict=True):
        physical = _PATCH_EDGE_VOX * finest / voxel
        wanted = min(max(least, physical), max(least, size))
        sizes.append(math.ceil(wanted / multiple) * multiple)

    def too_large() -> bool:
        one = training_bytes(algo, facts.memory, {**values, "patch_size_vox": sizes})
        return one > usable_bytes(facts.memory)

    cut = False
    while too_large() and max(sizes) > least:
        longest = max(range(3), key=lambda axis: sizes[axis] * facts.voxel_nm[axis])
        if sizes[longest] <= least:
            longest = sizes.index(max(sizes))
        sizes[longest] -= multiple
        cut = True
    said = "; cut down until a patch fits into the memory" if cut else ""
    if too_large():
        said = "; cut down, but even this does not fit into the memory by estimate"
    patch: Shape = (sizes[0], sizes[1], sizes[2])
    return (
        patch,
        f"{_PATCH_EDGE_VOX} voxels of the finest axis and the same length in nm on the others, "
        f"not beyond the median case, in multiples of {multiple}, at least {least}" + said,
        {
            "shape_median_vox": facts.shape_vox,
            "spacing_median_nm": facts.voxel_nm,
            "memory_gib": facts.memory.size_bytes / _GIB,
        },
    )


def _batch(_: Facts, values: Mapping[str, Any]) -> Made:
    voxels = math.prod(values["patch_size_vox"])
    return (
        max(1, min(_MAX_BATCH, 2 * _PATCH_EDGE_VOX**3 // voxels)),
        f"as many voxels as two patches of {_PATCH_EDGE_VOX}³, at most {_MAX_BATCH} patches",
        {"patch_voxels": voxels},
    )


def _micro_batch(algo: Algorithm, facts: Facts, values: Mapping[str, Any]) -> Made:
    fixed, patch = _need(algo, facts.memory, values)
    room = max(1, int((usable_bytes(facts.memory) - fixed) // patch))
    batch = values["batch_size"]
    return (
        max(n for n in range(1, batch + 1) if batch % n == 0 and n <= room),
        "as many patches of a batch at once as the memory holds by estimate; the training halves "
        "it when it does not fit after all",
        {
            "memory": facts.memory.kind,
            "memory_gib": facts.memory.size_bytes / _GIB,
            "fixed_gib": round(fixed / _GIB, 2),
            "patch_gib": round(patch / _GIB, 2),
        },
    )


def _windows(_: Facts, values: Mapping[str, Any]) -> Made:
    voxels = math.prod(values["patch_size_vox"])
    return (
        max(1, min(_MAX_BATCH, _PATCH_EDGE_VOX**3 // voxels)),
        f"as many voxels as one window of {_PATCH_EDGE_VOX}³, at most {_MAX_BATCH} windows: small "
        "ones alone do not fill a processor",
        {"patch_voxels": voxels},
    )


def _steps(facts: Facts, values: Mapping[str, Any]) -> Made:
    seen = values["batch_size"] * math.prod(values["patch_size_vox"])
    voxels = facts.training_cases * math.prod(facts.shape_vox)
    return (
        max(25, min(250, math.ceil(voxels / seen))),
        "an epoch sees about as many voxels as the training cases have, in 25 to 250 steps",
        {"training_cases": facts.training_cases, "shape_median_vox": facts.shape_vox},
    )


def _validate_every(facts: Facts, values: Mapping[str, Any]) -> Made:
    """A step costs three forward passes of its voxels; windows overlap by a quarter an axis."""
    seen = (
        values["num_steps_per_epoch"] * values["batch_size"] * math.prod(values["patch_size_vox"])
    )
    overlap = values.get("overlap", TrainConfig.model_fields["overlap"].default)
    windows = facts.validation_cases * math.prod(facts.shape_vox) / (1 - overlap) ** 3
    every = max(1, math.ceil(windows / (3 * seen * _VALIDATION_PART)))
    return (
        min(every, max(1, values["num_epochs"] // 4)),
        "validation takes about a quarter of the time at most, but comes four times at least",
        {"validation_cases": facts.validation_cases, "shape_median_vox": facts.shape_vox},
    )


def _warmup(_: Facts, values: Mapping[str, Any]) -> Made:
    steps = values["num_epochs"] * values["num_steps_per_epoch"]
    return (
        min(_MAX_WARMUP, steps // 20),
        f"a twentieth of all steps, at most {_MAX_WARMUP}: Adam's moments are wrong at first",
        {"steps": steps},
    )


def _ema(_: Facts, __: Mapping[str, Any]) -> Made:
    return (
        _EMA_DECAY,
        "an average over the last thousand steps is steadier than the last step; shorter at the "
        "beginning of a training",
        {},
    )


def _early_stop(_: Facts, values: Mapping[str, Any]) -> Made:
    epochs = values["num_epochs"]
    every = values["validate_every"]
    return (
        max(5 * every, epochs // 2),
        "half of the epochs, and five validations, without a better mean Dice; by then the "
        "learning rate has fallen so far that none will come",
        {"num_epochs": epochs, "validate_every": every},
    )


def _class_weighting(_: Facts, __: Mapping[str, Any]) -> Made:
    return (
        "equal",
        "the mean Dice counts every class the same; that rare ones are seen is the draw's part",
        {},
    )


def _class_weights(facts: Facts, values: Mapping[str, Any]) -> Made:
    classes = values["classes"]
    if values["class_weighting"] == "equal":
        return (1.0,) * len(classes), "class_weighting is equal", {}
    return (
        tuple(facts.class_weights.get(name, 1.0) for name in classes),
        "median frequency, between 0.1 and 10; 1 where the statistics have no voxel of the class",
        {},
    )


def _normalisation(facts: Facts, _: Mapping[str, Any]) -> Made:
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


def _cache(_: Facts, __: Mapping[str, Any]) -> Made:
    return (
        "mapped",
        "the system keeps what was read as long as memory is free, and gives it up when it is "
        "not; a copy of our own would only cost memory",
        {},
    )

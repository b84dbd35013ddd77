"""What the statistics mean for training: findings, each with its consequence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from cellmap_core.models import Failure, Frozen

# Below a thousandth of the known voxels a uniform sampler hardly ever meets a class.
_RARE_FRACTION = 1e-3
# Of one or two crops with a class, most folds validate, or train, without it.
_FEW_CROPS = 3
# Networks halve the patch up to five times.
_PATCH_STEP = 32


class Finding(Frozen):
    """One thing seen in the data, and what follows from it for training."""

    topic: str
    finding: str
    consequence: str


def findings(summary: dict[str, Any], cases: Sequence[dict[str, Any]]) -> tuple[Finding, ...]:
    """Read the statistics: sizes, spacing, intensity, class balance, classes without voxels.

    Parameters
    ----------
    summary : dict
        What ``summarize`` returned.
    cases : sequence of dict
        The case statistics it was made of.
    """
    return (
        _sizes(cases),
        _spacing(cases),
        _intensity(summary, cases),
        *_balance(summary["class_stats"]),
        *_missing(summary["class_stats"]),
    )


def findings_markdown(
    found: Sequence[Finding], failures: Sequence[Failure], plots: Iterable[tuple[str, str]]
) -> str:
    """The page ``analysis.md``: findings, cases left out, and the plots by (title, file)."""
    lines = ["# What the data say", ""]
    for f in found:
        lines += [f"**{f.topic}.** {f.finding}", "", f"→ {f.consequence}", ""]
    if failures:
        lines += [f"## {len(failures)} cases without statistics", ""]
        lines += [f"- `{f.item}`: {f.reason}" for f in failures] + [""]
    for title, file in plots:
        lines += [f"## {title}", "", f"![{title}]({file})", ""]
    return "\n".join(lines)


def name_of(case: dict[str, Any]) -> str:
    """A case's file name without suffixes, for messages and plots."""
    return str(case["image_filepath"]).rsplit("/", 1)[-1].removesuffix(".gz").removesuffix(".nii")


def _sizes(cases: Sequence[dict[str, Any]]) -> Finding:
    shapes = np.array([c["image_stats"]["shape"][0] for c in cases])
    low, middle, high = (f(shapes, axis=0) for f in (np.min, np.median, np.max))
    patch = np.maximum(middle // _PATCH_STEP, 1).astype(int) * _PATCH_STEP
    smaller = int((shapes < patch).any(axis=1).sum())
    return Finding(
        topic="Crop sizes",
        finding=f"{_times(low)} to {_times(high)} voxels (x × y × z), median {_times(middle)}.",
        consequence=f"A patch of up to {_times(patch)} fits the median crop; "
        f"{smaller} of {len(cases)} crops are smaller on some axis and are padded to it.",
    )


def _spacing(cases: Sequence[dict[str, Any]]) -> Finding:
    spacing = np.array([c["image_stats"]["spacing"] for c in cases])
    low, high = spacing.min(axis=0), spacing.max(axis=0)
    if not np.allclose(low, high, rtol=1e-3):
        return Finding(
            topic="Voxel spacing",
            finding=f"Not the same in all crops: {_times(low)} to {_times(high)} nm (x × y × z).",
            consequence="One model sees structures at several sizes: convert to one "
            "--target_spacing, or accept that it must learn them all.",
        )
    anisotropy = float((spacing.max(axis=1) / spacing.min(axis=1)).max())
    return Finding(
        topic="Voxel spacing",
        finding=f"{_times(high)} nm (x × y × z) in all {len(cases)} crops.",
        consequence="No resampling is needed in training."
        if anisotropy < 1.5
        else f"Voxels are {anisotropy:.1f} times longer on one axis: make patches shorter there.",
    )


def _intensity(summary: dict[str, Any], cases: Sequence[dict[str, Any]]) -> Finding:
    every = [c["image_stats"]["intensity"][0] for c in cases]
    inside = summary["image_foreground_stats"]["intensity"]
    means = np.array([o["mean"] for o in every])
    within = float(np.mean([o["stdev"] for o in every]))
    flat = [name_of(c) for c, o in zip(cases, every, strict=True) if o["max"] == o["min"]]
    text = f"{min(o['min'] for o in every):g} to {max(o['max'] for o in every):g}"
    if inside:
        text += (
            f"; in labelled voxels {inside['percentile_00_5']:.4g} to "
            f"{inside['percentile_99_5']:.4g} (0.5 to 99.5 %)"
        )
    text += f". Crop means spread by ±{means.std():.3g}, voxels within a crop by ±{within:.3g}."
    if flat:
        text += f" Constant images: {', '.join(flat)}."
    # Where crops differ among themselves as much as voxels do inside one, a fixed range
    # would make the same structure look different from crop to crop.
    apart = means.std() > 0.5 * within
    advice = (
        "Crops differ in brightness: normalise each crop by its own mean and deviation."
        if apart
        else "Crops are alike in brightness: one fixed range serves all of them."
    )
    return Finding(topic="Intensity", finding=text, consequence=advice)


def known_fraction(row: dict[str, Any]) -> float | None:
    """Fraction of a class in all its known voxels of all crops; None where none is known."""
    known = row["voxels"]["present"] + row["voxels"]["absent"]
    return float(row["voxels"]["present"] / known) if known else None


def _balance(rows: Sequence[dict[str, Any]]) -> list[Finding]:
    fractions = {r["name"]: f for r in rows if (f := known_fraction(r))}
    if not fractions:
        return []
    most, least = max(fractions, key=fractions.__getitem__), min(fractions, key=fractions.get)  # type: ignore[arg-type]
    found = [
        Finding(
            topic="Class balance",
            finding=f"{most} fills {fractions[most]:.3%} of its known voxels, {least} "
            f"{fractions[least]:.3%}: a ratio of {fractions[most] / fractions[least]:.3g}.",
            consequence="Sample patches by class and weight the loss by class."
            if fractions[most] > 10 * fractions[least]
            else "No special sampling is needed.",
        )
    ]
    rare = [
        f"{r['name']} ({fractions[r['name']]:.2g} of voxels, {r['present_in']} crops)"
        for r in rows
        if r["name"] in fractions
        and (fractions[r["name"]] < _RARE_FRACTION or r["present_in"] < _FEW_CROPS)
    ]
    if rare:
        found.append(
            Finding(
                topic="Rare classes",
                finding=f"{len(rare)} of {len(rows)} classes: {', '.join(rare)}.",
                consequence="With fewer crops than folds a class is not validated in every fold; "
                "its Dice rests on few voxels. Annotate more of it, or leave it out.",
            )
        )
    return found


def _missing(rows: Sequence[dict[str, Any]]) -> list[Finding]:
    empty = [r["name"] for r in rows if r["annotated_in"] and not r["present_in"]]
    never = [r["name"] for r in rows if not r["annotated_in"]]
    unknown = [
        f"{r['name']} ({r['voxels']['unknown'] / sum(r['voxels'].values()):.0%})"
        for r in rows
        if r["voxels"]["unknown"]
    ]
    texts = (
        (empty, "Classes nowhere present", "A model learns only their absence; leave them out."),
        (never, "Classes nowhere annotated", "No gradient and no score: leave them out."),
        (unknown, "Unknown voxels", "They give no gradient, no score and no statistic."),
    )
    return [
        Finding(topic=topic, finding=f"{', '.join(names)}.", consequence=consequence)
        for names, topic, consequence in texts
        if names
    ]


def _times(numbers: Iterable[float]) -> str:
    return " × ".join(f"{n:.4g}" if n < 1000 else f"{n:.0f}" for n in numbers)

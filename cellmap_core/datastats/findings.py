"""What the statistics mean for training: findings, each with its consequence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from cellmap_core.datastats.balance import class_weights, fractions, known_fraction
from cellmap_core.models import Frozen
from cellmap_core.training.rules import propose

# Below a thousandth of the known voxels a uniform sampler hardly ever meets a class.
_RARE_FRACTION = 1e-3
# Of one or two crops with a class, most folds validate, or train, without it.
_FEW_CROPS = 3
# A class this much rarer than another is drowned by it.
_UNBALANCED = 10.0
_ANISOTROPIC = 1.5


class Finding(Frozen):
    """One thing seen in the data, and what follows from it for training."""

    topic: str
    finding: str
    consequence: str


def findings(summary: dict[str, Any], cases: Sequence[dict[str, Any]]) -> tuple[Finding, ...]:
    """Read the statistics: sizes, spacing, intensity, class balance, classes without voxels.

    What is recommended is what the bundles' own rules make of the same statistics.

    Parameters
    ----------
    summary : dict
        What ``summarize`` returned.
    cases : sequence of dict
        The case statistics it was made of.
    """
    proposed = {name: value for name, (value, _) in propose(summary, len(cases)).items()}
    rows = summary["class_stats"]
    return (
        _sizes(cases, proposed),
        _spacing(cases),
        _intensity(summary, cases, proposed),
        *_balance(rows),
        *_rare(rows),
        *_missing(rows),
    )


def _sizes(cases: Sequence[dict[str, Any]], proposed: dict[str, Any]) -> Finding:
    shapes = np.array([c["image_stats"]["shape"][0][::-1] for c in cases])
    low, middle, high = (f(shapes, axis=0) for f in (np.min, np.median, np.max))
    patch = proposed["patch_size_vox"]
    smaller = int((shapes < np.array(patch)).any(axis=1).sum())
    padded = (
        f"{smaller} of {len(cases)} crops are smaller on some axis and are padded to it"
        if smaller
        else "every crop holds a whole one"
    )
    return Finding(
        topic="Crop sizes",
        finding=f"{_times(low)} to {_times(high)} voxels (z × y × x), median {_times(middle)}.",
        consequence=f"Patch size {_times(patch)}, batch size {proposed['batch_size']}; {padded}.",
    )


def _spacing(cases: Sequence[dict[str, Any]]) -> Finding:
    spacing = np.array([c["image_stats"]["spacing"][::-1] for c in cases])
    low, high = spacing.min(axis=0), spacing.max(axis=0)
    if not np.allclose(low, high, rtol=1e-3):
        return Finding(
            topic="Voxel spacing",
            finding=f"Not the same in all crops: {_times(low)} to {_times(high)} nm (z × y × x).",
            consequence="One model sees structures at several sizes: convert to one "
            "--target_spacing, or accept that it must learn them all.",
        )
    anisotropy = float((spacing.max(axis=1) / spacing.min(axis=1)).max())
    return Finding(
        topic="Voxel spacing",
        finding=f"{_times(high)} nm (z × y × x) in all {len(cases)} crops.",
        consequence="No resampling is needed in training."
        if anisotropy < _ANISOTROPIC
        else f"Voxels are {anisotropy:.1f} times longer on one axis: make patches shorter there.",
    )


def _intensity(
    summary: dict[str, Any], cases: Sequence[dict[str, Any]], proposed: dict[str, Any]
) -> Finding:
    every = [c["image_stats"]["intensity"][0] for c in cases]
    inside = summary["image_foreground_stats"]["intensity"]
    means = np.array([o["mean"] for o in every])
    within = float(np.mean([o["stdev"] for o in every]))
    text = f"{min(o['min'] for o in every):g} to {max(o['max'] for o in every):g}"
    if inside:
        text += (
            f"; labelled voxels {inside['percentile_00_5']:.4g} to "
            f"{inside['percentile_99_5']:.4g} (0.5 and 99.5 %, mean of the crops)"
        )
    text += f". Crop means spread by ±{means.std():.3g}, voxels within a crop by ±{within:.3g}."
    scale = proposed["normalisation"]
    advice = (
        f"Clip to {scale['clip_low']:.4g} … {scale['clip_high']:.4g}, subtract {scale['mean']:.4g} "
        f"and divide by {scale['stdev']:.4g}, in all crops alike. "
    )
    # Where crops differ among themselves as much as voxels do inside one, a fixed range
    # makes the same structure look different from crop to crop.
    advice += (
        "Crops differ in brightness: keep the intensity augmentation on."
        if means.std() > 0.5 * within
        else "Crops are alike in brightness."
    )
    return Finding(topic="Intensity", finding=text, consequence=advice)


def _balance(rows: Sequence[dict[str, Any]]) -> list[Finding]:
    found = fractions(rows)
    if not found:
        return []
    ordered = sorted(found.items(), key=lambda item: -item[1])
    (most, large), (least, small) = ordered[0], ordered[-1]
    weights = class_weights(rows)
    heavy = sorted(weights, key=lambda name: -weights[name])[:5]
    listed = ", ".join(f"{name} {weights[name]:.2g}" for name in heavy)
    return [
        Finding(
            topic="Class balance",
            finding=f"{most} fills {large:.3%} of its known voxels, {least} {small:.3%}: "
            f"a ratio of {large / small:.3g}.",
            consequence="Patches are sampled by class. A loss that weights classes takes the "
            f"weights of the table below (highest: {listed})."
            if large > _UNBALANCED * small
            else "No special sampling is needed.",
        )
    ]


def _rare(rows: Sequence[dict[str, Any]]) -> list[Finding]:
    """Classes with too few voxels or in too few crops."""
    present = [r for r in rows if r["present_in"]]
    thin = [r for r in present if (known_fraction(r) or 0) < _RARE_FRACTION]
    lonely = [r for r in present if r["present_in"] < _FEW_CROPS]
    texts = (
        (thin, "Too rare to trust", "Their Dice rests on few voxels: annotate more, or leave out."),
        (lonely, "In too few crops", "With fewer crops than folds a class is not trained on, or "
         "not validated, in every fold: annotate it in more crops."),
    )  # fmt: skip
    return [
        Finding(
            topic=topic,
            finding=f"{len(some)} of {len(rows)} classes: {', '.join(map(_told, some))}.",
            consequence=consequence,
        )
        for some, topic, consequence in texts
        if some
    ]


def _told(row: dict[str, Any]) -> str:
    crops = "1 crop" if row["present_in"] == 1 else f"{row['present_in']} crops"
    part = known_fraction(row) or 0
    return f"{row['name']} ({row['voxels']['present']:,} voxels, {part:.2%} of known, {crops})"


def _missing(rows: Sequence[dict[str, Any]]) -> list[Finding]:
    empty = [r["name"] for r in rows if r["annotated_in"] and not r["present_in"]]
    everywhere = [r["name"] for r in rows if r["voxels"]["present"] and not r["voxels"]["absent"]]
    never = [r["name"] for r in rows if not r["annotated_in"]]
    unknown = [
        f"{r['name']} ({r['voxels']['unknown'] / sum(r['voxels'].values()):.0%})"
        for r in rows
        if r["voxels"]["unknown"]
    ]
    texts = (
        (empty, "Classes nowhere present", "A model learns only their absence; leave them out."),
        (
            everywhere,
            "Classes present everywhere",
            "A model learns to say yes: nothing is known not to be of them.",
        ),
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

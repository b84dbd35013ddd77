"""Pictures of the statistics: class balance, intensity, crop sizes, what is annotated where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from cellmap_core.datastats.balance import known_fraction
from cellmap_core.datastats.outliers import name_of
from cellmap_core.report.figures import bar_plot, new_figure, plain, to_png

# Not annotated, annotated and absent, annotated and unknown throughout, present.
_STATES = ("not annotated", "absent", "unknown", "present")
_COLOURS = ("#f0f0f0", "#9ecae1", "#fdae6b", "#08519c")


def class_balance(summary: dict[str, Any]) -> bytes:
    """PNG of each class's fraction of its known voxels, on a logarithmic axis."""
    rows = [(r["name"], known_fraction(r)) for r in summary["class_stats"]]
    return bar_plot(
        [name for name, _ in rows],
        [100 * f if f else None for _, f in rows],
        "% of known voxels",
        log=True,
        missing="none",
    )


def intensity(cases: Sequence[dict[str, Any]]) -> bytes:
    """PNG of the intensities of each dataset: its crops' medians, and how far their tails reach."""
    by_dataset: dict[str, list[dict[str, float]]] = {}
    for case in cases:
        dataset = (case.get("cellmap") or {}).get("dataset") or "all"
        by_dataset.setdefault(dataset, []).append(case["image_stats"]["intensity"][0])
    names = sorted(by_dataset)
    figure, axes = new_figure(height=1.1 + 0.28 * len(names))
    for place, name in enumerate(names):
        ops = by_dataset[name]
        ends = {
            key: float(np.mean([o[key] for o in ops]))
            for key in ("percentile_00_5", "percentile_10_0", "percentile_90_0", "percentile_99_5")
        }
        axes.hlines(place, ends["percentile_00_5"], ends["percentile_99_5"], color="#9ecae1", lw=2)
        axes.hlines(place, ends["percentile_10_0"], ends["percentile_90_0"], color="#3182bd", lw=6)
        medians = [o["median"] for o in ops]
        axes.plot(medians, [place] * len(ops), "o", ms=4, mfc="#fdae6b", mec="#8c2d04", mew=0.6)
    axes.set_yticks(
        range(len(names)), [plain(f"{n} ({len(by_dataset[n])})") for n in names], fontsize=8
    )
    axes.invert_yaxis()
    axes.margins(y=0.08 if len(names) > 3 else 0.3)
    axes.set_xlabel(
        "intensity: dots crop medians, bars 10 to 90 %, lines 0.5 to 99.5 %", fontsize=9
    )
    axes.grid(axis="x", alpha=0.3)
    return to_png(figure)


def crop_sizes(cases: Sequence[dict[str, Any]]) -> bytes:
    """PNG of crop sizes in voxels, y against x and z against x; dots grow with crops."""
    sizes = [tuple(c["image_stats"]["shape"][0]) for c in cases]
    figure, panels = new_figure(height=3.4, columns=2)
    for axes, other, name in zip(panels, (1, 2), "yz", strict=True):
        dots = Counter((s[0], s[other]) for s in sizes)
        x, heights = zip(*dots, strict=True)
        axes.scatter(
            x, heights, s=[25 + 8 * n for n in dots.values()], alpha=0.6, edgecolors="#08519c"
        )
        axes.set_xlabel("x (voxels)")
        axes.set_ylabel(f"{name} (voxels)")
        axes.set_xlim(0, axes.get_xlim()[1] * 1.05)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
        axes.grid(alpha=0.3)
    figure.suptitle(f"{len(cases)} crops, {len(set(sizes))} sizes", fontsize=11)
    return to_png(figure)


def annotation_matrix(summary: dict[str, Any], cases: Sequence[dict[str, Any]]) -> bytes:
    """PNG of crops × classes: not annotated, absent, unknown throughout or present."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    classes = [plain(r["name"]) for r in summary["class_stats"]]
    matrix = np.zeros((len(cases), len(classes)), dtype=np.uint8)
    for i, case in enumerate(cases):
        for row in case["class_stats"]:
            matrix[i, row["index"] - 1] = 3 if row["present"] else 1 if row["absent"] else 2
    # Names of crops are legible down to some 10 pixels a row; beyond 60 crops they are left out.
    named = len(cases) <= 60
    figure, axes = new_figure(height=1.8 + (0.17 * len(cases) if named else 8))
    axes.imshow(
        matrix, cmap=ListedColormap(_COLOURS), vmin=0, vmax=3, aspect="auto", interpolation="none"
    )
    axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=8)
    axes.set_yticks(
        range(len(cases)) if named else [], [plain(name_of(c)) for c in cases] if named else []
    )
    axes.tick_params(axis="y", labelsize=7)
    if not named:
        axes.set_ylabel(f"{len(cases)} crops")
    seen = [i for i in range(len(_STATES)) if (matrix == i).any()]
    axes.legend(
        handles=[Patch(facecolor=_COLOURS[i], edgecolor="#888", label=_STATES[i]) for i in seen],
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=4,
        fontsize=8,
        frameon=False,
    )
    return to_png(figure)

"""Pictures of the statistics: class balance, crop sizes, what is annotated where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from cellmap_core.datastats.findings import known_fraction, name_of
from cellmap_core.report.figures import bar_plot, new_figure, to_png

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

    classes = [r["name"] for r in summary["class_stats"]]
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
        range(len(cases)) if named else [], [name_of(c) for c in cases] if named else []
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

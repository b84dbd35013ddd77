"""``analysis.md``: the findings, the classes, the crops to look at, the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from cellmap_core.datastats.balance import class_weights, known_fraction
from cellmap_core.datastats.findings import Finding
from cellmap_core.datastats.outliers import Outlier
from cellmap_core.models import Failure
from cellmap_core.report.text import Cell, markdown_table

# Crops listed on a page; the rest is counted.
_SHOWN = 60
_CLASSES = (
    "In how many crops each class is annotated, present and absent; its percentage of the voxels "
    "known of it; its weight by median frequency; the intensity where it is present."
)


class Picture(NamedTuple):
    """A picture of the page: its title, and its file in ``analysis/``."""

    title: str
    file: str


def analysis_markdown(
    found: Sequence[Finding],
    summary: dict[str, Any],
    outliers: Sequence[Outlier],
    failures: Sequence[Failure],
    plots: Sequence[Picture],
    sheet: Picture,
) -> str:
    """The page: what the data say and what follows, in the order in which a person acts on it.

    ``sheet`` is the picture of the outliers, where there are any.
    """
    parts = ["# What the data say"]
    if failures:
        listed = [f"- `{f.item}`: {f.reason}" for f in failures]
        parts.append(f"## {len(failures)} cases without statistics\n\n" + "\n".join(listed))
    parts += [f"**{f.topic}.** {f.finding}\n\n→ {f.consequence}" for f in found]
    if outliers:
        # Not a table: the UI cuts its long lines off.
        lines = [f"- `{o.case}`: {o.text()}" for o in outliers[:_SHOWN]]
        if rest := len(outliers) - len(lines):
            lines.append(f"- and {rest} more")
        parts.append(f"## {len(outliers)} crops to look at\n\n" + "\n".join(lines))
        parts.append(_drawn(sheet))
    parts.append(f"## Classes\n\n{_CLASSES}\n\n{markdown_table(class_table(summary))}")
    parts += [f"## {p.title}\n\n{_drawn(p)}" for p in plots]
    return "\n\n".join(parts) + "\n"


def _drawn(picture: Picture) -> str:
    return f"![{picture.title}](analysis/{picture.file})"


def class_table(summary: dict[str, Any]) -> list[dict[str, Cell]]:
    """A row for each class: crops by state, percent of known voxels, weight, intensity."""
    rows: list[dict[str, Cell]] = []
    weights = class_weights(summary["class_stats"])
    for row in summary["class_stats"]:
        fraction, intensity, weight = (
            known_fraction(row),
            row["image_intensity"],
            weights.get(row["name"]),
        )
        rows.append(
            {
                "class": row["name"],
                "id": row["index"],
                "annotated": row["annotated_in"],
                "present": row["present_in"],
                "absent": row["absent_in"],
                "% of known": None if fraction is None else float(f"{100 * fraction:.4g}"),
                "weight": None if weight is None else float(f"{weight:.3g}"),
                "intensity": None
                if intensity is None
                else f"{intensity['mean']:.1f} ± {intensity['stdev']:.1f}",
            }
        )
    return rows

"""Words and tables of markdown pages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

#: Prefect takes larger artifacts, but its page for one gets slow.
MARKDOWN_LIMIT_BYTES = 300_000

Cell = str | int | float | None


def number(value: float | None, digits: int = 3) -> str:
    """A number for reading; a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def spread(values: Iterable[float | None]) -> str:
    """Mean ± population deviation of the values there are; one value stands alone."""
    some = [v for v in values if v is not None]
    if not some:
        return "–"
    return f"{fmean(some):.3f} ± {pstdev(some):.3f}" if len(some) > 1 else f"{some[0]:.3f}"


def mean_of(values: Iterable[float | None]) -> float | None:
    """Mean of the values there are."""
    some = [v for v in values if v is not None]
    return fmean(some) if some else None


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same keys as a markdown table; empty text for no rows."""
    if not rows:
        return ""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(c)) for c in columns) + " |" for row in rows]
    return "\n".join(lines)


def details(summary: str, body: str) -> str:
    """A part that opens on a click."""
    return f"<details>\n<summary>{summary}</summary>\n\n{body}\n\n</details>"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        # A rare class is not an absent one: small numbers keep their digits.
        return f"{value:.3f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"
    text = str(value)
    return text.replace("|", "\\|").replace("\n", " ")

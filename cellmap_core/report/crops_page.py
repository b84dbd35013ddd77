"""The page of ``convert``: what became of every crop of the datasplit."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from cellmap_core.csv_rows import is_empty
from cellmap_core.errors import StoreError
from cellmap_core.report.text import Cell, details, markdown_table

# Columns that sort as numbers on the page.
_NUMBERS = frozenset({"coverage"})
# The page of a run over a broken store stays readable; the table has them all.
_SHOWN = 200


def crops_table(crops_csv: Path) -> list[dict[str, Cell]]:
    """The rows of ``crops.csv``, whatever its columns; an empty or NaN cell is ``""``.

    Raises
    ------
    StoreError
        The file cannot be read.
    """
    try:
        with crops_csv.open(encoding="utf-8", newline="") as source:
            rows = list(csv.DictReader(source, restval=""))
    except (OSError, ValueError, csv.Error) as error:
        raise StoreError(f"{crops_csv} cannot be read ({error})", "a crops.csv") from error
    return [{k: _value(k, v) for k, v in row.items() if isinstance(k, str)} for row in rows]


def crops_markdown(crops_csv: Path) -> str:
    """How many crops came through, and by name and reason those that did not."""
    rows = crops_table(crops_csv)
    counts = Counter(str(r.get("status", "")) or "unknown" for r in rows)
    tally = ", ".join(f"{n} {status}" for status, n in counts.most_common())
    text = f"**{len(rows)} crops**: {tally or 'none listed'}."
    parts = [text]
    for status in ("failed", "excluded"):
        some = [r for r in rows if r.get("status") == status]
        if not some:
            continue
        listed = markdown_table(
            [
                {
                    "crop": f"{r.get('dataset', '')}/{r.get('crop', '')}",
                    "reason": r.get("reason", ""),
                }
                for r in some[:_SHOWN]
            ]
        )
        if len(some) > _SHOWN:
            listed += f"\n\nand {len(some) - _SHOWN} more, in `{crops_csv}`"
        # What failed is seen at once; what policy left out opens on a click.
        title = f"{len(some)} {status}"
        parts.append(f"### {title}\n\n{listed}" if status == "failed" else details(title, listed))
    return "\n\n".join(parts) + "\n"


def _value(column: str, text: str | None) -> Cell:
    text = "" if text is None else text.strip()
    if is_empty(text):
        return ""
    if column in _NUMBERS:
        try:
            return float(text)
        except ValueError:
            return text
    return text

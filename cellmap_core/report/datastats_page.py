"""The page of ``analyze``: what the data say, with the plots inside."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from cellmap_core.datastats.page import class_table
from cellmap_core.datastats.reports import read_summary
from cellmap_core.errors import StatisticsError
from cellmap_core.models import AnalyzeResult
from cellmap_core.report.figures import embedded
from cellmap_core.report.text import MARKDOWN_LIMIT_BYTES, Cell, details

_IMAGE_LINK = re.compile(r"!\[([^\]]*)\]\(([^)]+\.(?:png|jpg))\)")


def datastats_table(result: AnalyzeResult) -> list[dict[str, Cell]]:
    """A row for each class: crops by state, percent of known voxels, weight, intensity."""
    return class_table(read_summary(result.datastats))


def datastats_markdown(result: AnalyzeResult) -> str:
    """The page: the tally, ``analysis.md`` with its pictures inside, the raw summary.

    Pictures that would make the page larger than an artifact should be are named, not shown.

    Raises
    ------
    StatisticsError
        The reports of ``result`` are not there.
    """
    summary = read_summary(result.datastats)
    try:
        page = result.analysis.read_text(encoding="utf-8")
    except OSError as error:
        raise StatisticsError(
            f"{result.analysis} cannot be read ({error})", "analysis.md"
        ) from error
    raw = yaml.safe_dump(
        {k: summary[k] for k in ("image_stats", "image_foreground_stats")},
        default_flow_style=None,
        sort_keys=False,
    )
    tail = details("Image statistics (datastats.yaml)", f"```yaml\n{raw}```")
    head = f"{summary['n_cases']} cases analysed: {result.tally()}.\n\n"
    room = MARKDOWN_LIMIT_BYTES - len((head + page + tail).encode())
    return f"{head}{_with_pictures(page, result.analysis.parent, room)}\n\n{tail}\n"


def _with_pictures(page: str, folder: Path, room: int) -> str:
    """Put each linked picture into the page while there is room for it."""

    def picture(match: re.Match[str]) -> str:
        nonlocal room
        file = folder / match[2]
        text: Any = embedded(match[1], file.read_bytes()) if file.is_file() else ""
        if not text or len(text) > room:
            return f"(see `{file}`)"
        room -= len(text)
        return str(text)

    return _IMAGE_LINK.sub(picture, page)

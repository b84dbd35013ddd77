"""Pages in a terminal: tables and text; pictures are left to their files."""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

# A heading with nothing but a picture below it.
_PICTURE = re.compile(r"(?:^## .*\n\n)?^!\[[^\]]*\]\(([^)]+)\)\n*", re.MULTILINE)


def print_page(path: Path, console: Console | None = None) -> None:
    """Print a markdown page of ours, and where its pictures are.

    Parameters
    ----------
    path : Path
        The page; nothing is printed where there is none.
    console : rich.console.Console, optional
        Standard output by default.
    """
    if not path.is_file():
        return
    console = console or Console()
    page = path.read_text(encoding="utf-8")
    console.print(Markdown(_PICTURE.sub("", page)))
    console.print()
    files = [path, *(path.parent / name for name in _PICTURE.findall(page))]
    console.print("\n".join(map(str, files)), soft_wrap=True, highlight=False, markup=False)

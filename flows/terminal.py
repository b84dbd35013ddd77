"""Progress bars of a run that was started in a terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from tasks.artifacts import watchers


@contextmanager
def bars() -> Iterator[None]:
    """Show the progress of every stage as a bar, below the log; nothing where nobody looks."""
    if not sys.stderr.isatty():
        yield
        return
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    stages: dict[str, TaskID] = {}
    with Progress(*columns, TextColumn("{task.fields[what]}"), console=console) as progress:

        def watch(name: str, part: float, what: str) -> None:
            if name not in stages:
                stages[name] = progress.add_task(name, total=1.0, what=what)
            progress.update(stages[name], completed=part, what=what)

        watchers.append(watch)
        try:
            with _log_above(console):
                yield
        finally:
            watchers.remove(watch)


@contextmanager
def _log_above(console: Console) -> Iterator[None]:
    """Let Prefect's log lines go through the console of the bars, which keeps them apart."""
    loggers = [logging.getLogger(name) for name in ("prefect", "cellmap_core", None)]
    handlers = [h for logger in loggers for h in logger.handlers if hasattr(h, "console")]
    before = [(handler, handler.console) for handler in handlers]
    for handler in handlers:
        handler.console = console
    try:
        yield
    finally:
        for handler, old in before:
            handler.console = old

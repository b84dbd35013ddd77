"""What a check found: one line for a person, that says what to mend."""

from __future__ import annotations

import functools
from collections.abc import Callable
from enum import StrEnum
from typing import ParamSpec

from cellmap_core.errors import CellmapError
from cellmap_core.models import Frozen

P = ParamSpec("P")


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "FAILED"


class Finding(Frozen):
    """Of one hop: what was found and what to do about it."""

    level: Level
    found: str
    do: str = ""
    hop: str = ""

    def line(self) -> str:
        """The finding as it is printed."""
        return f"{self.level:<8} {self.hop}: {self.found}" + (f"; {self.do}" if self.do else "")


def ok(found: str) -> Finding:
    """All is well."""
    return Finding(level=Level.OK, found=found)


def warning(found: str, do: str = "") -> Finding:
    """It may work, or work badly."""
    return Finding(level=Level.WARNING, found=found, do=do)


def failed(found: str, do: str = "") -> Finding:
    """A run would fail."""
    return Finding(level=Level.FAILED, found=found, do=do)


def hop(name: str) -> Callable[[Callable[P, Finding]], Callable[P, Finding]]:
    """Name the hop that a check is of; its failures by name are findings too."""

    def decorate(check: Callable[P, Finding]) -> Callable[P, Finding]:
        @functools.wraps(check)
        def named(*args: P.args, **kwargs: P.kwargs) -> Finding:
            try:
                finding = check(*args, **kwargs)
            except CellmapError as error:
                finding = failed(str(error))
            return finding.model_copy(update={"hop": finding.hop or name})

        return named

    return decorate

"""How far a stage is, how fast, and when it will be done."""

from __future__ import annotations

import logging
from time import monotonic
from typing import Protocol

logger = logging.getLogger(__name__)

_MEGA = 1e6
_MINUTE, _HOUR = 60, 3600


class Report(Protocol):
    """Told the part that is done (0 to 1), and in words."""

    def __call__(self, part: float, what: str) -> None: ...  # noqa: D102 - the class says it


def unreported(part: float, what: str) -> None:
    """Tell nobody."""


class Pace:
    """Counts finished items; logs each, and reports speed and the time that is left.

    Parameters
    ----------
    total : int
        Number of items.
    report : Report
        Told after each.
    """

    def __init__(self, total: int, report: Report) -> None:
        self._total, self._report = total, report
        self._begun = monotonic()
        self._items = self._voxels = 0

    def step(self, name: str, what: str, voxels: int) -> None:
        """Count one item and the voxels that were made for it."""
        self._items += 1
        self._voxels += voxels
        text = self.text()
        logger.info("%s: %s (%s)", name, what, text)
        self._report(self._items / self._total, text)

    def text(self) -> str:
        """Items, speed and time left, as ``12 of 289, 35 Mvoxel/s, about 4 min left``."""
        seconds = monotonic() - self._begun
        parts = [f"{self._items} of {self._total}"]
        if self._voxels and seconds > 0:
            parts.append(f"{self._voxels / _MEGA / seconds:.3g} Mvoxel/s")
        if 0 < self._items < self._total:
            left = seconds / self._items * (self._total - self._items)
            parts.append(f"about {duration(left)} left")
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """A time for reading: the two largest units matter, and at the end only one."""
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{seconds // _HOUR:.0f} h {seconds % _HOUR / _MINUTE:.0f} min"

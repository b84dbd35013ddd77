"""How often work is begun again whose job ended before the work did."""

from __future__ import annotations

from collections.abc import Callable

from cellmap_core.cluster.profiles import Site, Stage
from cellmap_core.cluster.states import End
from cellmap_core.models import Frozen

#: Jobs in a row without progress after which work is given up, where no site profile says it.
FRUITLESS_JOBS = 3


class Loss(Frozen):
    """How the job (or the process) of unfinished work ended.

    Attributes
    ----------
    end : End
        The cause, as the cluster tells it.
    said : str
        The same in one line, for logs and messages.
    """

    end: End
    said: str


class Attempts:
    """Decides whether one piece of work is begun again after its job was lost.

    - Out of memory: no. The next job has the same memory and would end in the same way.
    - The cluster took the job away (node failure, preemption): yes, up to ``restarts`` times in
      a row.
    - Any other end (wall time, ``scancel``, a crash): yes, until ``fruitless_jobs`` jobs in a
      row made no progress.

    Progress resets both counts, so that long work may use up as many wall times as it takes.

    Parameters
    ----------
    stage : str
        Whose job does the work.
    site : Site, optional
        The profile with the two numbers; None where the work runs on this machine.
    mark : callable
        Returns a value that changes whenever the work has saved something. It is called now,
        so that what an earlier run saved is no progress.
    """

    def __init__(self, stage: Stage, site: Site | None, mark: Callable[[], int]) -> None:
        self._stage, self._site, self._mark = stage, site, mark
        self._last = mark()
        self._taken = self._fruitless = 0
        #: How often the work was begun again.
        self.times = 0

    def refusal(self, loss: Loss) -> str | None:
        """Return why the work is given up after a loss, or None if it is begun again."""
        if loss.end is End.OUT_OF_MEMORY:
            return f"{loss.said}; {memory_remedy(self._stage, self._site)}"
        mark = self._mark()
        if mark != self._last:
            self._last, self._taken, self._fruitless = mark, 0, 0
        if loss.end is End.LOST and self._site is not None:
            self._taken += 1
            if self._taken > self._site.restarts:
                return f"the cluster took {self._taken} jobs in a row away; the last: {loss.said}"
        else:
            self._fruitless += 1
            if self._fruitless >= fruitless_jobs(self._site):
                return self._no_progress(loss)
        self.times += 1
        return None

    def _no_progress(self, loss: Loss) -> str:
        said = (
            f"lost {self._fruitless} times in a row without having saved anything; the last: "
            f"{loss.said}"
        )
        if loss.end is not End.WALL_TIME or self._site is None:
            return said
        return f"{said}; {hours_remedy(self._stage, self._site)}"


def fruitless_jobs(site: Site | None) -> int:
    """Return how many jobs in a row without progress end a piece of work."""
    return FRUITLESS_JOBS if site is None else site.fruitless_jobs


def memory_remedy(stage: Stage, site: Site | None) -> str:
    """Return what to do about a job that ran out of memory."""
    if site is None:
        return "give this machine more memory, or run fewer at a time"
    return (
        f"raise stages.{stage}.memory_gb of the site profile {site.name} "
        f"(now {site.of(stage).memory_gb:g})"
    )


def hours_remedy(stage: Stage, site: Site) -> str:
    """Return what to do about work that is longer than its job's wall time."""
    return (
        f"raise stages.{stage}.hours of the site profile {site.name} (now {site.of(stage).hours:g})"
    )

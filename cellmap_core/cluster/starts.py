"""Starts of a run in one job after the other, and whether it gets on from one to the next."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from cellmap_core.cluster.attempts import fruitless_jobs, hours_remedy
from cellmap_core.cluster.here import Place
from cellmap_core.cluster.profiles import Site
from cellmap_core.errors import NoProgressError
from cellmap_core.lines import append_line, read_lines
from cellmap_core.models import Frozen

#: Names a file that a run makes in a job once it has noted its start; the job's script looks.
BEGUN_VARIABLE = "AUTO3DSEG_BEGUN"
#: Where the starts of the runs of a folder are kept.
STARTS_NAME = ".jobs/starts.jsonl"


class Start(Frozen):
    """One start of a run.

    Attributes
    ----------
    run : str
        Names the run: its Prefect id, or the job that is started again under the same id.
    job_id : int
        The job that it starts in.
    handed_on : bool
        Whether the run was started before, in a job that reached its wall time.
    mark : int
        What the run has saved so far; see `cellmap_core.work.saved_mark`.
    """

    run: str
    job_id: int
    handed_on: bool
    mark: int


def note_start(
    folder: Path, start: Start, site: Site | None, environment: Mapping[str, str] = os.environ
) -> None:
    """Note a start of a run, and refuse it where the last ones brought the run no further.

    Parameters
    ----------
    folder : Path
        Work or output folder of the run.
    start : Start
        This one.
    site : Site, optional
        The profile of the cluster; None for a job that is the whole run.

    Raises
    ------
    NoProgressError
        So many jobs in a row as ``fruitless_jobs`` reached their wall time, and the run has
        saved nothing in any of them.
    """
    append_line(folder / STARTS_NAME, start.model_dump_json())
    if begun := environment.get(BEGUN_VARIABLE):
        Path(begun).touch()
    own = [s for s in read_lines(folder / STARTS_NAME, Start) if s.run == start.run]
    times = 0
    for before, after in reversed(list(pairwise(own))):
        if not after.handed_on or after.mark != before.mark:
            break
        times += 1
    if times >= fruitless_jobs(site):
        remedy = hours_remedy("flow", site) if site else "submit the job with a longer --time"
        raise NoProgressError(
            f"the last {times} jobs of this run ended before they had saved anything",
            "",
            remedy,
        )


def job_run(here: Place) -> str:
    """Return the name of a run that is one job, started again under the same id."""
    return f"job {here.job_id}"

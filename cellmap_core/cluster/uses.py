"""What the jobs of a run used: one line of JSON a job, beside the run's other files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from pydantic import Field

from cellmap_core.cluster.here import Place
from cellmap_core.cluster.profiles import Stage
from cellmap_core.lines import append_line, read_lines
from cellmap_core.models import Frozen

#: Where the records of a work folder's jobs are kept.
USES_NAME = ".jobs/jobs.jsonl"


class JobUse(Frozen):
    """What one job that ended took.

    Attributes
    ----------
    stage : str
        See `cellmap_core.cluster.profiles.Stage`.
    item : str
        What it worked at (``segresnet_0``); empty where a job does whatever comes.
    job_id : int
        SLURM's; 0 for work that was no job.
    node : str
        Where it ran.
    queue_seconds, run_seconds : float
        From submission to start, and from start to end.
    cores, gpus : int
        It had.
    ended : datetime or None
        When; None for work that was no job.
    peak_host_bytes : int or None
        Most memory it took of the machine; None where nobody tells.
    end : str
        See `cellmap_core.cluster.states.End`.
    """

    stage: Stage
    item: str = ""
    job_id: int = 0
    node: str = ""
    queue_seconds: float = Field(0.0, ge=0)
    run_seconds: float = Field(0.0, ge=0)
    cores: int = Field(1, ge=0)
    gpus: int = Field(0, ge=0)
    ended: datetime | None = None
    peak_host_bytes: int | None = None
    end: str = "done"


class Training(Frozen):
    """A training of a work folder as it tells of itself.

    Attributes
    ----------
    name : str
        ``segresnet_0``.
    places : tuple of Place
        Jobs it was in, in order.
    peak_host_bytes : int or None
        Most memory it took of a machine.
    own : JobUse or None
        What it used by its own clock, for one that ran in no job; None where it has not begun.
    """

    name: str
    places: tuple[Place, ...] = ()
    peak_host_bytes: int | None = None
    own: JobUse | None = None


def append_use(work_dir: Path, use: JobUse) -> None:
    """Add the record of a job."""
    append_line(work_dir / USES_NAME, use.model_dump_json())


def read_uses(work_dir: Path) -> tuple[JobUse, ...]:
    """Records of all jobs of a work folder, each job once: its last record counts."""
    return tuple({use.job_id: use for use in read_lines(work_dir / USES_NAME, JobUse)}.values())


def uses_of(work_dir: Path, trainings: Sequence[Training]) -> tuple[JobUse, ...]:
    """What a run used: its jobs, those of trainings by training, and what ran in no job.

    Parameters
    ----------
    trainings : sequence of Training
        Of the work folder, with what each has noted of itself.
    """
    jobs = read_uses(work_dir)
    begun: dict[int, list[tuple[datetime, Training]]] = defaultdict(list)
    for training in trainings:
        for place in training.places:
            if place.since is not None:
                begun[place.job_id].append((place.since, training))
    told = [part for job in jobs for part in _parts(job, begun.get(job.job_id, []))]
    named = {use.item for use in told}
    return (*told, *(t.own for t in trainings if t.own and t.own.item not in named))


def _parts(job: JobUse, begun: Sequence[tuple[datetime, Training]]) -> list[JobUse]:
    """The record of a job, split where one training followed the other in it."""
    if job.ended is None or not begun:
        return [job]
    parts: list[JobUse] = []
    ordered = sorted(begun, key=lambda one: one[0])
    # What a job takes before its first training counts as that one's.
    begins = [job.ended - timedelta(seconds=job.run_seconds), *(since for since, _ in ordered[1:])]
    ends = [*begins[1:], job.ended]
    for (_, training), begin, end in zip(ordered, begins, ends, strict=True):
        part = {
            "item": training.name,
            "queue_seconds": 0.0 if parts else job.queue_seconds,
            "run_seconds": max(0.0, (end - begin).total_seconds()),
            "peak_host_bytes": training.peak_host_bytes or job.peak_host_bytes,
        }
        parts.append(job.model_copy(update=part))
    return parts

"""What the jobs of a run used: one line of JSON a job, beside the run's other files."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, ValidationError

from cellmap_core.cluster.profiles import Stage
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
    peak_host_bytes: int | None = None
    end: str = "done"


def append_use(work_dir: Path, use: JobUse) -> None:
    """Add the record of a job; whole lines of several writers do not mix.

    A line that a writer left torn when it was killed is closed first.
    """
    path = work_dir / USES_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o664)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        line = ("\n" if torn else "") + use.model_dump_json() + "\n"
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_uses(work_dir: Path) -> tuple[JobUse, ...]:
    """Records of all jobs of a work folder, each job once: its last record counts.

    A line that is torn, or of another version, is passed over.
    """
    try:
        lines = (work_dir / USES_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return ()
    uses: dict[object, JobUse] = {}
    for number, line in enumerate(lines):
        try:
            use = JobUse.model_validate_json(line)
        except ValidationError:
            continue
        # Dask's jobs have many items, a training's chain many jobs.
        uses[(use.job_id, use.item) if use.job_id else -number] = use
    return tuple(uses.values())

"""Many runs in the queue at once, and what they cost the worker: for a test and the benchmark."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from tests.slurm.cluster import wait_until

# Calls of squeue that are waited for, to see how far apart they are.
_LOOKS = 5


@dataclass(frozen=True)
class Queued:
    """What was seen while the runs waited.

    Attributes
    ----------
    run_ids, job_runs : list of str
        The runs, and the run that each job in the queue names.
    one_mib, all_mib : float
        Memory of the worker with one run, and with all of them.
    calls, polls : float
        Calls of ``squeue`` in a while, and the worker's looks in it.
    """

    run_ids: list[str]
    job_runs: list[str]
    one_mib: float
    all_mib: float
    calls: int
    polls: float


def counted_squeue(folder):
    """A folder for ``PATH`` whose ``squeue`` leaves a line in ``calls`` before the real one."""
    folder.mkdir(parents=True)
    calls, shim = folder / "calls", folder / "squeue"
    calls.touch()
    shim.write_text(f'#!/bin/sh\necho >> "{calls}"\nexec {shutil.which("squeue")} "$@"\n')
    shim.chmod(0o755)
    return calls


def queue_up(service, probe, folder, count, calls):
    """Let so many runs wait in a partition that is down, look, and cancel them all."""
    service.cluster.run("scontrol", "update", "PartitionName=cpu", "State=DOWN")
    try:
        runs = [service.submit(probe, folder)]
        service.wait(runs[0], lambda run: run.infrastructure_pid)
        before = _resident_mib(service.service.worker_pid)
        runs += service.submit_many(probe, folder, count - 1)
        _all_are(service, runs, lambda run: run.infrastructure_pid)
        after = _resident_mib(service.service.worker_pid)
        seen, began = calls.stat().st_size, time.monotonic()
        wait_until(lambda: calls.stat().st_size - seen >= _LOOKS, lambda: "no look at the queue")
        made = calls.stat().st_size - seen
        polls = time.monotonic() - began  # One a second here.
        jobs = [job["comment"] for job in service.cluster.jobs() if job["state"] == "PENDING"]
        service.cancel_many(runs)
        _all_are(service, runs, lambda run: run.state.is_cancelled())
    finally:
        service.cluster.run("scontrol", "update", "PartitionName=cpu", "State=UP")
    return Queued(
        run_ids=[str(run_id) for run_id in runs],
        job_runs=[comment.split(":")[1] for comment in jobs],
        one_mib=before,
        all_mib=after,
        calls=made,
        polls=polls,
    )


def _all_are(service, runs, condition):
    wait_until(
        lambda: time.sleep(1) or all(condition(run) for run in service.read_many(runs)),
        lambda: str([run.state for run in service.read_many(runs) if not condition(run)][:5]),
    )


def _resident_mib(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024

"""A tiny job in each partition that a site uses: what a run's jobs will find there."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from cellmap_core.cluster.jobs import JobSpec, Resources
from cellmap_core.cluster.profiles import Site
from cellmap_core.cluster.slurm import JobRecord, Slurm, tail
from cellmap_core.cluster.states import Phase
from cellmap_core.errors import CellmapError, SchedulerUnavailable
from cellmap_core.models import Frozen
from deployments.doctor.api import Api
from deployments.doctor.cluster import address_of
from deployments.doctor.finding import Finding, failed, ok
from deployments.doctor.probe import GREETING, Report
from deployments.service import ROOT

_HOURS = 0.1
_MEMORY_GB = 2
_POLL_SECONDS = 1.0
# A file written on another host shows late on some network file systems.
_LATE_SECONDS = 60


class Probe(Frozen):
    """One job: for which stages it stands, what it asks for, and where it reports."""

    name: str
    resources: Resources
    report: Path
    log: Path


def from_node(
    site: Site,
    slurm: Slurm,
    api: Api | None,
    work_dir: Path,
    wait_seconds: float,
    say: Callable[[str], None],
) -> Iterator[Finding]:
    """What the jobs of all stages find on their nodes.

    Parameters
    ----------
    site : Site
        The profile.
    slurm : Slurm
        The cluster.
    api : Api or None
        The server that they must reach.
    work_dir : Path
        Folder that they must share with this host.
    wait_seconds : float
        For all of them together.
    say : callable
        Told why they wait, while they do.
    """
    waiting: dict[int, Probe] = {}
    with _listening(site.network_interface) as listener, _marker(work_dir) as marker:
        options = ["--listener", listener, "--marker", marker]
        try:
            for probe in probes_of(site):
                try:
                    waiting[slurm.submit(_spec(site, probe, api, options))] = probe
                except CellmapError as error:
                    yield _finding(probe, failed(str(error)))
            yield from _follow(slurm, waiting, wait_seconds, say)
        finally:
            with contextlib.suppress(CellmapError):
                slurm.cancel(waiting)


def probes_of(site: Site) -> list[Probe]:
    """One for each kind of node: stages that ask for the same one share it."""
    run = uuid.uuid4().hex[:8]
    kinds: dict[str, tuple[Resources, list[str]]] = {}
    for stage, asked in site.each().items():
        tiny = _tiny(asked)
        kinds.setdefault(tiny.model_dump_json(), (tiny, []))[1].append(stage)
    folder = site.log_dir if site.log_dir.is_absolute() else Path.cwd() / site.log_dir
    return [
        Probe(
            name=", ".join(stages),
            resources=tiny,
            report=folder / f"doctor-{run}-{number}.json",
            log=folder / f"doctor-{run}-{number}.log",
        )
        for number, (tiny, stages) in enumerate(kinds.values())
    ]


def _tiny(asked: Resources) -> Resources:
    """The same kind of node, for as little of it as a probe needs."""
    least = {
        "jobs": 1,
        "cores": 1,
        "memory_gb": min(asked.memory_gb, _MEMORY_GB),
        "hours": min(asked.hours, _HOURS),
        "gpus": min(asked.gpus, 1),
        "gpu_memory_gb": None,
    }
    return asked.model_copy(update=least)


def _spec(site: Site, probe: Probe, api: Api | None, options: list[str]) -> JobSpec:
    command = [sys.executable, "-m", "deployments.doctor", "--probe", str(probe.report), *options]
    command += ["--gpus", str(probe.resources.gpus)]
    if site.network_interface:
        command += ["--interface", site.network_interface]
    if site.scratch:
        command += ["--scratch", str(site.scratch)]
    return JobSpec(
        name="auto3dseg-doctor",
        command=tuple(command),
        resources=probe.resources,
        # No flow run's: the worker has nothing to do with it.
        comment="doctor",
        log=probe.log,
        working_dir=ROOT,
        setup=site.setup,
        environment={**site.environment, **(api.variables() if api else {})},
    )


def _follow(
    slurm: Slurm, waiting: dict[int, Probe], wait_seconds: float, say: Callable[[str], None]
) -> Iterator[Finding]:
    """The findings of each probe as it ends; what has not ended in time is left in ``waiting``."""
    deadline = time.monotonic() + wait_seconds
    said: dict[int, str] = {}
    ended: dict[int, float] = {}
    while waiting:
        records = _records(slurm)
        for job_id, probe in list(waiting.items()):
            record = records.get(job_id)
            _say_why(probe, job_id, record, said, say)
            if record is None or record.phase is Phase.ENDED:
                ended.setdefault(job_id, time.monotonic())
            late = job_id in ended and time.monotonic() > ended[job_id] + _patience(record)
            if (found := _read(probe)) is not None or late:
                del waiting[job_id]
                yield from found if found is not None else [_lost(probe, job_id, record)]
            elif time.monotonic() > deadline:
                why = f"{record.state} ({record.reason})" if record else "unknown to SLURM"
                yield _finding(
                    probe,
                    failed(f"job {job_id} is still {why} after {wait_seconds:.0f} s", "try --wait"),
                )
        if time.monotonic() > deadline:
            return
        time.sleep(_POLL_SECONDS)


def _records(slurm: Slurm) -> dict[int, JobRecord]:
    """What SLURM says of the jobs; nothing new where it does not answer."""
    try:
        return slurm.jobs()
    except SchedulerUnavailable:
        return {}


def _patience(record: JobRecord | None) -> float:
    """How long a report may be late: one of a job that failed never comes."""
    return _LATE_SECONDS if record is None or record.state == "COMPLETED" else 0


def _say_why(
    probe: Probe,
    job_id: int,
    record: JobRecord | None,
    said: dict[int, str],
    say: Callable[[str], None],
) -> None:
    """Tell the state of a job whenever it changes."""
    if record is None:
        return
    now = f"runs on {record.node}"
    if record.phase is Phase.QUEUED:
        now = f"waits ({record.reason})" if record.reason != "None" else "waits"
    if said.get(job_id) != now and record.phase is not Phase.ENDED:
        said[job_id] = now
        say(f"...      job {job_id} for {probe.name}: {now}")


def _read(probe: Probe) -> list[Finding] | None:
    """The report, once it is there; its file and the log have then done their duty."""
    with contextlib.suppress(OSError):
        # Listing a folder makes network file systems look again.
        list(probe.report.parent.iterdir())
    try:
        report = Report.model_validate(json.loads(probe.report.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
    for file in (probe.report, probe.log):
        file.unlink(missing_ok=True)
    seen = ok(f"ran on {report.host}, and its report in {probe.report.parent} is seen from here")
    return [_finding(probe, finding, report.host) for finding in (seen, *report.findings)]


def _lost(probe: Probe, job_id: int, record: JobRecord | None) -> Finding:
    """A job that ended without a report."""
    state = record.state if record else "unknown to SLURM"
    if log := tail(probe.log):
        last = " | ".join(log.splitlines()[-3:])
        return _finding(probe, failed(f"job {job_id} is {state}: {last}", f"see {probe.log}"))
    return _finding(
        probe,
        failed(
            f"job {job_id} is {state}, with neither report nor log",
            f"is {probe.log.parent} on a disk that its node sees, and may write to?",
        ),
    )


def _finding(probe: Probe, finding: Finding, host: str = "") -> Finding:
    place = f" on {host}" if host else ""
    what = f", {finding.hop}" if finding.hop else ""
    return finding.model_copy(update={"hop": f"job for {probe.name}{place}{what}"})


@contextlib.contextmanager
def _marker(folder: Path) -> Iterator[str]:
    """A file in a folder, by which another host can tell that the folder is the same one."""
    with tempfile.NamedTemporaryFile(prefix=".auto3dseg-doctor-", dir=folder) as file:
        yield file.name


@contextlib.contextmanager
def _listening(interface: str | None) -> Iterator[str]:
    """Greet whoever connects, on the interface that Dask would use; yields the address."""
    try:
        address = address_of(interface)
    except CellmapError:
        address = address_of(None)  # This host has none of that name; its nodes may.
    with socket.create_server((address, 0)) as server:

        def greet() -> None:
            with contextlib.suppress(OSError):  # The socket was closed: all is said.
                while True:
                    connection, _ = server.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.sendall(GREETING)

        threading.Thread(target=greet, daemon=True).start()
        yield f"{address}:{server.getsockname()[1]}"

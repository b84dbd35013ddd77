"""The workers of a stage as SLURM jobs: a Dask cluster whose dead jobs are replaced.

dask-jobqueue keeps the book of Dask workers and jobs; what a job asks for, how it is submitted
and whether it lives is :mod:`cellmap_core.cluster`'s. What the scheduler and the workers say to
each other is encrypted with certificates of this run alone, which reach the jobs by their
environment: no key lies on a disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

from dask_jobqueue.slurm import SLURMCluster, SLURMJob
from distributed.core import Status
from distributed.deploy.spec import ProcessInterface
from distributed.security import Security

from cellmap_core.classes import suggest
from cellmap_core.cluster.attempts import Loss
from cellmap_core.cluster.here import KEEPER, LOG_VARIABLE, SCRATCH_VARIABLE
from cellmap_core.cluster.jobs import JobSpec, Resources, comment_of, run_of
from cellmap_core.cluster.profiles import Site, Stage
from cellmap_core.cluster.slurm import JobRecord, Slurm, cause_of, log_of_job, tail
from cellmap_core.cluster.states import End, Phase
from cellmap_core.cluster.uses import JobUse
from cellmap_core.errors import (
    CellmapError,
    ProfileError,
    SchedulerUnavailable,
    StageJobsError,
    SubmissionRefused,
)
from tasks.hand_overs import HandOvers

# A job that was just submitted may be missing from the queue for a moment.
_UNSEEN_SECONDS = 30.0
# A worker gives up when it does not reach the run's own job for this long.
_DEATH_SECONDS = 120
_LOOK_SECONDS = 5.0
# In which the end of a job is known to the cluster, as a rule.
_LOSS_LOOKS = 10
# A worker needs some of them to say its last words.
_LET_GO_SECONDS = 30.0
# Of a twentieth of a second each; the scheduler learns in the next one as a rule.
_FETCHED_LOOKS = 100
#: Workers tell by it the most memory that each of them has taken so far, in bytes.
PEAK_METRIC = "peak_bytes"
_LOOK_VARIABLE = "AUTO3DSEG_POLL_SECONDS"


class StageJob(SLURMJob):
    """One job with the Dask worker (or workers) in it."""

    def __init__(
        self, scheduler: Any = None, name: Any = None, *, slurm: Slurm, spec: JobSpec, **more: Any
    ) -> None:
        super().__init__(scheduler=scheduler, name=name, **more)
        self._slurm = slurm
        command = (*spec.command, str(scheduler), "--name", str(name))
        self._spec = spec.model_copy(update={"command": command})
        self.submitted = monotonic()
        self.refused: SubmissionRefused | None = None

    async def start(self) -> None:
        """Submit the job; that the cluster does not answer is found by the next look."""
        try:
            self.job_id = await asyncio.to_thread(self._slurm.submit, self._spec)
        except SchedulerUnavailable:
            self.job_id = None
        except SubmissionRefused as error:
            self.refused = error
        self.submitted = monotonic()
        await ProcessInterface.start(self)

    async def close(self) -> None:
        """Cancel the job."""
        if self.job_id is not None and self.status != Status.closed:
            # Where the cluster does not answer, its worker ends by itself without a scheduler.
            with contextlib.suppress(SchedulerUnavailable):
                await asyncio.to_thread(self._slurm.cancel, [self.job_id])
        await ProcessInterface.close(self)

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return log_of_job(self._spec.log, self.job_id)


class StageCluster(SLURMCluster):
    """A Dask scheduler in this process and its workers in jobs of one stage.

    Parameters
    ----------
    site : Site
        The cluster's profile.
    stage : str
        Whose jobs they are.
    run_id, run_name : str
        Of the flow run.
    tell : callable
        Gets a line about what happens to a job: why it waits, where it runs, how it ended.
    """

    job_cls = StageJob

    def __init__(
        self, site: Site, stage: Stage, run_id: str, run_name: str, tell: Callable[[str], None]
    ) -> None:
        self.resources = site.of(stage)
        self._slurm, self._tell, self._site = Slurm(), tell, site
        self._of = (run_id, stage)
        self._wanted, self._said = 0, dict[int, str]()
        self._unborn, self._born, self._leaving = 0, set[str](), set[str]()
        self._losses: dict[str, Loss] = {}
        self._peaks: dict[str, dict[Any, int]] = defaultdict(dict)
        self._uses: list[JobUse] = []
        self._failure: StageJobsError | None = None
        security = Security.temporary()
        spec = _spec(site, stage, run_id, run_name, self.resources, security)
        interface = site.network_interface
        _check_interface(interface)
        host = {"interface": interface} if interface else {}
        super().__init__(
            name=f"{run_id[:8]}-{stage}",
            security=security,
            protocol="tls://",
            scheduler_options={"dashboard_address": "127.0.0.1:0", **host},
            cores=1,
            memory="1GB",
            processes=1,
            slurm=self._slurm,
            spec=spec,
        )
        outlasted = HandOvers()
        self.scheduler.add_plugin(outlasted)
        self.hand_overs = outlasted.times
        self._stop = threading.Event()
        self._tending = threading.Thread(target=self._keep_tending, daemon=True)
        self._tending.start()

    def expect(self, jobs: int) -> None:
        """Have so many jobs from now on, up to the profile's number; idle ones go."""
        self._wanted = min(jobs, self.resources.jobs)

    def check(self) -> None:
        """Raise what keeps this stage from having jobs.

        Raises
        ------
        StageJobsError
            The cluster refuses them, or they end before they begin to work.
        """
        if self._failure is not None:
            raise self._failure

    def close(self, timeout: float | None = None) -> Any:
        """Let the jobs end, cancel those that do not, and end the scheduler."""
        if not self._stop.is_set():
            self._stop.set()
            self._tending.join(timeout=_DEATH_SECONDS)
            # However a job goes, it must not keep the others of the run from going.
            with contextlib.suppress(CellmapError, OSError), _quiet_scheduler():
                self.sync(self._let_go)
        with _quiet_scheduler():
            return super().close(timeout)

    async def _let_go(self) -> None:
        """Ask all workers to end, so that jobs that did their work end as such."""
        self._wanted = 0
        self._seen()
        await self._close_workers(list(self.scheduler.workers))
        deadline = monotonic() + _LET_GO_SECONDS
        while set(self.workers) & self._born and monotonic() < deadline:
            await asyncio.sleep(_look_seconds() / 2)
            await self._tend()

    def dismiss(self, job_id: int) -> None:
        """Give a job no more work, and let it end: its time is nearly over."""
        names = {name for name, job in self.workers.items() if job.job_id == job_id}
        self._leaving |= names
        workers = [w.address for w in self.scheduler.workers.values() if _job_name(w.name) in names]
        self.sync(self._close_workers, workers)

    async def _close_workers(self, addresses: list[str]) -> None:
        """Take workers off the scheduler, once it knows that their results were fetched.

        To be retired they would hand those to another worker, and there may be none.
        """
        for address in addresses:
            worker = self.scheduler.workers.get(address)
            for _ in range(_FETCHED_LOOKS):
                if worker is not None and worker.has_what:
                    await asyncio.sleep(0.05)
            await self.scheduler.remove_worker(address, stimulus_id="its job ends", close=True)

    def loss_of(self, worker: Any) -> Loss:
        """Return why a worker ended, by its name: with its job as a rule, else alone."""
        name = _job_name(worker)
        for look in range(_LOSS_LOOKS):
            if name in self._losses:
                return self._losses[name]
            # Where one of a job's processes died, the others still work.
            others = [w for w in self.scheduler.workers.values() if _job_name(w.name) == name]
            if look > 1 and others:
                return Loss(end=End.FAILED, said="its worker process died; out of memory?")
            self._stop.wait(_look_seconds())
        return Loss(end=End.UNKNOWN, said="its job was lost")

    def uses(self) -> list[JobUse]:
        """What the jobs that have ended took."""
        return self._uses

    def _get_worker_security(self, _: Any) -> None:
        """No key file on a disk: the workers find theirs in their environment."""

    def _keep_tending(self) -> None:
        answers = True
        while not self._stop.wait(_look_seconds()):
            try:
                self.sync(self._tend)
                answers = True
            except SchedulerUnavailable as error:
                if answers:
                    self._tell(f"waiting for the cluster: {error}")
                answers = False
            except Exception as error:  # noqa: BLE001 - a thread's error is nobody's to see
                if not self._stop.is_set():
                    self._tell(f"the jobs of {self._of[1]} cannot be looked after: {error!r}")

    async def _tend(self) -> None:
        """Look once: forget dead jobs, cancel strays and idle ones, submit what is missing."""
        if self._wanted == 0 and not self.workers:
            return
        jobs = await asyncio.to_thread(self._slurm.jobs)
        own = {i: job for i, job in jobs.items() if run_of(job.comment) == self._of}
        for name, job in list(self.workers.items()):
            record = own.get(job.job_id) if job.job_id is not None else None
            if record is not None and record.phase is not Phase.ENDED:
                self._tell_once(record)
            elif record is not None or monotonic() - job.submitted > _UNSEEN_SECONDS:
                await self._forget(name, job, record)
            elif job.job_id is None:
                await self._forget(name, job, None)
        await self._cancel_strays(own)
        staying = len(self.worker_spec) - len(self._leaving)
        await self._dismiss_idle(staying - self._wanted)
        for _ in range(self._wanted - staying if self._failure is None else 0):
            self.worker_spec.update(self.new_worker_spec())
        await self._correct_state()

    async def _dismiss_idle(self, surplus: int) -> None:
        """Let idle jobs go: those that wait are cancelled, those that run end by themselves."""
        for name in self._idle()[: max(0, surplus)]:
            if name in self._born:
                self._leaving.add(name)
                there = self.scheduler.workers.values()
                await self._close_workers([w.address for w in there if _job_name(w.name) == name])
            else:
                del self.worker_spec[name]

    async def _forget(self, name: Any, job: StageJob, record: JobRecord | None) -> None:
        """Take a dead job off the book, so that another takes its place."""
        self.workers.pop(name, None)
        self.worker_spec.pop(name, None)
        self._leaving.discard(name)
        cause = await asyncio.to_thread(cause_of, record, job.log)
        said = str(record) if record else f"job {job.job_id} is gone"
        if cause is End.OUT_OF_MEMORY:
            said += "" if "MEMORY" in said else ", out of memory"
            # Another would end in the same way; who still has work for it asks again.
            self._wanted = max(0, self._wanted - 1)
        self._losses[name] = Loss(end=cause, said=said)
        if record is not None:
            peak = sum(self._peaks.pop(name, {}).values())
            self._uses.append(_use(record, cause, self._of[1], self.resources, peak or None))
            self._tell(said)
        self._unborn = 0 if name in self._seen() else self._unborn + (job.job_id is not None)
        if job.refused is not None:
            self._failure = StageJobsError(f"no job for {self._of[1]}: {job.refused}")
        elif self._unborn >= self._site.fruitless_jobs:
            self._failure = StageJobsError(
                f"{self._unborn} jobs of {self._of[1]} in a row ended before they began to work; "
                f"the last: {said}; {job.log} ends with: {tail(job.log)[-800:] or 'nothing'}",
                "",
                "see the profile's setup and environment",
            )
        await job.close()

    def _seen(self) -> set[str]:
        """Names of the jobs whose workers have come; what those say of themselves is kept."""
        for worker in self.scheduler.workers.values():
            job = _job_name(worker.name)
            self._born.add(job)
            self._peaks[job][worker.name] = worker.metrics.get(PEAK_METRIC, 0)
        return self._born

    async def _cancel_strays(self, own: dict[int, JobRecord]) -> None:
        """Cancel jobs whose submission seemed to have failed: nobody counts on them."""
        self._seen()
        known = {job.job_id for job in self.workers.values()}
        if None in known or len(self.workers) < len(self.worker_spec):
            return
        strays = [i for i, job in own.items() if job.phase is not Phase.ENDED and i not in known]
        if strays:
            await asyncio.to_thread(self._slurm.cancel, strays)

    def _idle(self) -> list[Any]:
        """Names of the jobs without work: those that wait in the queue first."""
        busy = {_job_name(w.name) for w in self.scheduler.workers.values() if w.processing}
        seen = self._seen()
        idle = (n for n in self.worker_spec if n not in busy | self._leaving)
        return sorted(idle, key=lambda n: n in seen)

    def _tell_once(self, record: JobRecord) -> None:
        said = str(record)
        if self._said.get(record.job_id) != said:
            self._said[record.job_id] = said
            self._tell(said)


def _spec(
    site: Site, stage: Stage, run_id: str, run_name: str, asked: Resources, security: Security
) -> JobSpec:
    """A job of a stage; the scheduler's address and a name come last."""
    # Trainings and ensembles are one piece of work a job, with all its cores.
    workers = asked.cores if stage in ("convert", "analyze") else 1
    log = (site.log_dir / f"{run_id[:8]}-{stage}.%j.log").absolute()
    command = [
        site.python or sys.executable, "-m", "distributed.cli.dask_worker",
        "--nthreads=1", f"--nworkers={workers}", "--memory-limit=0", "--no-dashboard",
        "--nanny" if workers > 1 else "--no-nanny", f"--death-timeout={_DEATH_SECONDS}",
        "--protocol=tls",
    ]  # fmt: skip
    if site.network_interface:
        command.append(f"--interface={site.network_interface}")
    if workers > 1:
        # It leaves in time; its unfinished item begins again in the next job.
        command.append(f"--lifetime={asked.minutes * 60 - site.warn_seconds}s")
    threads = str(max(1, asked.cores // workers))
    environment = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        **site.environment,
        **_certificates(security),
        LOG_VARIABLE: str(log),
    }
    if site.scratch:
        environment[SCRATCH_VARIABLE] = str(site.scratch)
    return JobSpec(
        name=f"{stage} {run_name}",
        command=tuple(command),
        resources=asked,
        comment=comment_of(run_id, stage),
        log=log,
        working_dir=Path.cwd(),
        setup=site.setup,
        environment=environment,
        warn_seconds=site.warn_seconds,
        warn_signal="USR1",
        body=KEEPER,
    )


def _certificates(security: Security) -> dict[str, str]:
    """What a worker needs to be believed, as Dask's settings of its environment."""
    prefix = "DASK_DISTRIBUTED__COMM__"
    return {
        f"{prefix}REQUIRE_ENCRYPTION": "True",
        f"{prefix}TLS__CA_FILE": security.tls_ca_file,
        f"{prefix}TLS__WORKER__CERT": security.tls_worker_cert,
        f"{prefix}TLS__WORKER__KEY": security.tls_worker_key,
    }


@contextlib.contextmanager
def _quiet_scheduler() -> Iterator[None]:
    """Without Dask's tracebacks of connections that are closed on purpose."""
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_interface(name: str | None) -> None:
    there = [there for _, there in socket.if_nameindex()]
    if name is not None and name not in there:
        raise ProfileError(
            f"network_interface: no {name!r} on {socket.gethostname()}", suggest(name, there)
        )


def _job_name(worker: Any) -> str:
    """The job of a worker by its name, run-stage-number: several in one job add their own."""
    return "-".join(str(worker).split("-")[:3])


def _use(record: JobRecord, cause: End, stage: Stage, asked: Resources, peak: int | None) -> JobUse:
    return JobUse(
        stage=stage,
        job_id=record.job_id,
        node=record.node,
        queue_seconds=record.queue_seconds,
        run_seconds=record.run_seconds,
        cores=asked.cores,
        gpus=asked.gpus,
        ended=record.ended.astimezone() if record.ended else None,
        peak_host_bytes=peak,
        end=str(cause),
    )


def _look_seconds() -> float:
    return float(os.environ.get(_LOOK_VARIABLE, _LOOK_SECONDS))

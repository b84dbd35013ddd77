"""Prefect's work pool of type ``slurm``: each flow run is one job of the cluster.

``prefect worker start --pool auto3dseg`` runs it, on a login node, a service node, or as a job
of its own. It speaks ``sbatch``, ``squeue``, ``scontrol``, ``scancel`` (and ``sacct`` where
there is one) and imports nothing heavy.

What it keeps to, whatever happens:

- A flow run has one job. Prefect's server lets one worker alone take a run, the job's comment
  names the run, and a run that was submitted before is looked for before it is submitted again.
- A run ends only when the cluster says that its job ended. A controller that does not answer
  says nothing, and a state this program does not know is no end.
- What the cluster took away (node failure, preemption, wall time) goes on in another job; what
  a person or the work itself ended does not.
- A worker that comes back follows its own runs, and those of workers that are gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import anyio
import anyio.abc
import httpx
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.exceptions import InfrastructureNotFound, ObjectNotFound
from prefect.settings import get_current_settings
from prefect.states import AwaitingRetry, Cancelled, Scheduled
from prefect.utilities.slugify import slugify
from prefect.workers.base import (
    BaseJobConfiguration,
    BaseVariables,
    BaseWorker,
    BaseWorkerResult,
)
from pydantic import Field

from cellmap_core.cluster.attempts import memory_remedy
from cellmap_core.cluster.check import check_site
from cellmap_core.cluster.here import LOG_VARIABLE
from cellmap_core.cluster.jobs import JobSpec, comment_of, run_of
from cellmap_core.cluster.profiles import (
    LOGS_VARIABLE,
    SITE_VARIABLE,
    Site,
    named_site,
    read_site,
)
from cellmap_core.cluster.slurm import JobRecord, Slurm, cause_of, log_of_job, tail
from cellmap_core.cluster.states import End, Phase
from cellmap_core.errors import CellmapError, ProfileError, SchedulerUnavailable
from cellmap_core.models import HANDED_ON
from cellmap_core.paths import expand_path
from cellmap_core.proxies import reach_directly

R = TypeVar("R")

# Well inside MinJobAge (300 s by default), for which the controller remembers a job that ended.
_POLL_SECONDS = 10.0
_POLL_VARIABLE = "AUTO3DSEG_POLL_SECONDS"
# Prefect's runner in the job ends a run that is cancelled; this long after, the job is ended.
_CANCEL_GRACE_SECONDS = 60.0
# A job that handed its run on ends; nodes may clean up after it for a while.
_ENDING_SECONDS = 300.0
# A run that another worker is just submitting has no job yet.
_SUBMITTING_SECONDS = 90.0
# Looks at the queue between two looks for runs that nobody follows.
_ADOPT_EVERY = 6
# At a time: two hundred runs at once must be neither two hundred processes nor two hundred
# writers of one SQLite database, which answers "locked" then.
_COMMANDS = 4
_SUBMISSIONS = 4
# A server that is away for as long as this is away for good.
_SERVER_TRIES = 20
_SERVER_SECONDS = 5.0
# Calls of squeue in which a job is missed before it counts as forgotten.
_MISSES = 2
_LIVE = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)


class SlurmVariables(BaseVariables):
    """What a deployment or a run may set; the site profile says the rest."""

    site: str | None = Field(
        None,
        title="Site profile",
        description=f"YAML file of the cluster (default: the worker's {SITE_VARIABLE})",
    )
    working_dir: str | None = Field(
        None, description="Folder the job starts in (default: where the worker was started)"
    )
    partition: str | None = Field(None, description="Partition of the run's own job")
    account: str | None = Field(None, description="Account to charge the run's own job")
    qos: str | None = Field(None, description="Quality of service of the run's own job")
    constraint: str | None = Field(None, description="Features the node must have")
    cores: int | None = Field(None, description="Cores of the run's own job")
    memory_gb: float | None = Field(None, description="Memory of the run's own job in GB")
    hours: float | None = Field(None, description="Wall time of the run's own job in hours")


class SlurmJobConfiguration(BaseJobConfiguration):
    """The values of `SlurmVariables` for one run."""

    site: str | None = None
    working_dir: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    cores: int | None = None
    memory_gb: float | None = None
    hours: float | None = None

    @staticmethod
    def _base_flow_run_command() -> str:
        return shlex.join([sys.executable, "-m", "deployments.flow_job"])

    def profile(self) -> Site:
        """The site profile with what this run changes of the run's own job.

        Raises
        ------
        ProfileError
            There is none, or a value is not valid.
        """
        path = self.site or os.environ.get(SITE_VARIABLE)
        if not path:
            raise _no_profile()
        site = read_site(named_site(path))
        names = ("partition", "account", "qos", "constraint", "cores", "memory_gb", "hours")
        changed = {n: v for n in names if (v := getattr(self, n)) is not None}
        return site.with_stage("flow", changed)

    def _folder(self) -> Path:
        """Return the folder that the job starts in, from which its log's path starts too."""
        return expand_path(self.working_dir) if self.working_dir else Path.cwd()

    def log(self, flow_run: FlowRun) -> Path:
        """Return the log of a run's own job; ``%j`` stands for the job's id.

        Raises
        ------
        ProfileError
            There is no profile, or a value in it is not valid.
        """
        return log_of(self.profile(), self._folder(), flow_run)

    def job(self, flow_run: FlowRun) -> JobSpec:
        """The job of a run.

        Raises
        ------
        ProfileError
            A value cannot be put to SLURM.
        """
        site = self.profile()
        here = self._folder()
        if not here.is_dir():
            raise ProfileError(f"working_dir: no folder {here}", "one that every node sees")
        environment = {k: str(v) for k, v in self.env.items() if v is not None}
        path = named_site(self.site or os.environ[SITE_VARIABLE]).absolute()
        environment[SITE_VARIABLE] = str(path)
        environment[LOGS_VARIABLE] = str((here / site.log_dir).absolute())
        environment[LOG_VARIABLE] = str(log_of(site, here, flow_run))
        try:
            command = shlex.split(self.command or self._base_flow_run_command())
        except ValueError as error:
            raise ProfileError(
                f"command {self.command!r} ({error})", "a shell's quoting"
            ) from error
        return JobSpec(
            name=self.name or flow_run.name,
            command=tuple(_python(command, site)),
            resources=site.of("flow"),
            comment=comment_of(str(flow_run.id), "flow"),
            log=log_of(site, here, flow_run),
            working_dir=here,
            setup=site.setup,
            environment={**site.environment, **environment},
            warn_seconds=site.warn_seconds,
            warn_signal="USR1",
            requeue=True,
            mail=site.mail,
        )


def _no_profile() -> ProfileError:
    """Without one everything would run in the run's own small job."""
    return ProfileError(
        "no site profile",
        "",
        f"export {SITE_VARIABLE}=<deployments/sites/….yaml> where the worker is started",
    )


def _python(command: list[str], site: Site) -> list[str]:
    """The command with the site's own Python where it names the worker's."""
    own = command[:1] == [sys.executable] and site.python
    return [str(site.python), *command[1:]] if own else command


def log_of(site: Site, here: Path, flow_run: FlowRun) -> Path:
    """The log of a run's own job; ``%j`` stands for the job's id."""
    name = slugify(flow_run.name)[:40] or "run"
    return (here / site.log_dir / f"{name}-{str(flow_run.id)[:8]}.%j.log").absolute()


class SlurmWorkerResult(BaseWorkerResult):
    """The job that ran a flow run; what became of the run is Prefect's to know."""


class Queue:
    """The cluster's queue, looked at once for all runs that are followed."""

    def __init__(self, slurm: Slurm, seconds: float, warn: Callable[[str], None]) -> None:
        self._slurm, self._seconds, self._warn = slurm, seconds, warn
        self._looked = anyio.Event()
        self._looking = False
        self._jobs: dict[int, JobRecord] = {}

    async def watch(self) -> None:
        """Look, tell all who wait, and sleep; for as long as the worker runs."""
        answers = True
        while True:
            self._looking = True
            try:
                self._jobs = await anyio.to_thread.run_sync(self._slurm.jobs)
            except CellmapError as error:
                if answers:
                    self._warn(f"waiting for the cluster: {error}")
                answers = False
            else:
                answers = True
                told, self._looked = self._looked, anyio.Event()
                told.set()
            self._looking = False
            await anyio.sleep(self._seconds)

    async def look(self) -> dict[int, JobRecord]:
        """The jobs of this user, by a look that begins after this call."""
        for _ in range(2 if self._looking else 1):  # That under way began before.
            await self._looked.wait()
        return self._jobs


class SlurmWorker(BaseWorker[SlurmJobConfiguration, SlurmVariables, SlurmWorkerResult]):
    """A worker that runs flow runs as SLURM jobs."""

    type = "slurm"
    job_configuration = SlurmJobConfiguration
    job_configuration_variables = SlurmVariables
    _display_name = "SLURM"
    _description = "Runs each flow run as a job of a SLURM cluster, by sbatch and squeue."

    def __init__(self, *args: Any, name: str | None = None, **kwargs: Any) -> None:
        self._name_lock, own = (None, name) if name else _lasting_name()
        reach_directly(get_current_settings().api.url)
        super().__init__(*args, name=own, **kwargs)
        self._slurm = Slurm()
        self._seconds = float(os.environ.get(_POLL_VARIABLE, _POLL_SECONDS))
        self._queue = Queue(self._slurm, self._seconds, self._logger.warning)
        self._followed: dict[UUID, object] = {}
        self._cancelled: dict[UUID, datetime] = {}

    async def setup(self) -> None:
        """Begin to look at the queue, and to look after runs; refuse where none could be run."""
        try:
            _check_here()
        except CellmapError as error:
            raise SystemExit(f"error: {error}") from error
        await super().setup()
        # Created here: a limiter belongs to the event loop.
        self._commands = anyio.CapacityLimiter(_COMMANDS)
        self._submissions = anyio.CapacityLimiter(_SUBMISSIONS)
        assert self._runs_task_group is not None
        self._services = self._runs_task_group
        for service in (self._queue.watch, self._watch_cancellations, self._adopt_lost):
            self._services.start_soon(service)

    async def teardown(self, *exc_info: Any) -> None:
        """Stop looking; the jobs go on, and whoever comes back follows them."""
        if self._runs_task_group is not None:
            self._runs_task_group.cancel_scope.cancel()
        await super().teardown(*exc_info)

    async def run(
        self,
        flow_run: FlowRun,
        configuration: SlurmJobConfiguration,
        task_status: anyio.abc.TaskStatus[Any] | None = None,
    ) -> SlurmWorkerResult:
        """Submit a run's job and follow it to its end."""
        with self._following(flow_run.id):
            job_id = await self._submit(flow_run, configuration)
            if task_status is not None:
                task_status.started(str(job_id))
            await self._follow(flow_run, job_id, configuration)
        # What became of the run is told to Prefect already: 0 keeps the base class from a guess.
        return SlurmWorkerResult(identifier=str(job_id), status_code=0)

    @contextlib.contextmanager
    def _following(self, run_id: UUID) -> Iterator[None]:
        """Count a run as followed; the next job may be before the last one is done with."""
        self._followed[run_id] = mine = object()
        try:
            yield
        finally:
            if self._followed.get(run_id) is mine:
                del self._followed[run_id]

    async def kill_infrastructure(
        self,
        infrastructure_pid: str,
        configuration: SlurmJobConfiguration,
        grace_seconds: int = 30,
    ) -> None:
        """Cancel a run's job, if the job of that number is still this run's.

        Raises
        ------
        InfrastructureNotFound
            There is no such job any more.
        """
        flow_run = configuration._related_objects.get("flow-run")
        record = (await self._queue.look()).get(int(infrastructure_pid))
        ours = record and flow_run and _is_of(record, flow_run.id)
        if not ours or record is None or record.phase is Phase.ENDED:
            raise InfrastructureNotFound(f"no live job {infrastructure_pid} of this run")
        await self._call(self._slurm.cancel, [record.job_id])

    async def _submit_run(self, flow_run: FlowRun) -> None:
        """Submit a run when it is its turn."""
        async with self._submissions:
            await super()._submit_run(flow_run)

    async def _give_worker_labels_to_flow_run(self, flow_run_id: UUID) -> None:
        """Write down whose run it is; a server that is busy does not cost the run."""
        for _ in range(_SERVER_TRIES):
            with contextlib.suppress(httpx.HTTPError):
                return await super()._give_worker_labels_to_flow_run(flow_run_id)
            await anyio.sleep(_SERVER_SECONDS)
        return await super()._give_worker_labels_to_flow_run(flow_run_id)

    async def _call(self, function: Callable[..., R], *args: Any) -> R:
        """Run a command of SLURM beside the event loop."""
        return await anyio.to_thread.run_sync(partial(function, *args), limiter=self._commands)

    async def _submit(self, flow_run: FlowRun, configuration: SlurmJobConfiguration) -> int:
        """The job of a run: one that is there already, else a new one."""
        log = self.get_flow_run_logger(flow_run)
        spec, site = configuration.job(flow_run), configuration.profile()
        # Who was submitted before may still have a job: one that SLURM puts back into the queue,
        # or one whose worker went before it could write its number down.
        maybe_there = bool(flow_run.infrastructure_pid or flow_run.run_count)
        while True:
            if maybe_there and (record := await self._job_there(flow_run)) is not None:
                log.info("job %d is this run's already", record.job_id)
                return record.job_id
            try:
                await self._call(partial(check_site, ask=False), site, self._slurm, ("flow",))
                job_id = await self._call(self._slurm.submit, spec)
            except SchedulerUnavailable as error:
                log.warning("not submitted yet: %s", error)
                maybe_there = True  # The answer may have been lost, not the job.
                continue
            log.info("job %d submitted; its log: %s", job_id, log_of_job(spec.log, job_id))
            return job_id

    async def _job_there(self, flow_run: FlowRun) -> JobRecord | None:
        """A job that a run has already; one that handed the run on is waited for to end."""
        ending: float | None = None
        while (record := await self._job_of(flow_run.id)) is not None:
            own = str(record.job_id) == flow_run.infrastructure_pid
            if not own or record.phase is not Phase.RUNNING:
                return record
            if ending is None:
                ending = anyio.current_time()
                log = self.get_flow_run_logger(flow_run)
                log.info("job %d, which had this run before, has to end first", record.job_id)
            elif anyio.current_time() - ending > _ENDING_SECONDS:
                await self._retry(self._slurm.cancel, [record.job_id])
        return None

    async def _job_of(self, run_id: UUID) -> JobRecord | None:
        """The live job of a run."""
        jobs = (await self._queue.look()).values()
        live = [j for j in jobs if _is_of(j, run_id) and j.phase is not Phase.ENDED]
        return max(live, key=lambda job: job.job_id, default=None)

    async def _follow(
        self, flow_run: FlowRun, job_id: int, configuration: SlurmJobConfiguration
    ) -> None:
        """Wait for a job's end, tell the run's log of it, and see what becomes of the run."""
        log = self.get_flow_run_logger(flow_run)
        scheduled = await self._times_scheduled(flow_run.id)
        missed, said, record = 0, "", None
        while True:
            found = (await self._queue.look()).get(job_id)
            if found is None or not _is_of(found, flow_run.id):
                missed += 1
                if missed < _MISSES:
                    continue
                past = await self._call(self._slurm.past, job_id)
                record = past if past is not None and _is_of(past, flow_run.id) else record
                break
            missed, record = 0, found
            if found.phase is Phase.ENDED:
                break
            if (told := str(found)) != said:
                said = told
                log.info(told)
            if await self._end_cancelled(flow_run, found):
                break
        if scheduled == await self._times_scheduled(flow_run.id):
            await self._conclude(flow_run, job_id, record, configuration)
        else:
            # It was handed on, or retried: what becomes of it is its next job's to say.
            log.info(_ended(job_id, record))

    async def _end_cancelled(self, flow_run: FlowRun, record: JobRecord) -> bool:
        """End the job of a run that was cancelled; whether that was done."""
        since = self._cancelled.get(flow_run.id)
        if since is None:
            return False
        waited = (datetime.now(UTC) - since).total_seconds()
        if record.phase is Phase.RUNNING and waited < _CANCEL_GRACE_SECONDS:
            return False  # Prefect's own runner, in the job, is at it.
        await self._retry(self._slurm.cancel, [record.job_id])
        return True

    async def _conclude(
        self,
        flow_run: FlowRun,
        job_id: int,
        record: JobRecord | None,
        configuration: SlurmJobConfiguration,
    ) -> None:
        """Set the state of a run whose job ended, where the run did not do so itself."""
        await self._end_children(flow_run.id)
        said = _ended(job_id, record)
        self.get_flow_run_logger(flow_run).info(said)
        try:
            now = await self.client.read_flow_run(flow_run.id)
        except ObjectNotFound:
            return
        state = now.state
        if state is None or state.is_final() or state.is_scheduled():
            return
        if state.is_cancelling() or flow_run.id in self._cancelled:
            told = said if record and record.end else f"job {job_id} was cancelled with the run"
            await self._set(flow_run.id, Cancelled(message=told))
            return
        site, log = configuration.profile(), await self._log_of(flow_run, job_id, configuration)
        end = cause_of(record, log)
        if end is End.WALL_TIME and state.is_running():
            message = f"{said}; goes on in another job"
            await self._set(flow_run.id, Scheduled(name=HANDED_ON, message=message))
            return
        again = await self._times_again(flow_run.id)
        if end.goes_on and again < site.restarts:
            await self._set(flow_run.id, AwaitingRetry(message=f"{said}; goes on in another job"))
            return
        why = f"{said}; it was started again {again} times" if end.goes_on else said
        if end is End.OUT_OF_MEMORY:
            why = f"{said}: out of memory; {memory_remedy('flow', site)}"
        await self._propose_crashed_state(flow_run, _with_tail(why, log))

    async def _log_of(
        self, flow_run: FlowRun, job_id: int, configuration: SlurmJobConfiguration
    ) -> Path:
        """Return the log of a run's job: where it was asked to go, else where SLURM says."""
        log = log_of_job(configuration.log(flow_run), job_id)
        if log.is_file():
            return log
        with contextlib.suppress(CellmapError):
            told = (await self._call(self._slurm.details, job_id)).get("StdOut")
            return Path(told) if told else log
        return log

    async def _set(self, run_id: UUID, state: Any) -> None:
        """Set a state against Prefect's rules, which know nothing of jobs."""
        await self.client.set_flow_run_state(run_id, state, force=True)

    async def _times_again(self, run_id: UUID) -> int:
        """Return how often a run was started again after a failure.

        Hand-overs at a wall time are none, and who retries a run that ended begins anew.
        """
        states = await self.client.read_flow_run_states(run_id)
        states.sort(key=lambda state: state.timestamp)
        times, ended = 0, False
        for state in states:
            if state.name == "AwaitingRetry":
                times = 0 if ended else times + 1
            ended = state.is_final()
        return times

    async def _times_scheduled(self, run_id: UUID) -> int:
        """How often a run was put back to be started; 0 where it is deleted."""
        try:
            states = await self.client.read_flow_run_states(run_id)
        except ObjectNotFound:
            return 0
        return sum(state.is_scheduled() for state in states)

    async def _end_children(self, run_id: UUID) -> None:
        """Cancel jobs that a run started and can no longer use."""
        jobs = (await self._queue.look()).values()
        left = [
            job.job_id
            for job in jobs
            if _is_of(job, run_id, None)
            and not _is_of(job, run_id)
            and job.phase is not Phase.ENDED
        ]
        if left:
            await self._retry(self._slurm.cancel, left)

    async def _retry(self, function: Callable[..., Any], *args: Any) -> None:
        """Run a command until the cluster answers."""
        while True:
            try:
                await self._call(function, *args)
            except SchedulerUnavailable:
                await self._queue.look()
            else:
                return

    async def _watch_cancellations(self) -> None:
        """Ask Prefect which of the followed runs are to end; one question for all."""
        while True:
            await self._queue.look()
            if not self._followed:
                self._cancelled.clear()
                continue
            chosen = FlowRunFilter(
                id=FlowRunFilterId(any_=list(self._followed)),
                state=FlowRunFilterState(
                    type=FlowRunFilterStateType(any_=[StateType.CANCELLING, StateType.CANCELLED])
                ),
            )
            try:
                runs = await self.client.read_flow_runs(flow_run_filter=chosen)
            except Exception as error:  # noqa: BLE001 - the server may be away for a while
                self._logger.warning("cannot ask for cancelled runs: %r", error)
                continue
            now = datetime.now(UTC)
            self._cancelled = {run.id: self._cancelled.get(run.id, now) for run in runs}

    async def _adopt_lost(self) -> None:
        """Follow the runs of this worker's former life, and of workers that are gone."""
        while True:
            try:
                jobs = await self._queue.look()
                for run in await self._orphans():
                    self._services.start_soon(self._adopt, run, _best(jobs, run))
            except Exception as error:  # noqa: BLE001 - the server may be away for a while
                self._logger.warning("cannot look for runs to take up: %r", error)
            await anyio.sleep(_ADOPT_EVERY * self._seconds)

    async def _orphans(self) -> list[FlowRun]:
        """Live runs of this pool that nobody follows."""
        chosen = FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(_LIVE)))
        )
        pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[self._work_pool_name]))
        runs = await self.client.read_flow_runs(flow_run_filter=chosen, work_pool_filter=pool)
        workers = await self.client.read_workers_for_work_pool(self._work_pool_name)
        others = {
            w.name for w in workers if w.status == WorkerStatus.ONLINE and w.name != self.name
        }
        return [
            run
            for run in runs
            if run.id not in self._followed.keys() | self._submitting_flow_run_ids
            and (run.labels or {}).get("prefect.worker.name") not in others
        ]

    async def _adopt(self, flow_run: FlowRun, record: JobRecord | None) -> None:
        """Follow a run that was submitted by a worker that is gone."""
        assert flow_run.state is not None
        age = datetime.now(UTC) - flow_run.state.timestamp
        if record is None and age < timedelta(seconds=_SUBMITTING_SECONDS):
            return  # Another worker may be at it; the next look will tell.
        with self._following(flow_run.id):
            try:
                await self._take_up(flow_run, record)
            except Exception:
                self._logger.exception("cannot follow run %s", flow_run.id)

    async def _take_up(self, flow_run: FlowRun, record: JobRecord | None) -> None:
        configuration = await self.job_configuration.resolve_for_flow_run(
            flow_run,
            client=self.client,
            work_pool=self.work_pool,
            worker_name=self.name,
            worker_id=self.backend_id,
        )
        pid = flow_run.infrastructure_pid or ""
        job_id = record.job_id if record else int(pid) if pid.isdigit() else 0
        await self._give_worker_labels_to_flow_run(flow_run.id)
        if record is not None and pid != str(job_id):
            await self.client.update_flow_run(flow_run.id, infrastructure_pid=str(job_id))
        self.get_flow_run_logger(flow_run).info("worker %s follows job %d", self.name, job_id)
        await self._follow(flow_run, job_id, configuration)


def _check_here() -> None:
    """Refuse a host without SLURM's commands, and a profile that is not there or not valid."""
    if absent := [c for c in ("sbatch", "squeue", "scontrol", "scancel") if not shutil.which(c)]:
        raise SchedulerUnavailable(
            f"no command {', '.join(absent)} on this host",
            "SLURM's client commands",
            "start the worker where sbatch works, such as a login node",
        )
    # A run may name a profile of its own; that the worker's is forgotten is told all the same.
    if not os.environ.get(SITE_VARIABLE):
        raise _no_profile()
    read_site(named_site(os.environ[SITE_VARIABLE]))


def _is_of(record: JobRecord, run_id: UUID, stage: str | None = "flow") -> bool:
    """Whether a job is a run's: its own, or (stage None) any that the run started."""
    of = run_of(record.comment)
    return of is not None and of[0] == str(run_id) and stage in (None, of[1])


def _best(jobs: dict[int, JobRecord], run: FlowRun) -> JobRecord | None:
    """The job of a run: one that lives before one that ended, the later before the earlier."""
    own = [job for job in jobs.values() if _is_of(job, run.id)]
    return max(own, key=lambda job: (job.phase is not Phase.ENDED, job.job_id), default=None)


def _ended(job_id: int, record: JobRecord | None) -> str:
    """How a job ended, where, and how long it waited and ran."""
    if record is None or record.end is None:
        return f"job {job_id} is gone, and the cluster has no record of its end"
    return str(record)


def _with_tail(said: str, log: Path) -> str:
    """The end of the job's log below what is said, if it has one."""
    text = tail(log)
    return f"{said}\n\nThe end of {log}:\n{text}" if text else said


def _lasting_name() -> tuple[Any, str]:
    """A name that this worker has again when it comes back, and no other has meanwhile.

    Its number is held by a lock for as long as the process lives.
    """
    folder = Path(get_current_settings().home) / "workers"
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        lock = (folder / f"slurm-{host}-{number}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        return lock, f"slurm-{host}-{number}"
    return None, f"slurm-{host}-{os.getpid()}"

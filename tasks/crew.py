"""Who does the work of a stage: this machine's cores and GPUs, or jobs of a cluster.

A flow asks for the crew of a stage and gives it tasks; where they run is the site profile's
matter alone (:mod:`cellmap_core.cluster.profiles`), and without one they run here.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from distributed import Client, Worker, WorkerPlugin
from prefect import Task, get_client, get_run_logger
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectHTTPStatusError
from prefect.futures import PrefectFuture, as_completed
from prefect.settings import PREFECT_API_URL
from prefect.states import Crashed, State
from prefect_dask import DaskTaskRunner

from cellmap_core.cluster.attempts import Attempts, Loss
from cellmap_core.cluster.profiles import SITE_VARIABLE, Site, Stage, site_of
from cellmap_core.cluster.states import End
from cellmap_core.cluster.uses import JobUse, append_use
from cellmap_core.errors import StageJobsError, is_lost
from cellmap_core.machine import cores, gpus, peak_memory_bytes, shares
from cellmap_core.proxies import reach_directly

# A stage whose jobs are refused is found out between two of these.
_WAIT_SECONDS = 5.0
# SLURM waits for half a minute between asking a job to end and killing it.
_LAST_WORDS_SECONDS = 10.0


class Reporter(WorkerPlugin):
    """Has a worker tell what memory it takes, and before it goes all it has for Prefect."""

    def setup(self, worker: Worker) -> None:  # noqa: D102 - Dask's interface
        from tasks.stage_jobs import PEAK_METRIC

        # The node may have a proxy that the run's own job has not.
        reach_directly(PREFECT_API_URL.value())
        worker.metrics[PEAK_METRIC] = lambda _: peak_memory_bytes()

    def teardown(self, worker: Worker) -> Any:  # noqa: D102 - Dask's interface
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        async def drain() -> None:
            await EventsWorker.drain_all(timeout=_LAST_WORDS_SECONDS)
            await APILogWorker.drain_all(timeout=_LAST_WORDS_SECONDS)

        return drain()


class Crew(Protocol):
    """Runs tasks side by side, as many as it has slots for."""

    slots: int

    def submit(self, task: Task[..., Any], **parameters: Any) -> PrefectFuture[Any]:
        """Begin a task, in a slot that is free."""

    def run(self, task: Task[..., Any], saved: Callable[[], int], **parameters: Any) -> State[Any]:
        """Run one task to its end and return its state.

        ``saved`` returns a value that changes whenever the task has saved something that a
        second call would not do again.
        """

    def next_ended(self, running: Collection[PrefectFuture[Any]], left: int) -> PrefectFuture[Any]:
        """Wait until one of the tasks has ended; ``left`` are to do in all, these included."""

    def dismiss(self, job_id: int) -> None:
        """Give a job no more work that is about to end."""

    def lost(self, future: PrefectFuture[Any], error: BaseException) -> Loss:
        """Mark a task as crashed that died with its worker; return why the worker ended."""


class LocalCrew:
    """Shares this machine out: a slot has a GPU (or several), or some of the cores.

    GPUs that are too few for a whole share make one smaller share: what a training results in
    does not depend on how many GPUs share its batches, and neither does the memory of each.
    """

    def __init__(self, most: int, gpus_each: int, tell: Callable[[str], None]) -> None:
        devices = shares(gpus(), gpus_each)
        self.slots = max(1, min(most, len(devices) or cores()))
        self._threads = max(1, cores() // self.slots)
        self._free = [devices[n] if devices else () for n in range(self.slots)]
        if self._free and 0 < (few := len(self._free[-1])) < gpus_each:
            tell(
                f"{len(gpus())} GPUs are there and {gpus_each} are asked for each training: one "
                f"training at a time runs on {few} ({', '.join(self._free[-1])}), with the same "
                "result in more time"
            )
        self._taken: dict[PrefectFuture[Any], tuple[str, ...]] = {}

    def submit(self, task: Task[..., Any], **parameters: Any) -> PrefectFuture[Any]:
        """Begin a task with the threads and GPUs of a free slot, the largest there is."""
        mine = max(self._free, key=len)
        self._free.remove(mine)
        future = task.submit(**parameters, threads=self._threads, gpus=mine)
        self._taken[future] = mine
        return future

    def next_ended(self, running: Collection[PrefectFuture[Any]], left: int) -> PrefectFuture[Any]:
        """Wait for one, however it ends: its slot is free then."""
        ended = next(as_completed(list(running)))
        self._free.append(self._taken.pop(ended))
        return ended

    def run(self, task: Task[..., Any], saved: Callable[[], int], **parameters: Any) -> State[Any]:
        """Run one task in this process, which has all of the machine."""
        return task(**parameters, return_state=True)

    def dismiss(self, job_id: int) -> None:
        """Nothing ends here before its work does."""

    def lost(self, future: PrefectFuture[Any], error: BaseException) -> Loss:
        """Mark the task as crashed; why a process of this machine died, nobody tells."""
        loss = Loss(end=End.UNKNOWN, said="its worker process died")
        _mark_crashed(future, loss.said)
        return loss


class SiteCrew:
    """Jobs of a cluster, one for each slot; those that die are replaced."""

    def __init__(self, site: Site, stage: Stage, most: int | None) -> None:
        # Only here: on one machine none of this is loaded.
        from tasks.stage_jobs import StageCluster

        run = _flow_run()
        self._log = get_run_logger().info
        _warn_of_loopback()
        self.site, self.stage, self._resources = site, stage, site.of(stage)
        self.slots = min(most or self._resources.jobs, self._resources.jobs)
        self._cluster = StageCluster(site, stage, str(run.id), run.name, self._log)
        self._runner = DaskTaskRunner(cluster=self._cluster)

    def __enter__(self) -> SiteCrew:
        self._runner.__enter__()
        self.client.register_plugin(Reporter())
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            # Before the client goes: the workers' last words go by it.
            self._cluster.close()
        finally:
            self._runner.__exit__(*error)
            _ended.extend(self._cluster.uses())

    def submit(self, task: Task[..., Any], **parameters: Any) -> PrefectFuture[Any]:
        """Begin a task that takes all of a job."""
        return self._runner.submit(task, parameters={**parameters, "threads": None, "gpus": None})

    def next_ended(self, running: Collection[PrefectFuture[Any]], left: int) -> PrefectFuture[Any]:
        """Wait for one, with as many jobs as there is work for."""
        self._cluster.expect(left)
        while True:
            try:
                return _fetched(next(as_completed(list(running), timeout=_WAIT_SECONDS)))
            except TimeoutError:
                self._cluster.check()

    def run(self, task: Task[..., Any], saved: Callable[[], int], **parameters: Any) -> State[Any]:
        """Run one task in a job, and in another one where that was lost; see `Attempts`.

        Raises
        ------
        StageJobsError
            The cause makes another job useless, or jobs in a row saved nothing.
        """
        attempts = Attempts(self.stage, self.site, saved)
        while True:
            future = self._runner.submit(task, parameters=parameters)
            self.next_ended([future], 1)
            try:
                future.result(raise_on_failure=False)
            except Exception as error:
                if not is_lost(error):
                    raise
                loss = self.lost(future, error)
            else:
                return future.state
            if (why := attempts.refusal(loss)) is not None:
                raise StageJobsError(f"{task.name}: {why}")
            self._log(
                "%s: %s; it goes on in another job (for the %d. time)",
                task.name,
                loss.said,
                attempts.times,
            )

    def dismiss(self, job_id: int) -> None:
        """Let a job go whose wall time is nearly over; another takes its place."""
        self._cluster.dismiss(job_id)

    def lost(self, future: PrefectFuture[Any], error: BaseException) -> Loss:
        """Mark the task as crashed; why its job ended, the cluster tells."""
        loss = self.loss_of(error)
        _mark_crashed(future, loss.said)
        return loss

    def loss_of(self, error: BaseException) -> Loss:
        """Return why the worker ended that an error of lost work names."""
        worker = getattr(error, "last_worker", None)  # KilledWorker alone names it.
        if worker is None:
            return Loss(end=End.UNKNOWN, said="its job was lost")
        return self._cluster.loss_of(worker.name)

    def hand_overs(self) -> Mapping[str, int]:
        """Return how many jobs each unfinished item has outlasted, by its key at Dask."""
        return self._cluster.hand_overs

    @property
    def client(self) -> Client:
        """Of its Dask scheduler, to spread items over."""
        return self._runner.client

    def expect(self, items: int) -> None:
        """Have jobs for so many items."""
        self._cluster.expect(math.ceil(items / self._resources.cores))

    def check(self) -> None:
        """Raise what keeps this crew from having jobs; see `StageCluster.check`."""
        self._cluster.check()


_current: ContextVar[SiteCrew | None] = ContextVar("crew", default=None)


#: Jobs of stages that have ended, until a stage has a work folder to write them down in.
_ended: list[JobUse] = []


def current() -> SiteCrew | None:
    """The crew of jobs that the running stage has; None on one machine."""
    return _current.get()


@contextmanager
def crew(
    stage: Stage, most: int | None = None, gpus_each: int = 1, work_dir: Path | None = None
) -> Iterator[Crew]:
    """The crew of a stage, for as long as the block lasts.

    Parameters
    ----------
    stage : str
        Of the site profile.
    most : int, optional
        Pieces of work at a time.
    gpus_each : int
        GPUs for each on this machine; a profile's stage says it for its jobs.
    work_dir : Path, optional
        Where it is written down what the jobs took.
    """
    site = site_of()
    if site is None:
        yield LocalCrew(most or cores(), gpus_each, get_run_logger().info)
        return
    try:
        with SiteCrew(site, stage, most) as jobs:
            token = _current.set(jobs)
            try:
                yield jobs
            finally:
                _current.reset(token)
    finally:
        while work_dir and _ended:
            append_use(work_dir, _ended.pop(0))


def _warn_of_loopback() -> None:
    host = urlsplit(PREFECT_API_URL.value() or "").hostname or ""
    if host == "localhost" or host.startswith("127."):
        get_run_logger().warning(
            "the Prefect server is at %s, which is another host on every node: only jobs on %s "
            "reach it; set PREFECT_API_URL to a name that the nodes know, or unset %s to run here",
            host,
            socket.gethostname(),
            SITE_VARIABLE,
        )


def _flow_run() -> Any:
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    return context.flow_run


def _fetched(future: PrefectFuture[Any]) -> PrefectFuture[Any]:
    """A future that has its result here, and no longer at the worker.

    Dask does what a worker has done again when that worker goes and somebody may still ask.
    """
    there = future.wrapped_future
    if there.status == "finished":
        future.wait()
        there.release()
    return future


def _mark_crashed(future: PrefectFuture[Any], said: str) -> None:
    """Prefect's retries do not see a lost worker, and leave its task running for ever."""
    with get_client(sync_client=True) as client:
        try:
            client.set_task_run_state(future.task_run_id, Crashed(message=said), force=True)
        except PrefectHTTPStatusError as error:
            # The worker was gone before the server had heard of the task.
            if error.response.status_code != HTTPStatus.NOT_FOUND:
                raise

"""Where work runs: the flow's Dask cluster, and items spread over it inside one task.

A Prefect task costs a fifth of a second to submit, a Dask item five thousandths: stages are
tasks, crops and cases are items.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# Read by distributed when it is imported: its start-up chatter is not a run's log.
os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "warning")

import dask.config
from distributed import CancelledError, Client, Future, KilledWorker, as_completed
from prefect.context import FlowRunContext
from prefect_dask import DaskTaskRunner

from cellmap_core.cluster.attempts import hours_remedy, memory_remedy
from cellmap_core.cluster.states import End
from cellmap_core.errors import LostWorkError
from cellmap_core.machine import cores, memory_bytes
from cellmap_core.models import Mapper, serial
from tasks import crew

dask.config.set(
    {
        # A worker that dies with an item is reported, not tried again behind Prefect's back.
        "distributed.scheduler.allowed-failures": 0,
        # Dask gives a worker up for good that is not back within 15 s, and a busy machine takes
        # longer to start one: the work would wait for ever. What is dead is replaced by its nanny
        # here, and by `StageCluster` on a cluster.
        "distributed.deploy.lost-worker-timeout": "1000 days",
    }
)
# What a worker may come to: its imports and the largest crop or case, in flat memory.
_WORKER_BYTES = 1 << 30
# Between two looks at what has ended.
_WAIT_SECONDS = 0.02


def task_runner() -> DaskTaskRunner:
    """The cluster of one machine: single-threaded workers on loopback.

    One a core, as far as the memory given (of the machine, the cgroup or the SLURM job) feeds
    them.
    """
    workers = max(1, min(cores(), memory_bytes() // _WORKER_BYTES))
    return DaskTaskRunner(
        cluster_class="distributed.LocalCluster",
        cluster_kwargs={
            "n_workers": workers,
            "threads_per_worker": 1,
            "memory_limit": 0,
            "host": "127.0.0.1",
            "dashboard_address": "127.0.0.1:0",
        },
    )


def mapper() -> Mapper:
    """Spread items over the stage's jobs, else over the flow's own cluster.

    Outside a flow run they are done here, one by one.
    """
    if (jobs := crew.current()) is not None:
        return Spread(jobs.client, jobs)
    context = FlowRunContext.get()
    runner = getattr(context, "task_runner", None)
    return Spread(runner.client) if isinstance(runner, DaskTaskRunner) else serial


class Spread:
    """A mapper over the workers of a Dask cluster; see :class:`cellmap_core.models.Mapper`.

    Parameters
    ----------
    client : Client
        Of the cluster.
    jobs : SiteCrew, optional
        Whose workers come and go with the items there are.
    """

    def __init__(self, client: Client, jobs: crew.SiteCrew | None = None) -> None:
        self._client, self._jobs = client, jobs
        self._outlasted: set[str] = set()

    def __call__(
        self,
        function: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        done: Callable[[Any], None] | None = None,
        lost: Callable[[Any, Exception], Any] | None = None,
    ) -> list[Any]:
        """Run ``function`` over ``items`` on the workers.

        Raises
        ------
        LostWorkError, KilledWorker
            An item was lost with its worker, twice, and ``lost`` is not given.
        """
        results: dict[int, Any] = {}

        def take(number: int, result: Any) -> None:
            results[number] = result
            if done is not None:
                done(result)

        futures = self._client.map(function, list(items), pure=False)
        numbers = {future.key: number for number, future in enumerate(futures)}
        struck: list[int] = []
        most = self._jobs.site.fruitless_jobs if self._jobs is not None else 1
        for future in self._as_ended(futures, most):
            try:
                take(numbers[future.key], future.result())
            except KilledWorker:
                struck.append(numbers[future.key])
            except CancelledError:
                if future.key not in self._outlasted:
                    raise
                struck.append(numbers[future.key])
        for number in sorted(struck):
            # A worker takes what is queued on it along: alone, an item shows whose fault it was.
            try:
                result = self._alone(function, items[number])
            except (KilledWorker, LostWorkError) as error:
                if lost is None:
                    raise
                result = lost(items[number], error)
            take(number, result)
        return [results[number] for number in range(len(items))]

    def _alone(self, function: Callable[[Any], Any], item: Any) -> Any:
        """Return the result of an item by itself; again where the cluster took its job away."""
        taken = 0
        while True:
            future = next(self._as_ended([self._client.submit(function, item, pure=False)], 1))
            try:
                return future.result()
            except KilledWorker as error:
                if self._jobs is None:
                    raise
                loss, site = self._jobs.loss_of(error), self._jobs.site
                taken += 1
                if loss.end is not End.LOST or taken > site.restarts:
                    do = memory_remedy(self._jobs.stage, site)
                    ran_out = loss.end is End.OUT_OF_MEMORY
                    raise LostWorkError(
                        f"its worker was lost: {loss.said}", "", do if ran_out else ""
                    ) from error
            except CancelledError as error:
                if self._jobs is None or future.key not in self._outlasted:
                    raise
                raise LostWorkError(
                    "it takes longer than the wall time of its jobs",
                    "",
                    hours_remedy(self._jobs.stage, self._jobs.site),
                ) from error

    def _as_ended(self, futures: list[Future], most: int) -> Iterator[Future]:
        """Yield the futures as they end, with jobs for those that are left.

        One that outlasted ``most`` jobs is cancelled.
        """
        ends, left = as_completed(futures, loop=self._client.loop), len(futures)
        known = {future.key: future for future in futures}
        while left:
            if self._jobs is not None:
                self._jobs.check()
                self._jobs.expect(left)
                for key, times in list(self._jobs.hand_overs().items()):
                    if times >= most and key in known:
                        self._outlasted.add(key)
                        known.pop(key).cancel()
            batch = ends.next_batch(block=False)
            yield from batch
            left -= len(batch)
            if not batch:
                time.sleep(_WAIT_SECONDS)

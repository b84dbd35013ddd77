"""Where work runs: the flow's Dask cluster, and items spread over it inside one task.

A Prefect task costs a fifth of a second to submit, a Dask item five thousandths: stages are
tasks, crops and cases are items.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

# Read by distributed when it is imported: its start-up chatter is not a run's log.
os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "warning")
# A worker that dies with an item is reported, not tried again behind Prefect's back.
os.environ.setdefault("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "0")

from prefect.context import FlowRunContext
from prefect_dask import DaskTaskRunner

from cellmap_core.machine import cores
from cellmap_core.models import Mapper, serial


def task_runner() -> DaskTaskRunner:
    """The cluster of a workstation: one single-threaded worker a core, on loopback."""
    return DaskTaskRunner(
        cluster_class="distributed.LocalCluster",
        cluster_kwargs={
            "n_workers": cores(),
            "threads_per_worker": 1,
            "memory_limit": 0,
            "host": "127.0.0.1",
            "dashboard_address": "127.0.0.1:0",
        },
    )


def mapper() -> Mapper:
    """Spread items over the flow's cluster; outside a flow run them here, one by one."""
    context = FlowRunContext.get()
    runner = getattr(context, "task_runner", None)
    if not isinstance(runner, DaskTaskRunner):
        return serial
    client = runner.client

    def spread(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
        futures = client.map(function, list(items), pure=False)
        return (future.result() for future in futures)

    return spread

"""The house's Prefect task: what it retries, what it logs, and how it says "nothing to do"."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import State, Task, get_run_logger
from prefect import task as prefect_task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed

from cellmap_core.cluster.here import place
from cellmap_core.errors import CellmapError, may_pass
from cellmap_core.models import StageResult

P = ParamSpec("P")
R = TypeVar("R", bound=StageResult)

RETRIES = 3
RETRY_DELAYS_SECONDS = [5, 20, 60]


def house_task(name: str, *, run_name: str | None = None) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a Prefect task of a function that returns a stage result.

    It retries with backoff what may pass: I/O, connections, a training process ended from
    outside, a lost worker. Bad input fails at once, and without a traceback: the message of
    our own errors says it all. In a job of a cluster its log begins with the job, node and log.

    A task with failed items ends Failed, with the list in its state, and is not tried again: the
    rest is done, and the flow goes on with its result; see `result_of`.

    Prefect's cache is off. What is done is known from the files' receipts alone, so a task
    whose files were deleted runs again, and one killed at any point goes on where it was; a
    run that finds everything current ends in the state ``Cached`` and publishes its artifacts
    all the same.
    """

    def decorate(function: Callable[P, R]) -> Task[P, R]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> Any:
            if (here := place()) is not None:
                get_run_logger().info("%s runs in %s", name, here)
            result = function(*args, **kwargs)
            if result.failures:
                return Failed(message=result.report(), data=result)
            return Completed(name=result.state_name, message=result.tally(), data=result)

        return prefect_task(
            run,
            name=name,
            task_run_name=run_name,
            retries=RETRIES,
            retry_delay_seconds=RETRY_DELAYS_SECONDS,
            retry_condition_fn=_retry,
            cache_policy=NO_CACHE,
            persist_result=False,
        )

    return decorate


def result_of(state: State[R]) -> R:
    """The result of a task that has ended, also where some of its items failed.

    Raises
    ------
    Exception
        What the task raised, where it has no result.
    """
    outcome = state.result(raise_on_failure=False)
    return outcome if isinstance(outcome, StageResult) else state.result()


def _retry(_task: Any, _run: Any, state: Any) -> bool:
    try:
        outcome = state.result(raise_on_failure=False)
    except Exception as error:  # noqa: BLE001 - whatever the task raised is what we judge
        return may_pass(error)
    return isinstance(outcome, BaseException) and may_pass(outcome)


class _OneLine(logging.Filter):
    """Drops the traceback of our own errors, whose message says what to do."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], CellmapError):
            record.exc_info = None
        return True


for _name in ("prefect.task_runs", "prefect.flow_runs"):
    logging.getLogger(_name).addFilter(_OneLine())
# PREFECT_LOGGING_EXTRA_LOGGERS gives the library's logger its handlers, but leaves its level.
logging.getLogger("cellmap_core").setLevel(logging.INFO)

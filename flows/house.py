"""The house's Prefect flow: flat parameters from an option model, one end state, one shell.

Every flow is named ``auto3dseg``; the deployments (``full``, ``convert``, …) tell them apart.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

# Read by Prefect when it is imported: the library's log lines belong to the run.
os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "cellmap_core")
os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")

from prefect import Flow, State, get_client
from prefect import flow as prefect_flow
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Failed
from pydantic import Field

from cellmap_core import command_line
from cellmap_core.api_server import Api
from cellmap_core.cluster.here import place
from cellmap_core.cluster.profiles import site_of
from cellmap_core.cluster.starts import Start, job_run, note_start
from cellmap_core.errors import CellmapError, IncompleteError, PlanError
from cellmap_core.models import HANDED_ON, Frozen, StageResult
from cellmap_core.paths import Place, expand_path
from cellmap_core.work import saved_mark
from flows.server import configured_server, temporary_server
from flows.terminal import bars
from tasks.fanout import task_runner

M = TypeVar("M", bound=Frozen)

_DRAIN_SECONDS = 10


def auto3dseg(
    model: type[M], check: Callable[[M], object]
) -> Callable[[Callable[[M], StageResult]], Flow[..., Any]]:
    """Make a flow ``auto3dseg`` of a function of one option model.

    ``check`` refuses options that cannot work before anything is made.

    The flow's parameters are the model's fields (and ``config``, a YAML file of them), so the
    names, types, defaults and help are the same in the UI, in a deployment and on the command
    line. It ends Completed, or Failed with one message that lists what failed.
    """

    def decorate(run: Callable[[M], StageResult]) -> Flow[..., Any]:
        @functools.wraps(run)
        def body(**parameters: Any) -> State[Any]:
            try:
                options = _options(model, parameters)
                check(options)
                _note_start(options)
                return _end_state(run(options))
            except CellmapError as error:
                return Failed(message=str(error), data=error)

        body.__signature__ = _signature(model)  # type: ignore[attr-defined]
        # The model validates them in the body, where what is wrong ends the run with one line;
        # what Prefect refuses ends it with a traceback.
        return prefect_flow(
            body, name="auto3dseg", task_runner=task_runner(), validate_parameters=False
        )

    return decorate


def shell(
    flow: Flow[..., Any],
    model: type[M],
    check: Callable[[M], object],
    arguments: list[str] | None = None,
    show: Callable[[M], None] | None = None,
) -> int:
    """Run a flow from a command line, with no server needed.

    ``show`` prints what came of it, of all that did not fail, and of a plan that is too big.

    Returns
    -------
    int
        0 done; 1 something failed (listed); 2 the command line or its files are wrong.
    """
    program = f"python flows/{Path(sys.argv[0]).name}"
    try:
        options = command_line.parse(
            model, sys.argv[1:] if arguments is None else arguments, program
        )
        server = configured_server()
        check(options)
    except CellmapError as error:
        return command_line.fail(error, error.exit_code)
    try:
        with _api(server), bars():
            state = flow(**dict(options), return_state=True)
    except CellmapError as error:
        return command_line.fail(error, error.exit_code)
    except KeyboardInterrupt:
        return command_line.fail(Exception("interrupted; the same command goes on"), 130)
    if show is not None and (state.is_completed() or _worth_showing(state)):
        show(options)
    return _report(state)


def _worth_showing(state: State[Any]) -> bool:
    return isinstance(state.result(raise_on_failure=False), IncompleteError | PlanError)


def _report(state: State[Any]) -> int:
    if state.is_completed():
        print(state.message)
        return 0
    outcome = state.result(raise_on_failure=False)
    if isinstance(outcome, CellmapError):
        return command_line.fail(outcome, outcome.exit_code)
    return command_line.fail(Exception(state.message), 1)


def _options(model: type[M], parameters: dict[str, Any]) -> M:
    config = parameters.pop(command_line.CONFIG, None)
    if config is None:
        return command_line.merge(model, parameters, None)
    return command_line.merge(model, _explicit(model, parameters), expand_path(config))


def _explicit(model: type[Frozen], parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters somebody gave, as opposed to the defaults Prefect filled in."""
    context = FlowRunContext.get()
    if context and context.flow_run and context.flow_run.deployment_id:
        given = set(context.flow_run.parameters)
        return {name: value for name, value in parameters.items() if name in given}
    defaults = model()
    return {n: v for n, v in parameters.items() if v != getattr(defaults, n)}


def _note_start(options: Frozen) -> None:
    """Note in a job's folders that the run starts in it; refuse a run that does not get on.

    Raises
    ------
    NoProgressError
        Jobs in a row reached their wall time without the run having saved anything.
    """
    here, context = place(), FlowRunContext.get()
    if here is None or context is None or context.flow_run is None:
        return
    flow_run = context.flow_run
    if flow_run.deployment_id:
        name = str(flow_run.id)
        with get_client(sync_client=True) as client:
            states = client.read_flow_run_states(flow_run.id)
        states.sort(key=lambda state: state.timestamp)
        scheduled = [state.name for state in states if state.is_scheduled()]
        handed_on = scheduled[-1:] == [HANDED_ON]
    else:
        name, handed_on = job_run(here), os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    names = ("work_dir", "output_dir")
    folders = [folder for n in names if (folder := getattr(options, n, None)) is not None]
    mark = saved_mark(*folders)
    start = Start(run=name, job_id=here.job_id, handed_on=handed_on, mark=mark)
    note_start(folders[0], start, site_of())


def _end_state(result: StageResult) -> State[Any]:
    if result.failures:
        error = IncompleteError(result.report())
        return Failed(message=str(error), data=error)
    return Completed(name=result.state_name, message=result.tally(), data=result)


def _signature(model: type[Frozen]) -> inspect.Signature:
    fields = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.get_default(call_default_factory=True),
            annotation=Annotated[
                field.annotation, *field.metadata, Field(description=field.description)
            ],
        )
        for name, field in model.model_fields.items()
    ]
    config = inspect.Parameter(
        command_line.CONFIG,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[Place | None, Field(description="YAML file of options")],
    )
    return inspect.Signature([*fields, config])


@contextmanager
def _api(server: Api | None) -> Iterator[None]:
    """Use the Prefect server that is configured, else a temporary one for this run."""
    if server is not None:
        yield
        return
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    with temporary_server() as (address, auth):
        own = {PREFECT_API_URL: address, PREFECT_API_AUTH_STRING: auth}
        # The cluster's workers are processes of their own: by the environment they know it too.
        os.environ.update({setting.name: value for setting, value in own.items()})
        try:
            with temporary_settings(own):
                yield
        finally:
            for setting in own:
                del os.environ[setting.name]
            # What is still queued for the server would wait for it long after it stopped.
            APILogWorker.drain_all(timeout=_DRAIN_SECONDS)
            EventsWorker.drain_all(timeout=_DRAIN_SECONDS)

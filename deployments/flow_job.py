"""What the job of a flow run does: run it, and end as it ended.

``python -m deployments.flow_job`` with ``PREFECT__FLOW_RUN_ID`` in the environment. The exit
code is the run's: 0 done (or handed on to another job), 1 failed or cancelled. The cluster's
signals mean: ``USR1``, the wall time is nearly over: save, and let the run be scheduled again;
``TERM``, somebody takes the job away: save, and leave it to the worker what that means for
the run.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from types import FrameType
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.settings import get_current_settings
from prefect.states import AwaitingRetry, Scheduled

from cellmap_core.api_server import Api
from cellmap_core.cluster.jobs import run_of
from cellmap_core.cluster.slurm import Slurm
from cellmap_core.cluster.states import Phase
from cellmap_core.errors import CellmapError
from cellmap_core.machine import end_with_parent
from cellmap_core.models import HANDED_ON
from cellmap_core.proxies import reach_directly

_SIGTERM_EXIT = 128 + signal.SIGTERM


def main() -> int:
    """Run the flow run of the environment; give its exit code back."""
    settings = get_current_settings()
    reach_directly(settings.api.url)
    try:
        return _run()
    except httpx.HTTPError as error:
        print(f"error: {_trouble(Api.of(settings), error)}", file=sys.stderr, flush=True)
        return 1


def _trouble(api: Api | None, error: httpx.HTTPError) -> str:
    """What is wrong between this job and the server, in one line."""
    if api is None:
        return "PREFECT_API_URL is not set in this job; the worker hands its own to jobs"
    try:
        api.ask("admin/version")
    except CellmapError as why:
        return f"on {socket.gethostname()}: {why}"
    return " ".join(str(error).split())


def _run() -> int:
    """Run the flow run of the environment, unless another job has it."""
    run_id = UUID(os.environ["PREFECT__FLOW_RUN_ID"])
    job_id = os.environ.get("SLURM_JOB_ID", "")
    with get_client(sync_client=True) as client:
        if (other := _other_job(client.read_flow_run(run_id), job_id)) is not None:
            print(f"job {other} runs this flow run now; nothing to do here", flush=True)
            return 0
        with tempfile.TemporaryDirectory(prefix="auto3dseg-") as folder:
            received = _execute(folder)
        _end_children(run_id, job_id)
        return _conclude(client, run_id, received, job_id)


def _other_job(run: FlowRun, job_id: str) -> str | None:
    """The job that took this run over while SLURM kept this one in its queue."""
    owner = run.infrastructure_pid
    return owner if owner and job_id and owner != job_id else None


def _execute(folder: str) -> int:
    """Run Prefect's runner; the signal that ended it, or 0."""
    received: list[int] = []
    child = subprocess.Popen(
        [sys.executable, "-m", "prefect", "flow-run", "execute"],
        env={
            **os.environ,
            # Prefect's runner keeps a folder of one fixed name there, and /tmp is shared.
            "TMPDIR": folder,
            # The run stays as it is when this process is told to end: what that means is
            # decided where the cluster's word is known.
            "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "relinquish",
        },
        stdin=subprocess.DEVNULL,
        # Who kills this process means the run, which would submit jobs that nobody follows.
        preexec_fn=end_with_parent,
    )

    def forward(number: int, _: FrameType | None) -> None:
        if not received:
            received.append(number)
            child.send_signal(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, forward)
    child.wait()
    return received[0] if received else 0


def _conclude(client: SyncPrefectClient, run_id: UUID, received: int, job_id: str) -> int:
    state = client.read_flow_run(run_id).state
    if state is not None and state.is_final():
        return 0 if state.is_completed() else 1
    if received == signal.SIGUSR1:
        client.set_flow_run_state(run_id, _next_state(state, job_id), force=True)
        return 0
    return _SIGTERM_EXIT if received else 1


def _next_state(state: State[Any] | None, job_id: str) -> State[Any]:
    """Return the state of a run whose job reached its wall time.

    That the run is handed on does not count as a failure, unless it had not even begun.
    """
    if state is not None and state.is_running():
        message = f"job {job_id} reached its wall time; the run goes on in another job"
        return Scheduled(name=HANDED_ON, message=message)
    message = f"job {job_id} reached its wall time before the run began; it starts in another job"
    return AwaitingRetry(message=message)


def _end_children(run_id: UUID, job_id: str) -> None:
    """Cancel what the run started and did not end, because it was killed."""
    if not job_id:
        return
    slurm = Slurm()
    try:
        left = [
            job.job_id
            for job in slurm.jobs().values()
            if (of := run_of(job.comment)) is not None
            and of[0] == str(run_id)
            and of[1] != "flow"
            and job.phase is not Phase.ENDED
        ]
        slurm.cancel(left)
    except CellmapError as error:
        print(f"jobs of this run may be left: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

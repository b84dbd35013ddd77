"""A real service for the tests: Prefect server, process work pool, deployments, worker."""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deployments import service as services
from tests.conftest import ROOT


class Client:
    """What a user and the UI see of the service."""

    def __init__(self, home, service):
        self.home = home
        self.service = service

    def command(self, *arguments):
        """A Prefect command line, as a user types it."""
        return subprocess.run(
            [sys.executable, "-m", "prefect", *arguments],
            env=services.environment(self.home, self.service),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    def run(self, deployment, **parameters):
        """``prefect deployment run auto3dseg/… --watch``; the run has ended afterwards.

        Where the server is busy Prefect's watch may lose it from sight; the run goes on.
        """
        given = json.dumps(parameters)
        outcome = self.command(
            "deployment", "run", f"auto3dseg/{deployment}", "--watch", "--params", given
        )
        if outcome.returncode and "Stopped watching" in outcome.stdout + outcome.stderr:
            outcome.returncode = int(not self.ended(self.last_run().id).state.is_completed())
        return outcome

    def start(self, deployment, **parameters):
        """Create a run of a deployment of the project and give its id.

        The same as the command line does, without the seconds that takes to import Prefect.
        """

        async def create(client):
            found = await client.read_deployment_by_name(f"auto3dseg/{deployment}")
            run = await client.create_flow_run_from_deployment(found.id, parameters=parameters)
            return run.id

        return self.ask(create)

    def ended(self, run_id):
        """A run when it has ended, however long that takes."""
        while True:
            run = self.ask(lambda client: client.read_flow_run(run_id))
            if run.state.is_final():
                return run
            time.sleep(0.5)

    def ask(self, question):
        """Ask the server with Prefect's own client."""
        from prefect.client.orchestration import PrefectClient

        async def talk():
            async with PrefectClient(self.service.api_url) as client:
                return await question(client)

        return asyncio.run(talk())

    def last_run(self):
        from prefect.client.schemas.sorting import FlowRunSort

        async def read(client):
            runs = await client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)
            return runs[0]

        return self.ask(read)

    def task_states(self, run):
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

        async def read(client):
            chosen = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
            tasks = await client.read_task_runs(flow_run_filter=chosen)
            return {task.name: task.state for task in tasks}

        return self.ask(read)

    def logs(self, run):
        from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

        async def read(client):
            chosen = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
            lines, page = [], True
            while page:
                page = await client.read_logs(chosen, limit=200, offset=len(lines))
                lines += [log.message for log in page]
            return lines

        return self.ask(read)

    def artifacts(self, run):
        """The newest of each key."""
        from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
        from prefect.client.schemas.sorting import ArtifactSort

        async def read(client):
            chosen = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
            newest_first = ArtifactSort.UPDATED_DESC
            found = await client.read_artifacts(artifact_filter=chosen, sort=newest_first)
            return {artifact.key: artifact for artifact in reversed(found)}

        return self.ask(read)


@pytest.fixture(scope="session")
def client(tmp_path_factory):
    """The service, up for all tests of this folder; its path has a space on purpose."""
    home = tmp_path_factory.mktemp("service") / "a home"
    # Another port than that of tests that begin their service in the same moment.
    with pytest.MonkeyPatch.context() as patch:
        # A site's proxy, which knows nothing of this machine's loopback.
        for name in ("http_proxy", "HTTPS_PROXY", "all_proxy"):
            patch.setenv(name, "http://127.0.0.1:9")
        service = services.start(home, port=0)
    try:
        yield Client(home, service)
    finally:
        services.stop(home)
        assert not Path(f"/proc/{service.server_pid}").exists()

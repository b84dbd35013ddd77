"""The service on the test cluster: server, pool of type slurm, deployments, worker."""

import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from deployments import service as services
from tests.conftest import ROOT
from tests.deployments.conftest import Client
from tests.slurm.cluster import PATIENCE

#: Of Prefect: a server and workers that look more often than people need.
_PROFILE = """
active = "tests"
[profiles.tests]
PREFECT_WORKER_QUERY_SECONDS = "2"
PREFECT_WORKER_HEARTBEAT_SECONDS = "3"
PREFECT_SERVER_SERVICES_FOREMAN_LOOP_SECONDS = "3"
"""


@contextmanager
def slurm_service(cluster, home, profile, **environment):
    """Server, pool, deployments and a worker that looks every second, for a site profile.

    Parameters
    ----------
    home : Path
        A folder that is not there yet.
    profile : str
        The site profile; ``LOGS`` stands for a folder for the logs of jobs.
    environment : str
        More variables of the service and of this process while it is up.
    """
    site, settings = home / "a site.yaml", home / "prefect" / "profiles.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(_PROFILE)
    site.write_text(_with_logs(home, profile))
    own = {"AUTO3DSEG_SITE": str(site), "AUTO3DSEG_POLL_SECONDS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**cluster.environment, **own, **environment}.items():
            patch.setenv(name, value)
        started = services.start(home, "slurm", port=0)
        try:
            yield SlurmService(home, started, cluster)
        finally:
            services.stop(home)
            cluster.restore()


def _with_logs(home, profile):
    return profile.replace("LOGS", f'"{home / "job logs"}"')


class SlurmService(Client):
    """What a user sees of the service, and what tests do to its worker."""

    def __init__(self, home, service, cluster):
        super().__init__(home, service)
        self.cluster = cluster

    @contextmanager
    def changed_site(self, profile):
        """Another site profile for the runs that start in the block."""
        path = self.home / "a site.yaml"
        before = path.read_text()
        path.write_text(_with_logs(self.home, profile))
        try:
            yield
        finally:
            path.write_text(before)

    def kill_worker(self, number=signal.SIGKILL):
        os.killpg(self.service.worker_pid, number)
        os.waitpid(self.service.worker_pid, 0)

    def start_worker(self):
        self.service = services.start_worker(self.home, self.service)

    def deploy_probe(self):
        """The deployment ``probe/probe`` on the pool."""

        async def deploy(client):
            from tests.slurm.probe import probe

            flow_id = await client.create_flow(probe)
            return await client.create_deployment(
                flow_id,
                "probe",
                work_pool_name=services.POOL,
                entrypoint="tests.slurm.probe.probe",
                pull_steps=[
                    {"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}
                ],
            )

        return self.ask(deploy)

    def submit(self, deployment_id, folder, job_variables=None, name=None, **parameters):
        """Create a run and give its id."""

        async def create(client):
            run = await client.create_flow_run_from_deployment(
                deployment_id,
                parameters={"folder": str(folder), **parameters},
                job_variables=job_variables,
                name=name,
            )
            return run.id

        return self.ask(create)

    def workers(self):
        """The workers that poll the pool."""
        found = self.ask(lambda client: client.read_workers_for_work_pool(services.POOL))
        return [worker for worker in found if worker.status == "ONLINE"]

    def logs_of(self, run_id):
        return self.logs(self.read(run_id))

    def task_runs(self, run_id):
        """The tasks of a run."""
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

        chosen = FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))
        return self.ask(lambda client: client.read_task_runs(flow_run_filter=chosen))

    def task_run_states(self, run_id):
        """Names of the states of a run's tasks."""
        return [task.state_name for task in self.task_runs(run_id)]

    def submit_many(self, deployment_id, folder, count):
        """Create runs, one after another over one connection; gives their ids."""

        async def create(client):
            made = [
                await client.create_flow_run_from_deployment(
                    deployment_id, parameters={"folder": str(folder)}
                )
                for _ in range(count)
            ]
            return [run.id for run in made]

        return self.ask(create)

    def read_many(self, run_ids):
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

        chosen = FlowRunFilter(id=FlowRunFilterId(any_=list(run_ids)))
        return self.ask(lambda client: client.read_flow_runs(flow_run_filter=chosen, limit=200))

    def cancel_many(self, run_ids):
        from prefect.states import Cancelling

        async def cancel(client):
            for run_id in run_ids:
                await client.set_flow_run_state(run_id, Cancelling())

        return self.ask(cancel)

    def read(self, run_id):
        return self.ask(lambda client: client.read_flow_run(run_id))

    def wait(self, run_id, condition, timeout=PATIENCE):
        """Wait until a run is as the condition has it; gives the run."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            run = self.read(run_id)
            if condition(run):
                return run
            time.sleep(0.5)
        jobs = self.cluster.jobs()
        raise TimeoutError(f"{run.name} is {run.state!r}; jobs {jobs}\n{self.worker_log()}")

    def worker_log(self):
        """The end of what the workers wrote."""
        return (self.home / "logs" / "worker.log").read_text()[-3000:]

    def begun(self, run_id, folder):
        """Wait until the probe that works in a folder has begun; gives its run."""
        return self.wait(run_id, lambda run: run.infrastructure_pid and starts(folder))

    def done(self, run_id, timeout=PATIENCE):
        return self.wait(run_id, lambda run: run.state.is_final(), timeout)

    def cancel(self, run_id):
        from prefect.states import Cancelling

        self.ask(lambda client: client.set_flow_run_state(run_id, Cancelling()))

    def jobs_of(self, run_id, live=False):
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"}
        return [
            job
            for job in self.cluster.jobs()
            if str(run_id) in job["comment"] and not (live and job["state"] in ended)
        ]


def starts(folder):
    """Jobs in which a probe began, in order."""
    file = Path(folder) / "starts"
    return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []

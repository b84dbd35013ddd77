"""The worker on a real cluster: every way a job can go, and what becomes of its flow run."""

import json
import signal
from pathlib import Path

import pytest

from deployments import service as services
from tests.slurm.cluster import wait_until
from tests.slurm.service import SlurmService, starts

SITE = """
name: tests
log_dir: {logs}
warn_seconds: 60
stages:
  flow: {{cores: 1, memory_gb: 1, hours: 1}}
"""


@pytest.fixture(scope="module")
def service(cluster, tmp_path_factory):
    """The service with a worker that looks every second; its paths have spaces."""
    home = tmp_path_factory.mktemp("slurm") / "a home"
    home.mkdir()
    site = home / "a site.yaml"
    site.write_text(SITE.format(logs=json.dumps(str(home / "job logs"))))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        patch.setenv("AUTO3DSEG_SITE", str(site))
        patch.setenv("AUTO3DSEG_POLL_SECONDS", "1")
        patch.setenv("PREFECT_WORKER_QUERY_SECONDS", "2")
        started = services.start(home, "slurm")
        try:
            yield SlurmService(home, started, cluster)
        finally:
            services.stop(home)


@pytest.fixture(scope="module")
def probe(service):
    return service.deploy_probe()


def test_a_run_is_a_job_and_its_log_tells_how_it_went(service, probe, tmp_path):
    run_id = service.submit(probe, tmp_path)
    run = service.done(run_id)
    assert run.state.is_completed(), run.state.message
    (job,) = service.jobs_of(run_id)
    assert starts(tmp_path) == [job["id"]] == [run.infrastructure_pid]
    service.cluster.wait_for(job["id"], "COMPLETED")
    wait_until(lambda: any("ended COMPLETED" in line for line in service.logs(run)), list)
    lines = service.logs(run)
    assert any(f"job {job['id']} submitted; its log: " in line for line in lines)
    assert any("s in the queue and" in line for line in lines)
    log = next(line for line in lines if "its log: " in line).split("its log: ")[1]
    assert "Finished in state Completed" in Path(log).read_text()


def test_a_failed_run_is_a_failed_job(service, probe, tmp_path):
    run_id = service.submit(probe, tmp_path, fail=True)
    run = service.done(run_id)
    assert run.state.is_failed()
    service.cluster.wait_for(run.infrastructure_pid, "FAILED")
    assert "told to fail" in run.state.message


def test_what_is_hostile_stays_a_text(service, probe, tmp_path):
    hostile = "a name\n#SBATCH --time=1\n$(touch pwned) `touch pwned` \"'; touch pwned; %j"
    folder = tmp_path / "a dir $(touch pwned) 'quoted'"
    folder.mkdir()
    variables = {"working_dir": str(folder), "env": {"MARK": hostile, "name": hostile}}
    run_id = service.submit(
        probe, tmp_path / "out", name=hostile.replace("\n", " "), job_variables=variables
    )
    run = service.done(run_id)
    assert run.state.is_completed(), run.state.message
    assert (tmp_path / "out" / "mark").read_text() == hostile
    assert not list(tmp_path.rglob("pwned"))
    limit = service.cluster.run("scontrol", "-o", "show", "job", run.infrastructure_pid)
    assert "TimeLimit=01:00:00" in limit


def test_a_worker_killed_and_started_again_follows_its_run(service, probe, tmp_path):
    run_id = service.submit(probe, tmp_path, seconds=300)
    service.wait(run_id, lambda run: run.state.is_running())
    service.kill_worker()
    service.start_worker()
    run = service.read(run_id)
    wait_until(lambda: any(" follows job " in line for line in service.logs(run)), list)
    (tmp_path / "go").touch()
    run = service.done(run_id)
    assert run.state.is_completed()
    wait_until(lambda: any("ended COMPLETED" in line for line in service.logs(run)), list)
    assert len(service.jobs_of(run_id)) == len(starts(tmp_path)) == 1


def test_a_job_that_died_while_no_worker_looked_goes_on(service, probe, tmp_path):
    run_id = service.submit(probe, tmp_path, seconds=300)
    run = service.wait(run_id, lambda run: run.state.is_running())
    service.kill_worker()
    service.cluster.run("scontrol", "update", f"JobId={run.infrastructure_pid}", "Requeue=0")
    service.cluster.fail_node(service.cluster.job(run.infrastructure_pid)["node"])
    service.cluster.wait_for(run.infrastructure_pid, "NODE_FAIL")
    (tmp_path / "go").touch()
    service.start_worker()
    run = service.done(run_id)
    assert run.state.is_completed(), run.state.message
    assert len(service.jobs_of(run_id)) == len(starts(tmp_path)) == 2


def test_scancel_by_an_operator_ends_the_run_with_the_reason(service, probe, tmp_path):
    run_id = service.submit(probe, tmp_path, seconds=300)
    run = service.wait(run_id, lambda run: run.state.is_running())
    service.cluster.run("scancel", run.infrastructure_pid)
    run = service.done(run_id)
    assert run.state.is_crashed()
    assert f"job {run.infrastructure_pid} ended CANCELLED" in run.state.message
    assert len(service.jobs_of(run_id)) == 1


def test_a_requeued_job_is_followed(service, probe, tmp_path):
    run_id = service.submit(probe, tmp_path, seconds=300)
    run = service.wait(run_id, lambda run: run.state.is_running())
    service.cluster.run("scontrol", "requeue", run.infrastructure_pid)
    service.cluster.wait_for(run.infrastructure_pid, "PENDING")
    (tmp_path / "go").touch()
    service.cluster.release(run.infrastructure_pid)
    run = service.done(run_id)
    assert run.state.is_completed(), run.state.message
    assert starts(tmp_path) == [run.infrastructure_pid] * 2
    assert len(service.jobs_of(run_id)) == 1


def test_wall_time_is_followed_by_another_job(service, probe, tmp_path):
    run_id = service.submit(probe, tmp_path, seconds=300)
    run = service.wait(run_id, lambda run: run.state.is_running())
    first = run.infrastructure_pid
    service.cluster.end_time(first, 80)
    service.wait(run_id, lambda run: len(starts(tmp_path)) > 1)
    (tmp_path / "go").touch()
    run = service.done(run_id)
    assert run.state.is_completed(), run.state.message
    assert len(starts(tmp_path)) == 2
    assert service.cluster.job(first)["state"] == "COMPLETED"


def test_cancelled_while_it_runs(service, probe, tmp_path):
    run_id = service.submit(probe, tmp_path, seconds=300)
    service.wait(run_id, lambda run: run.state.is_running())
    service.cancel(run_id)
    run = service.done(run_id)
    assert run.state.is_cancelled()
    wait_until(lambda: not service.jobs_of(run_id, live=True), lambda: str(service.cluster.jobs()))


def test_cancelled_while_it_waits(service, probe, tmp_path):
    service.cluster.run("scontrol", "update", "PartitionName=cpu", "State=DOWN")
    try:
        run_id = service.submit(probe, tmp_path)
        run = service.wait(run_id, lambda run: run.infrastructure_pid)
        wait_until(lambda: any("waits in the queue" in s for s in service.logs(run)), list)
        service.cancel(run_id)
        run = service.done(run_id)
    finally:
        service.cluster.run("scontrol", "update", "PartitionName=cpu", "State=UP")
    assert run.state.is_cancelled()
    assert any("PartitionDown" in line for line in service.logs(run))
    assert not service.jobs_of(run_id, live=True)
    assert starts(tmp_path) == []


def test_a_controller_that_is_away_ends_nothing(service, probe, tmp_path):
    running = service.submit(probe, tmp_path / "running", seconds=300)
    service.wait(running, lambda run: run.state.is_running())
    service.cluster.kill_controller(signal.SIGTERM)
    waiting = service.submit(probe, tmp_path / "waiting")
    service.wait(waiting, lambda run: run.state.is_pending())
    wait_until(
        lambda: any("not submitted yet" in s for s in service.logs(service.read(waiting))),
        list,
        timeout=120,
    )
    assert service.read(running).state.is_running()
    service.cluster.start_controller()
    assert service.done(waiting).state.is_completed()
    (tmp_path / "running" / "go").touch()
    assert service.done(running).state.is_completed()
    assert len(starts(tmp_path / "running")) == len(starts(tmp_path / "waiting")) == 1


def test_a_bad_value_is_refused_before_anything_is_submitted(service, probe, tmp_path):
    run_id = service.submit(probe, tmp_path, job_variables={"partition": "cpu; rm -rf"})
    run = service.done(run_id)
    assert run.state.is_crashed()
    assert "give letters, digits" in run.state.message
    run_id = service.submit(probe, tmp_path, job_variables={"partition": "nowhere"})
    run = service.done(run_id)
    assert run.state.is_crashed()
    assert "nvalid partition" in run.state.message
    assert not service.jobs_of(run_id)

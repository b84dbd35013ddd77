"""The worker on a real cluster: every way a job can go, and what becomes of its flow run."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from deployments import service as services
from tests.conftest import ROOT, skip
from tests.slurm.cluster import wait_until
from tests.slurm.queued import counted_squeue, queue_up
from tests.slurm.service import slurm_service, starts

SITE = """
name: tests
log_dir: LOGS
warn_seconds: 60
stages:
  flow: {cores: 1, memory_gb: 1, hours: 1}
"""


@pytest.fixture(scope="module")
def service(cluster, tmp_path_factory):
    """The service; its paths have spaces, and each call of ``squeue`` is counted."""
    home = tmp_path_factory.mktemp("slurm") / "a home"
    calls = counted_squeue(home / "bin")
    path = f"{calls.parent}:{os.environ['PATH']}"
    with slurm_service(cluster, home, SITE, PATH=path) as service:
        yield service


@pytest.fixture(scope="module")
def probe(service):
    return service.deploy_probe()


def test_a_run_is_a_job_and_what_is_hostile_stays_a_text(service, probe, tmp_path):
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
    (job,) = service.jobs_of(run_id)
    assert starts(tmp_path / "out") == [job["id"]] == [run.infrastructure_pid]
    limit = service.cluster.run("scontrol", "-o", "show", "job", job["id"])
    assert "TimeLimit=01:00:00" in limit
    # Its log tells how it went.
    service.cluster.wait_for(job["id"], "COMPLETED")
    wait_until(lambda: any("ended COMPLETED" in s for s in service.logs(run)), list)
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


def test_a_run_goes_on_whatever_becomes_of_worker_and_jobs(service, probe, tmp_path):
    """A worker that is killed and comes back, a wall time, and a lost job that nobody saw end.

    The one restart that the profile allows is there for the lost job: wall times use up none.
    """
    site = tmp_path / "site.yaml"
    logs = json.dumps(str(tmp_path / "logs"))
    site.write_text(SITE.replace("LOGS", logs) + "restarts: 1\n")
    run_id = service.submit(probe, tmp_path, seconds=3600, job_variables={"site": str(site)})
    service.begun(run_id, tmp_path)
    service.kill_worker()
    service.start_worker()
    wait_until(lambda: any(" follows job " in s for s in service.logs_of(run_id)), list)
    assert len(service.jobs_of(run_id)) == len(starts(tmp_path)) == 1
    # Twice at its wall time; what SLURM's signal before it does, without the wait for it.
    for times in (2, 3):
        job = service.read(run_id).infrastructure_pid
        service.cluster.run("scancel", "--batch", "--signal=USR1", job)
        service.wait(run_id, lambda run, times=times: len(starts(tmp_path)) == times)
        run = service.wait(run_id, lambda run, job=job: run.infrastructure_pid != job)
    service.kill_worker()
    _lose_node(service, run)
    service.start_worker()
    service.wait(run_id, lambda run: len(starts(tmp_path)) == 4)
    # A second loss is one too many.
    _lose_node(service, run := service.read(run_id))
    run = service.done(run_id)
    assert run.state.is_crashed()
    assert "ended NODE_FAIL" in run.state.message
    assert "; it was started again 1 times" in run.state.message
    assert len(service.jobs_of(run_id)) == len(starts(tmp_path)) == 4


def _lose_node(service, run):
    """Let the node of a run's job fail, so that SLURM itself does not start it again."""
    job = run.infrastructure_pid
    service.cluster.run("scontrol", "update", f"JobId={job}", "Requeue=0")
    service.cluster.fail_node(service.cluster.job(job)["node"])
    service.cluster.wait_for(job, "NODE_FAIL")


def test_scancel_by_an_operator_ends_the_run_with_the_reason(service, probe, tmp_path):
    """With the end of the log from where it is, not from where the worker is."""
    site, folder = tmp_path / "site.yaml", tmp_path / "a working dir"
    folder.mkdir()
    site.write_text(SITE.replace("LOGS", "job logs"))
    variables = {"site": str(site), "working_dir": str(folder)}
    run_id = service.submit(probe, tmp_path, seconds=3600, job_variables=variables)
    run = service.begun(run_id, tmp_path)
    service.cluster.run("scancel", run.infrastructure_pid)
    run = service.done(run_id)
    assert run.state.is_crashed()
    assert f"job {run.infrastructure_pid} ended CANCELLED" in run.state.message
    (log,) = (folder / "job logs").glob(f"*.{run.infrastructure_pid}.log")
    assert f"The end of {log}:\n" in run.state.message
    assert f"probe runs in job {run.infrastructure_pid}" in run.state.message
    assert len(service.jobs_of(run_id)) == 1


def test_wall_time_is_followed_by_another_job(service, probe, tmp_path, monkeypatch):
    """By a worker that looks as seldom as a real one, so that the next job begins before that."""
    service.kill_worker()
    monkeypatch.setenv("AUTO3DSEG_POLL_SECONDS", "10")
    service.start_worker()
    run_id = service.submit(probe, tmp_path, seconds=3600)
    run = service.begun(run_id, tmp_path)
    first = run.infrastructure_pid
    service.cluster.run("scancel", "--batch", "--signal=USR1", first)
    service.wait(run_id, lambda run: len(starts(tmp_path)) > 1)
    wait_until(
        lambda: any(f"job {first} ended COMPLETED" in line for line in service.logs_of(run_id)),
        lambda: str(service.logs_of(run_id)),
    )
    # The worker has seen the end of the first job, and does not take it for that of the run.
    service.wait(run_id, lambda run: run.state.is_running())
    (tmp_path / "go").touch()
    run = service.done(run_id)
    assert run.state.is_completed(), run.state.message
    assert len(starts(tmp_path)) == 2
    assert service.cluster.job(first)["state"] == "COMPLETED"
    monkeypatch.setenv("AUTO3DSEG_POLL_SECONDS", "1")
    service.kill_worker()
    service.start_worker()


def test_a_job_that_handed_its_run_on_is_waited_for(service, probe, tmp_path):
    """Nodes clean up after a job: for a while it seems to run still."""
    site = tmp_path / "site.yaml"
    slow = (
        "exec() { trap 'kill -USR1 $child' USR1; \"$@\" & child=$!; "
        "while kill -0 $child 2>/dev/null; do wait $child; done; "
        f"until [ -e {tmp_path}/noticed ]; do sleep 0.2; done; exit 0; }}"
    )
    logs = json.dumps(str(tmp_path / "logs"))
    site.write_text(SITE.replace("LOGS", logs) + f"setup: {json.dumps(slow)}\n")
    run_id = service.submit(probe, tmp_path, seconds=3600, job_variables={"site": str(site)})
    first = service.begun(run_id, tmp_path).infrastructure_pid
    service.cluster.run("scancel", "--batch", "--signal=USR1", first)
    wait_until(
        lambda: any(
            f"job {first}, which had this run before" in s for s in service.logs_of(run_id)
        ),
        lambda: str(service.logs_of(run_id)),
    )
    assert len(starts(tmp_path)) == 1
    (tmp_path / "noticed").touch()
    (tmp_path / "go").touch()
    run = service.done(run_id)
    assert run.state.is_completed(), run.state.message
    assert len(set(starts(tmp_path))) == 2


def test_cancelled_while_it_runs(service, probe, tmp_path):
    run_id = service.submit(probe, tmp_path, seconds=3600)
    service.begun(run_id, tmp_path)
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
    running = service.submit(probe, tmp_path / "running", seconds=3600)
    service.begun(running, tmp_path / "running")
    service.cluster.kill_controller(signal.SIGTERM)
    waiting = service.submit(probe, tmp_path / "waiting")
    service.wait(waiting, lambda run: run.state.is_pending())
    wait_until(
        lambda: any("not submitted yet" in s for s in service.logs(service.read(waiting))),
        list,
    )
    wait_until(lambda: "waiting for the cluster" in service.worker_log(), service.worker_log)
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
    assert "partition: no 'nowhere'; valid: cpu, gpu, gpu_low, short" in run.state.message
    assert not service.jobs_of(run_id)
    for variables, said in (
        ({"partition": "short", "hours": 2}, "hours: 2 asked, short allows 0.0333"),
        ({"cores": 99}, "cores: 99 asked"),
        ({"working_dir": "/not/there"}, "no folder /not/there"),
    ):
        run = service.done(run_id := service.submit(probe, tmp_path, job_variables=variables))
        assert run.state.is_crashed()
        assert said in run.state.message
        assert not service.jobs_of(run_id)


NOTHING_TO_RUN = {
    "error: no site profile; export AUTO3DSEG_SITE=": {"AUTO3DSEG_SITE": ""},
    "error: no site profile /not/there.yaml": {"AUTO3DSEG_SITE": "/not/there.yaml"},
    "error: no command sbatch, squeue, scontrol, scancel on this": {"PATH": "/bin/nowhere"},
}


def test_a_worker_that_could_run_nothing_does_not_start(service):
    """All three side by side: each of them takes seconds to import Prefect."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", services.POOL]
    environment = services.environment(service.home, service.service)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    workers = {
        said: subprocess.Popen(command, env=environment | change, cwd=ROOT, **pipes)
        for said, change in NOTHING_TO_RUN.items()
    }
    for expected, worker in workers.items():
        printed, said = worker.communicate()
        assert worker.returncode == 1
        assert expected in said
        assert "Traceback" not in said + printed


def test_a_preempted_run_waits_and_goes_on(service, probe, tmp_path):
    low = {"partition": "gpu_low"}
    run_id = service.submit(probe, tmp_path, seconds=3600, job_variables=low)
    run = service.begun(run_id, tmp_path)
    job = service.cluster.job(run.infrastructure_pid)
    service.cluster.submit("sleep 3", "--partition=gpu", f"--nodelist={job['node']}", "--exclusive")
    service.cluster.wait_for(job["id"], "PENDING")
    (tmp_path / "go").touch()
    service.cluster.release(job["id"])
    run = service.done(run_id)
    assert run.state.is_completed(), run.state.message
    assert starts(tmp_path) == [job["id"]] * 2


def test_two_workers_share_a_pool_and_one_takes_up_the_others_runs(service, probe, tmp_path):
    first, folders = service.service, [tmp_path / "first", tmp_path / "second"]
    runs = [service.submit(probe, folders[0], seconds=3600)]
    service.begun(runs[0], folders[0])
    service.start_worker()
    second = service.service
    try:
        wait_until(lambda: len(service.workers()) == 2, service.worker_log)
        runs.append(service.submit(probe, folders[1], seconds=3600))
        service.begun(runs[1], folders[1])
        followed = [service.read(run_id).labels["prefect.worker.name"] for run_id in runs]
        assert followed[0] == f"slurm-{socket.gethostname()}-1"
        assert followed[1] in {f"slurm-{socket.gethostname()}-{n}" for n in (1, 2)}
        os.killpg(first.worker_pid, signal.SIGKILL)
        os.waitpid(first.worker_pid, 0)
        wait_until(
            lambda: any(" follows job " in s for s in service.logs_of(runs[0])),
            lambda: f"{service.workers()}\n{service.read(runs[0])}\n{service.worker_log()}",
        )
        for folder in folders:
            (folder / "go").touch()
        for run_id, folder in zip(runs, folders, strict=True):
            assert service.done(run_id).state.is_completed()
            assert len(service.jobs_of(run_id)) == len(starts(folder)) == 1
    finally:
        service.service = second


def test_a_worker_that_is_a_job_starts_again_before_its_wall_time(service, probe, tmp_path):
    service.kill_worker()
    variables = {
        **services.environment(service.home, service.service),
        "AUTO3DSEG_HOME": str(ROOT),
        "AUTO3DSEG_SETUP": f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; "
        "export http_proxy=http://127.0.0.1:9",
    }
    script = ROOT / "deployments" / "sbatch" / "worker.sbatch"
    command = ["sbatch", "--parsable", f"--output={tmp_path / 'worker.log'}", script]
    said = subprocess.run(command, env=variables, check=True, capture_output=True, text=True)
    job = said.stdout.strip()

    def log():
        file = tmp_path / "worker.log"
        return file.read_text() if file.exists() else ""

    try:
        wait_until(lambda: "started!" in log(), log)
        first = service.submit(probe, tmp_path / "first", seconds=3600)
        service.begun(first, tmp_path / "first")
        service.cluster.run("scancel", "--batch", "--signal=USR1", job)
        service.cluster.wait_for(job, "PENDING")
        service.cluster.release(job)
        wait_until(lambda: log().count("started!") == 2, log)
        (tmp_path / "first" / "go").touch()
        assert service.done(first).state.is_completed()
        assert len(service.jobs_of(first)) == 1
        # Asked to end it does, long before SLURM would kill it.
        service.cluster.run("scancel", "--batch", "--signal=TERM", job)
        service.cluster.wait_for(job, {"COMPLETED", "FAILED"})
    finally:
        service.cluster.run("scancel", job)
        service.start_worker()


def test_a_run_ends_with_the_process_that_stands_for_it(service, probe, tmp_path):
    """Where SLURM keeps no account of a job's processes, that one killed would leave the others."""
    run_id = service.submit(probe, tmp_path, seconds=3600)
    service.begun(run_id, tmp_path)
    working = int((tmp_path / "starts").read_text().split()[1])
    os.kill(_parent(working, "deployments.flow_job"), signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{working}").exists(), lambda: f"{working} is there still")
    assert service.done(run_id).state.is_crashed()


def _parent(pid, name):
    """The process above that one of which the command line has the name."""
    while name not in Path(f"/proc/{pid}/cmdline").read_text():
        status = Path(f"/proc/{pid}/status").read_text()
        pid = int(status.split("PPid:")[1].split()[0])
    return pid


def test_a_full_disk_for_the_logs_costs_the_log_alone(service, probe, tmp_path):
    disk = tmp_path / "logs"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False)
    if mounted.returncode:
        skip("no file system may be mounted here, to be full")
    try:
        with pytest.raises(OSError, match="No space left"):
            (disk / "full").write_bytes(b"x" * (1 << 17))
        site = tmp_path / "site.yaml"
        site.write_text(SITE.replace("LOGS", json.dumps(str(disk))))
        run_id = service.submit(probe, tmp_path, job_variables={"site": str(site)})
        run = service.done(run_id)
        assert run.state.is_completed(), run.state.message
        wait_until(lambda: any("ended COMPLETED" in line for line in service.logs(run)), list)
        # A folder that cannot be made is told before anything is submitted.
        site.write_text(SITE.replace("LOGS", json.dumps(str(tmp_path / "site.yaml" / "logs"))))
        run_id = service.submit(probe, tmp_path, job_variables={"site": str(site)})
        run = service.done(run_id)
        assert run.state.is_crashed()
        assert "the folder of the job's log cannot be made" in run.state.message
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_many_queued_runs_cost_little_and_none_is_lost_or_doubled(service, probe, tmp_path):
    """Two hundred are ``make bench-cluster``'s."""
    seen = queue_up(service, probe, tmp_path, 30, service.home / "bin" / "calls")
    assert sorted(seen.job_runs) == sorted(seen.run_ids)
    assert seen.all_mib - seen.one_mib <= 30, seen
    assert 1 <= seen.calls <= seen.polls + 1
    wait_until(
        lambda: not [j for j in service.cluster.jobs() if j["state"] == "PENDING"],
        lambda: str(service.cluster.jobs()),
    )

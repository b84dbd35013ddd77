"""The cluster does what other tests rely on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.slurm.cluster import Cluster, wait_until

FOREVER = "while :; do sleep 0.2; done"


def test_a_job_runs_and_its_record_is_seen(cluster):
    job = cluster.submit("echo hello", "--comment=a b|c, d", "--job-name=first")
    assert cluster.wait_for(job, "COMPLETED") == {
        "id": job, "state": "COMPLETED", "reason": "None", "comment": "a b|c, d",
        "name": "first", "partition": "cpu", "node": "cpu1",
    }  # fmt: skip
    assert cluster.output(job) == "hello\n"
    assert f"JobId={job} " in cluster.jobcomp.read_text()


def test_two_jobs_have_different_gpus_of_a_node(cluster):
    script = f'echo "$CUDA_VISIBLE_DEVICES"\n{FOREVER}'
    options = ("--partition=gpu", "--gres=gpu:1", "--constraint=a100", "--nodelist=gpu1")
    jobs = [cluster.submit(script, *options) for _ in range(2)]
    seen = [wait_until(lambda job=job: cluster.output(job), lambda: "no output") for job in jobs]
    assert sorted(seen) == ["0\n", "1\n"]
    assert {cluster.job(job)["state"] for job in jobs} == {"RUNNING"}
    third = cluster.submit(script, *options)
    wait_until(lambda: cluster.job(third)["reason"] == "Resources", lambda: cluster.job(third))


def test_a_failed_node_ends_its_job_and_comes_back(cluster):
    job = cluster.submit(FOREVER, "--nodelist=cpu2", "--no-requeue")
    cluster.wait_for(job, "RUNNING")
    cluster.fail_node("cpu2")
    cluster.wait_for(job, "NODE_FAIL")
    after = cluster.submit("true", "--nodelist=cpu2")
    assert cluster.job(after)["state"] == "PENDING"
    cluster.resume_node("cpu2")
    cluster.wait_for(after, "COMPLETED")


def test_a_job_may_follow_its_failed_node(cluster):
    job = cluster.submit(FOREVER, "--nodelist=cpu2", "--requeue")
    cluster.wait_for(job, "RUNNING")
    cluster.fail_node("cpu2")
    assert cluster.wait_for(job, "PENDING")["node"] == ""


def test_wall_time_warns_first_and_then_ends(cluster):
    deaf = cluster.submit(FOREVER)
    trapping = cluster.submit(f"trap 'echo warned; exit' USR1\n{FOREVER}", "--signal=B:USR1@30")
    for job, seconds in ((deaf, 1), (trapping, 60)):
        cluster.wait_for(job, "RUNNING")
        cluster.end_time(job, seconds)
    cluster.wait_for(deaf, "TIMEOUT")
    cluster.wait_for(trapping, "COMPLETED")
    assert cluster.output(trapping) == "warned\n"


def preempted(cluster, option):
    """A job that a more urgent one has driven out of its node."""
    script = f'echo "start ${{SLURM_RESTART_COUNT-0}}"\n{FOREVER}'
    options = ("--gres=gpu:2", "--nodelist=gpu1")
    job = cluster.submit(script, "--partition=gpu_low", *options, option)
    wait_until(lambda: cluster.output(job), lambda: "the first job does not start")
    urgent = cluster.submit(FOREVER, "--partition=gpu", *options)
    cluster.wait_for(urgent, "RUNNING")
    assert "DUE TO PREEMPTION" in cluster.output(job)
    cluster.run("scancel", urgent)
    return job


def test_a_preempted_job_waits_under_its_id_and_starts_again(cluster):
    job = preempted(cluster, "--requeue")
    assert cluster.wait_for(job, "PENDING")["reason"] == "BeginTime"
    cluster.release(job)
    wait_until(lambda: cluster.output(job) == "start 1\n", lambda: cluster.output(job))


def test_a_preempted_job_that_may_not_be_requeued_ends(cluster):
    job = preempted(cluster, "--no-requeue")
    cluster.wait_for(job, "PREEMPTED")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_jobs_outlive_the_controller(cluster, number):
    running = cluster.submit(f"until [ -e go-{number} ]; do sleep 0.2; done")
    cluster.wait_for(running, "RUNNING")
    name = f"queued-{number}"
    queued = cluster.submit("true", f"--job-name={name}", f"--dependency=afterok:{running}")
    if number == signal.SIGKILL:
        # Without warning, only what is on disk survives; it is written every few seconds.
        state = cluster.folder / "state" / "job_state"
        wait_until(lambda: name.encode() in state.read_bytes(), lambda: "never saved")
    cluster.kill_controller(number)
    assert "DOWN" in cluster.run("scontrol", "ping", check=False)
    cluster.start_controller()
    assert cluster.job(running)["state"] == "RUNNING"
    assert cluster.job(queued)["state"] == "PENDING"
    (cluster.folder / f"go-{number}").touch()
    cluster.wait_for(queued, "COMPLETED")


def test_a_cluster_beside_another_has_its_own_records(cluster):
    other = Cluster(min_job_age=2)
    other.start()
    try:
        job = other.submit("true", "--job-name=elsewhere")
        other.wait_for(job, "COMPLETED")
        assert "elsewhere" not in {job["name"] for job in cluster.jobs()}
    finally:
        other.stop()
        other.stop()
    assert not other.folder.exists()


KILLED = """
import os, signal
from tests.slurm.cluster import Cluster
cluster = Cluster()
cluster.start()
job = cluster.submit("trap '' TERM; setsid sleep 1000 & sleep 1000")
cluster.wait_for(job, "RUNNING")
print(cluster.folder, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_test_leaves_nothing(cluster):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = Path(killed.stdout.strip())
    # The guard removes the folder when all processes have ended.
    wait_until(lambda: not folder.exists(), lambda: f"{folder} is left")
    assert not users(folder)


def users(folder):
    """Processes that know of the folder, by their command or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:  # ended meanwhile
            continue
        if os.fsencode(folder) in text:
            found.append(process.name)
    return found

"""The doctor on a real cluster, with a real Prefect server and jobs on its nodes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from deployments import service as services
from tests.conftest import ROOT
from tests.slurm.cluster import wait_until
from tests.slurm.service import slurm_service

SITE = """
name: tests
log_dir: {folder}/its logs
scratch: {folder}
setup: export FROM_SETUP=1
warn_seconds: 60
stages:
  flow: {{cores: 1, memory_gb: 1, hours: 1}}
  convert: {{cores: 1, memory_gb: 1, hours: 1}}
  analyze: {{cores: 1, memory_gb: 1, hours: 1}}
  train: {{partition: gpu, cores: 1, memory_gb: 1, hours: 1, gpus: {gpus}}}
  ensemble: {{partition: gpu, cores: 1, memory_gb: 1, hours: 1, gpus: 1}}
"""


@pytest.fixture
def site(tmp_path):
    """A profile that fits the tests' cluster, by the number of GPUs it asks for."""

    def write(gpus=1, more=""):
        path = tmp_path / "site.yaml"
        path.write_text(SITE.format(folder=tmp_path, gpus=gpus) + more)
        return path

    return write


def environment(cluster, **more):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "AUTO3DSEG_"))}
    return kept | cluster.environment | more


def command(site, work, *more):
    asked = ["--site", site, "--work_dir", work, *more]
    return [sys.executable, "-m", "deployments.doctor", *map(str, asked)]


def doctor(cluster, site, work, *more, **own):
    return subprocess.run(
        command(site, work, *more),
        cwd=ROOT,
        env=environment(cluster, PREFECT_HOME=str(work / "prefect"), **own),
        capture_output=True,
        text=True,
        check=False,
    )


def levels(said):
    """The level of each hop."""
    lines = [line.split(maxsplit=1) for line in said.splitlines() if not line.startswith("...")]
    return {rest.partition(": ")[0]: level for level, rest in lines}


@pytest.fixture(scope="module")
def served(cluster, tmp_path_factory):
    """A server, a pool of type slurm and its worker, as a user of a cluster has them."""
    home = tmp_path_factory.mktemp("service") / "a home"
    profile = SITE.format(folder=home.parent, gpus=1)
    with slurm_service(cluster, home, profile) as service:
        yield services.environment(home, service.service)


def test_every_hop_of_a_service_that_works_is_well(cluster, served, site, tmp_path):
    profile = site()
    own = {k: v for k, v in served.items() if k.startswith("PREFECT_")}
    done = subprocess.run(
        command(profile, tmp_path, "--from-node"),
        cwd=ROOT,
        env=environment(cluster, **own, AUTO3DSEG_SITE=str(profile)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = levels(done.stdout)
    for name in (
        "SLURM", "Prefect API", "who may use the server", "server's database", "work pool",
        "worker", "deployments", "site profile", "stage flow", "stage train",
    ):  # fmt: skip
        assert found[name] == "ok", done.stdout
    # The server is on loopback, and the nodes have other names than this host.
    assert found["Prefect API's address"] == "warning"
    jobs = {name: level for name, level in found.items() if name.startswith("job for ")}
    assert {name.split(" on ")[0] for name in jobs} == {
        "job for flow, convert, analyze",
        "job for train, ensemble",
    }
    for hop in (
        "the project and its Python", "Prefect API", "way back to the submitting host",
        "work folder", "scratch",
    ):  # fmt: skip
        assert [level for name, level in jobs.items() if name.endswith(f", {hop}")] == ["ok"] * 2
    # The GPUs of these nodes are there for SLURM alone.
    assert [level for name, level in jobs.items() if name.endswith(", GPUs")] != ["FAILED"]
    assert len([name for name in jobs if name.endswith(", GPUs")]) == 1
    assert not list((tmp_path / "its logs").iterdir())


def test_without_a_server_the_rest_is_looked_at_all_the_same(cluster, site, tmp_path):
    done = doctor(cluster, site(gpus=3), tmp_path)
    assert done.returncode == 1
    found = levels(done.stdout)
    assert found["Prefect API"] == "FAILED"
    assert "PREFECT_API_URL is not set" in done.stdout
    assert found["stage train"] == "FAILED"
    assert "gpus: 3 asked, a node of gpu has 2" in done.stdout
    assert found["stage flow"] == "ok"


def test_a_job_that_cannot_start_is_told_with_its_log(cluster, site, tmp_path):
    profile = site(more="")
    profile.write_text(profile.read_text().replace("export FROM_SETUP=1", "exec no-such-command"))
    done = doctor(cluster, profile, tmp_path, "--from-node")
    assert done.returncode == 1
    assert "no-such-command: not found" in done.stdout
    assert "is FAILED" in done.stdout


def test_a_job_that_waits_is_told_why_and_cancelled(cluster, site, tmp_path):
    cluster.run("scontrol", "update", "PartitionName=gpu", "State=DOWN")
    try:
        done = doctor(cluster, site(), tmp_path, "--from-node", "--wait", "15")
    finally:
        cluster.run("scontrol", "update", "PartitionName=gpu", "State=UP")
    assert done.returncode == 1
    assert "waits (PartitionDown)" in done.stdout
    assert "is still PENDING (PartitionDown)" in done.stdout
    wait_until(lambda: not cluster.run("squeue", "-h"), lambda: cluster.run("squeue"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_cancels_its_jobs(number, code, cluster, site, tmp_path):
    cluster.run("scontrol", "update", "PartitionName=gpu", "State=DOWN")
    process = subprocess.Popen(
        command(site(), tmp_path, "--from-node"),
        cwd=ROOT,
        env=environment(cluster, PREFECT_HOME=str(tmp_path / "prefect")),
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        for line in process.stdout:
            if "(PartitionDown)" in line:
                break
        time.sleep(0.5)
        process.send_signal(number)
        assert process.wait() == code
    finally:
        process.kill()
        process.stdout.close()
        cluster.run("scontrol", "update", "PartitionName=gpu", "State=UP")
    assert {job["state"] for job in cluster.jobs() if job["name"] == "auto3dseg-doctor"} <= {
        "CANCELLED",
        "COMPLETED",
        "FAILED",
        "COMPLETING",
    }

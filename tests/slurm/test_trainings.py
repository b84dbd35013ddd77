"""The whole service on a real cluster: what happens to trainings whose jobs are taken away."""

import contextlib
import json
import shutil
import signal
import time

import pytest

from cellmap_core.models import BundleRef
from cellmap_core.training.launch import last_place, read_epochs
from tests.deployments.test_local import TINY
from tests.slurm.cluster import wait_until
from tests.slurm.service import slurm_service

SITE = """
name: tests
log_dir: LOGS
warn_seconds: 60
network_interface: lo
environment: {OMP_NUM_THREADS: "1", http_proxy: "http://127.0.0.1:9", https_proxy: "http://127.0.0.1:9"}
stages:
  flow: {cores: 1, memory_gb: 2, hours: 1}
  convert: {jobs: 1, cores: 2, memory_gb: 2, hours: 1}
  analyze: {jobs: 1, cores: 2, memory_gb: 2, hours: 1}
  train: {jobs: 2, cores: 1, memory_gb: 5, hours: 1, gpus: 1, gpu_type: a100, partition: gpu_low,
          gpu_memory_gb: 40}
  ensemble: {cores: 1, memory_gb: 5, hours: 1, gpus: 1, partition: gpu}
"""


@pytest.fixture(scope="module")
def service(cluster, tmp_path_factory):
    """The service with a profile of GPU jobs for the trainings."""
    with slurm_service(cluster, tmp_path_factory.mktemp("slurm") / "a home", SITE) as service:
        yield service


@pytest.fixture(autouse=True)
def undisturbed(cluster):
    """One run goes through several tests: nodes come back, jobs are left alone."""
    yield
    for node in ("gpu1", "gpu2"):
        with contextlib.suppress(RuntimeError):  # It is not down.
            cluster.resume_node(node)


@pytest.fixture(scope="module")
def full(service, phantom, tmp_path_factory):
    """The main job, from the crops to the ensemble."""
    work = tmp_path_factory.mktemp("full run")
    options = {
        "datasplit": str(phantom),
        "output_dir": str(work / "nifti_data"),
        "work_dir": str(work / "work_dir"),
        **TINY,
    }
    outcome = service.run("full", **options)
    return outcome, service.last_run(), work


def test_the_main_job_through_the_pool(full, service):
    outcome, run, work = full
    assert outcome.returncode == 0, outcome.stdout + "\n".join(service.logs(run))
    assert run.state.is_completed(), run.state.message
    stages = {job["comment"].split(":")[2] for job in service.jobs_of(run.id)}
    assert stages == {"flow", "convert", "analyze", "train", "ensemble"}
    assert (work / "work_dir" / "ensemble_output").is_dir()
    # The run's own job ends a moment after the run.
    wait_until(lambda: not service.jobs_of(run.id, live=True), lambda: str(service.cluster.jobs()))
    states = {job["id"]: job["state"] for job in service.jobs_of(run.id)}
    assert set(states.values()) == {"COMPLETED"}, states
    used = service.artifacts(run)["plan"].data
    assert "Predicted" in used
    records = (work / "work_dir" / ".jobs" / "jobs.jsonl").read_text().splitlines()
    assert {json.loads(record)["stage"] for record in records} == {
        "flow", "convert", "analyze", "train", "ensemble",
    }  # fmt: skip
    wait_until(
        lambda: set(service.task_run_states(run.id)) <= {"Completed", "Cached"},
        lambda: str(service.task_run_states(run.id)),
    )
    assert set(service.artifacts(run)) >= {"leaderboard", "ensemble", "datastats", "crops"}


def test_a_task_tells_its_job(full, service):
    _, run, work = full
    bundle = BundleRef(algo="segresnet", fold=0, folder=work / "work_dir" / "segresnet_0")
    here = last_place(bundle)
    assert here.node in {"gpu1", "gpu2"}
    assert here.log.is_file()
    lines = service.logs(run)
    assert any(f"train runs in SLURM job {here.job_id} on {here.node}, log " in s for s in lines)
    for task in ("convert", "analyze", "ensemble"):
        assert any(f"{task} runs in SLURM job " in s and ", log " in s for s in lines), task
    assert f"SLURM job {here.job_id}" in service.artifacts(run)["training-segresnet-0"].data


class Training:
    """One training of a run, as its bundle and the queue show it."""

    def __init__(self, service, run_id, folder):
        self.service, self.run_id = service, run_id
        self.bundle = BundleRef(algo="segresnet", fold=0, folder=folder / "segresnet_0")

    @property
    def job(self):
        return last_place(self.bundle).job_id

    @property
    def epochs(self):
        return [record["epoch"] for record in read_epochs(self.bundle)]

    def gets_on(self, not_in=None):
        """Wait until it trains, in another job than that one; gives the job."""
        seen = len(self.epochs)

        def trains():
            there = last_place(self.bundle)
            return there and there.job_id != not_in and len(self.epochs) > seen + 2

        wait_until(
            trains,
            lambda: (
                f"{self.service.cluster.jobs()}\n" + "\n".join(self.service.logs_of(self.run_id))
            ),
            timeout=180,
        )
        return self.job


@pytest.fixture(scope="module")
def work(full, tmp_path_factory):
    """A work folder of which every stage but the training is done, for long trainings."""
    folder = tmp_path_factory.mktemp("long") / "work dir"
    shutil.copytree(full[2] / "work_dir", folder)
    return folder


@pytest.fixture(scope="module")
def long(full, work, service):
    """A run of one training that does not end by itself."""
    datalist = str(full[2] / "nifti_data" / "datalist.json")
    options = {"work_dir": str(work), "num_fold": 2}
    overrides = {**TINY["overrides"], "validate_every": 50, "early_stop_epochs": 10**6}
    generated = service.run(
        "generate", datalist=datalist, num_epochs=10**5, overrides=overrides, **options
    )
    assert generated.returncode == 0, generated.stdout
    run_id = service.start("train", folds=[0], **options)
    return Training(service, run_id, work)


def test_scancel_of_a_training_by_an_operator(long, service):
    job = long.gets_on()
    service.cluster.run("scancel", job)
    long.gets_on(not_in=job)


def test_the_node_of_a_training_fails(long, service):
    job = long.gets_on()
    service.cluster.fail_node(service.cluster.job(job)["node"])
    long.gets_on(not_in=job)
    assert service.cluster.job(job)["state"] == "NODE_FAIL"


def test_a_training_is_preempted(long, service):
    job = long.gets_on()
    node = service.cluster.job(job)["node"]
    service.cluster.submit(
        "sleep 5", "--partition=gpu", f"--nodelist={node}", "--exclusive", "--mem=1G"
    )
    long.gets_on(not_in=job)
    assert service.cluster.job(job)["state"] == "PREEMPTED"


def test_the_controller_is_away_for_a_minute(long, service):
    """The training goes on in its job; nothing is given up, submitted or cancelled meanwhile."""
    job, seen = long.gets_on(), len(long.epochs)
    service.cluster.kill_controller(signal.SIGTERM)
    try:
        time.sleep(60)
        assert service.read(long.run_id).state.is_running()
        assert len(long.epochs) > seen
        assert any("waiting for the cluster" in line for line in service.logs_of(long.run_id))
    finally:
        service.cluster.start_controller()
    seen = len(long.epochs)
    wait_until(lambda: len(long.epochs) > seen + 2, lambda: str(service.cluster.jobs()))
    assert long.job == job


@pytest.mark.parametrize("times", [1, 2])
def test_a_training_reaches_its_wall_time(times, long, service):
    job = long.gets_on()
    service.cluster.end_time(job, 75)
    long.gets_on(not_in=job)
    assert service.cluster.job(job)["state"] == "COMPLETED"
    # Prefect's server learns of a task's states a little later.
    wait_until(
        lambda: service.task_run_states(long.run_id).count("HandedOn") == times,
        lambda: str(service.task_run_states(long.run_id)),
    )


def test_no_step_was_lost_or_done_twice(long, service):
    """What the jobs that were asked to end had saved was not done again."""
    epochs = long.epochs
    assert epochs == list(range(1, len(epochs) + 1))
    lines = service.logs_of(long.run_id)
    assert sum("it goes on from its checkpoint (for the " in line for line in lines) == 5
    assert any("ended PREEMPTED" in line for line in lines)


def test_cancelled_from_prefect_no_job_is_left(long, service):
    long.gets_on()
    service.cancel(long.run_id)
    assert service.done(long.run_id).state.is_cancelled()
    wait_until(
        lambda: not service.jobs_of(long.run_id, live=True), lambda: str(service.cluster.jobs())
    )


def test_a_training_whose_job_was_cancelled_ends_well(full, work, service):
    options = {"work_dir": str(work), "num_fold": 2}
    overrides = {**TINY["overrides"], "validate_every": 20}
    datalist = str(full[2] / "nifti_data" / "datalist.json")
    service.run("generate", datalist=datalist, num_epochs=60, overrides=overrides, **options)
    run_id = service.start("train", folds=[0], **options)
    training = Training(service, run_id, work)
    service.cluster.run("scancel", training.gets_on())
    run = service.done(run_id)
    assert run.state.is_completed(), run.state.message
    assert training.epochs == list(range(1, 61))

"""The whole service on a real cluster: what happens to trainings whose jobs are taken away."""

import contextlib
import json
import shutil
import signal

import pytest

from cellmap_core.bundles.generate import generate
from cellmap_core.cluster.starts import STARTS_NAME, Start
from cellmap_core.lines import read_lines
from cellmap_core.models import BundleRef
from cellmap_core.options import GenerateOptions
from cellmap_core.training.launch import last_place, read_epochs, read_result
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

    def __init__(self, service, run_id, folder, fold):
        self.service, self.run_id = service, run_id
        name = f"segresnet_{fold}"
        self.bundle = BundleRef(algo="segresnet", fold=fold, folder=folder / name)

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
            return there and there.job_id != not_in and len(self.epochs) > seen

        wait_until(trains, self.explain)
        return self.job

    def explain(self):
        """What is known of it, where it does not do as it should."""
        log = self.service.logs_of(self.run_id)
        return "\n".join([str(self.service.cluster.jobs()), *log])

    def task(self):
        """Its task runs' states, the latest last."""
        runs = [t for t in self.service.task_runs(self.run_id) if self.bundle.name in t.name]
        return [run.state_name for run in sorted(runs, key=lambda run: run.created)]


@pytest.fixture(scope="module")
def work(full, tmp_path_factory):
    """A work folder of which every stage but the training is done.

    Fold 0 trains for ever, fold 1 for as long as it takes to cancel its job.
    """
    made = full[2] / "work_dir"
    folder = tmp_path_factory.mktemp("long") / "work dir"
    shutil.copytree(made, folder)
    datalist = full[2] / "nifti_data" / "datalist.json"
    values = {**TINY["overrides"], "validate_every": 50, "early_stop_epochs": 10**6}
    for fold, num_epochs in enumerate((10**5, 100)):
        options = GenerateOptions(num_fold=2, num_epochs=num_epochs, overrides=values)
        generate(datalist, folder / "datastats.yaml", folder, options, folds=[fold])
        shutil.rmtree(folder / f"segresnet_{fold}" / "model", ignore_errors=True)
        (folder / f"segresnet_{fold}" / "jobs.jsonl").unlink(missing_ok=True)
    return folder


@pytest.fixture(scope="module")
def run_id(work, service):
    """A run of both trainings side by side."""
    return service.start("train", work_dir=str(work), num_fold=2)


@pytest.fixture(scope="module")
def long(run_id, work, service):
    """The training that does not end by itself."""
    return Training(service, run_id, work, 0)


def test_a_training_whose_job_an_operator_cancels_ends_well_in_another(run_id, work, service):
    training = Training(service, run_id, work, 1)
    first = training.gets_on()
    service.cluster.run("scancel", first)
    wait_until(lambda: read_result(training.bundle), training.explain)
    assert training.epochs == list(range(1, 101))
    assert training.job != first
    wait_until(lambda: training.task()[-1:] == ["Completed"], lambda: str(training.task()))


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


def test_the_controller_is_away(long, service):
    """The training goes on in its job; nothing is given up, submitted or cancelled meanwhile."""
    job = long.gets_on()
    service.cluster.kill_controller(signal.SIGTERM)
    try:
        # Its commands give up after 18 s; from then on the run knows that it knows nothing.
        wait_until(
            lambda: any("waiting for the cluster" in s for s in service.logs_of(long.run_id)),
            lambda: "\n".join(service.logs_of(long.run_id)),
        )
        long.gets_on()
        assert service.read(long.run_id).state.is_running()
    finally:
        service.cluster.start_controller()
    long.gets_on()
    assert long.job == job


def test_a_training_reaches_its_wall_time(long, service):
    job = long.gets_on()
    service.cluster.end_time(job, 75)
    # A slow machine may hand it on once more than its wall time asks for.
    long.gets_on(not_in=job)
    assert service.cluster.job(job)["state"] == "COMPLETED"
    # Prefect's server learns of a task's states a little later.
    wait_until(lambda: "HandedOn" in long.task(), lambda: str(long.task()))


def test_the_run_itself_reaches_its_wall_time(long, work, service):
    """What SLURM's signal before it does, without the wait for it."""
    training, own = long.gets_on(), service.read(long.run_id).infrastructure_pid
    service.cluster.run("scancel", "--batch", "--signal=USR1", own)
    long.gets_on(not_in=training)
    run = service.read(long.run_id)
    assert run.infrastructure_pid != own
    assert run.state.is_running()
    wait_until(lambda: service.cluster.job(own)["state"] == "COMPLETED", long.explain)
    noted = read_lines(work / STARTS_NAME, Start)
    first, second = [start for start in noted if start.run == str(run.id)]
    assert [first.handed_on, second.handed_on] == [False, True]
    # It does not end for want of progress: a checkpoint was saved in between.
    assert second.mark != first.mark


def test_no_step_was_lost_or_done_twice(long, service):
    """What the jobs that were asked to end had saved was not done again."""
    epochs = long.epochs
    assert epochs == list(range(1, len(epochs) + 1))
    lines = service.logs_of(long.run_id)
    assert any(
        f"{long.bundle.name}: " in s and "it goes on from its checkpoint (for the 3. time)" in s
        for s in lines
    )
    assert any("ended PREEMPTED" in line for line in lines)


def test_cancelled_from_prefect_no_job_is_left(long, service):
    long.gets_on()
    service.cancel(long.run_id)
    assert service.done(long.run_id).state.is_cancelled()
    wait_until(
        lambda: not service.jobs_of(long.run_id, live=True), lambda: str(service.cluster.jobs())
    )


def test_an_ensemble_out_of_memory_fails_at_once_and_says_what_to_set(full, service):
    """SLURM ends a job that takes more than it asked for; another would end in the same way."""
    small = SITE.replace("ensemble: {cores: 1, memory_gb: 5", "ensemble: {cores: 1, memory_gb: 0.2")
    with service.changed_site(small):
        options = {"work_dir": str(full[2] / "work_dir"), "num_fold": 2}
        run = service.done(service.start("ensemble", **options))
    assert run.state.is_failed()
    assert "out of memory; raise stages.ensemble.memory_gb of the site profile tests (now 0.2)" in (
        run.state.message
    )
    jobs = [j for j in service.jobs_of(run.id) if j["comment"].endswith("ensemble")]
    assert len(jobs) == 1, jobs

"""The whole service on a real cluster: what happens to trainings whose jobs are taken away."""

import json
import shutil

import pytest

from cellmap_core.models import BundleRef
from cellmap_core.training.launch import last_place, read_epochs
from deployments import service as services
from tests.deployments.test_local import TINY
from tests.slurm.cluster import wait_until
from tests.slurm.service import SlurmService

SITE = """
name: tests
log_dir: {logs}
warn_seconds: 60
network_interface: lo
environment: {{OMP_NUM_THREADS: "1"}}
stages:
  flow: {{cores: 1, memory_gb: 2, hours: 1}}
  convert: {{jobs: 1, cores: 2, memory_gb: 2, hours: 1}}
  analyze: {{jobs: 1, cores: 2, memory_gb: 2, hours: 1}}
  train: {{jobs: 2, cores: 1, memory_gb: 5, hours: 1, gpus: 1, gpu_type: a100, partition: gpu,
          gpu_memory_gb: 40}}
  ensemble: {{cores: 1, memory_gb: 5, hours: 1, gpus: 1, partition: gpu}}
"""


@pytest.fixture(scope="module")
def service(cluster, tmp_path_factory):
    """The service with a profile of GPU jobs for the trainings."""
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
    assert set(service.artifacts(run)) >= {"leaderboard", "ensemble", "datastats", "crops"}
    wait_until(lambda: not service.jobs_of(run.id, live=True), lambda: str(service.cluster.jobs()))


def test_a_task_tells_its_job(full, service):
    _, run, work = full
    bundle = BundleRef(algo="segresnet", fold=0, folder=work / "work_dir" / "segresnet_0")
    here = last_place(bundle)
    assert here.node in {"gpu1", "gpu2"}
    assert here.log.is_file()
    assert any(f"SLURM job {here.job_id} on {here.node}" in s for s in service.logs(run))
    assert f"SLURM job {here.job_id}" in service.artifacts(run)["training-segresnet-0"].data

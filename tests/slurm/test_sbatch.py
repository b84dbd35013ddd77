"""The scripts for people without a Prefect server, as jobs of a real cluster."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cellmap_core.cluster.starts import STARTS_NAME, Start
from cellmap_core.lines import read_lines
from tests.conftest import ROOT
from tests.slurm.cluster import wait_until

SMALL = ("--cpus-per-task=2", "--mem=3G", "--gres=none")
TINY = ("init_filters=8", "blocks_down=[1,1]", "patch_size_vox=[16,16,16]", "batch_size=2",
        "num_steps_per_epoch=2")  # fmt: skip


class Submitter:
    """A user in a folder of theirs, away from the project; its path has a space on purpose."""

    def __init__(self, cluster, folder):
        self.cluster = cluster
        self.folder = folder

    def __call__(self, script, *arguments, options=(), **environment):
        command = ["sbatch", "--parsable", *SMALL, *options]
        command += [ROOT / "deployments" / "sbatch" / f"{script}.sbatch", *arguments]
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "SLURM_"))}
        own = {
            "AUTO3DSEG_HOME": str(ROOT),
            "AUTO3DSEG_SETUP": f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
            "AUTO3DSEG_SCRATCH": str(self.scratch),
        }
        done = subprocess.run(
            list(map(str, command)),
            cwd=self.folder,
            env=kept | own | self.cluster.environment | environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    @property
    def scratch(self):
        place = self.folder / "scratch"
        place.mkdir(exist_ok=True)
        return place

    def log(self, name, job):
        file = self.folder / "logs" / f"auto3dseg-{name}-{job}.log"
        return file.read_text() if file.exists() else ""


@pytest.fixture
def submit(cluster, tmp_path):
    folder = tmp_path / "my runs"
    folder.mkdir()
    return Submitter(cluster, folder)


def ended(cluster, job):
    return cluster.wait_for(job, {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"})


def test_analyze_completes_and_leaves_the_report(submit, converted, cluster):
    work = submit.folder / "its work"
    arguments = ("--datalist", converted.datalist, "--work_dir", work)
    job = submit("analyze", *arguments, AUTO3DSEG_SITE="/not/for/this/job.yaml")
    assert ended(cluster, job)["state"] == "COMPLETED", submit.log("analyze", job)
    assert (work / "datastats.yaml").is_file()
    assert "4 made" in submit.log("analyze", job)
    # Nothing of the job's own server is left.
    assert not list(submit.scratch.iterdir())


def test_what_is_wrong_fails_the_job_with_its_reason_in_the_log(submit, cluster):
    cases = {
        submit("analyze", "--datalist", "no/list.json"): "no datalist at no/list.json",
        submit("train", "--datalist", "x", "--algos", "unet"): "segresnet",
        submit("analyze", AUTO3DSEG_HOME=str(submit.folder)): "flows/ is not there",
        submit("analyze", AUTO3DSEG_SCRATCH="/no/such/place"): "/no/such/place",
    }
    for job, reason in cases.items():
        assert ended(cluster, job)["state"] == "FAILED"
        name = "train" if reason == "segresnet" else "analyze"
        assert reason in submit.log(name, job)


def test_an_output_of_the_users_is_kept(submit, cluster):
    output = submit.folder / "mine.log"
    job = submit("analyze", "--no-such-option", "x", options=[f"--output={output}"])
    ended(cluster, job)
    assert "unknown option" in output.read_text()
    assert not (submit.folder / "logs").exists()


def epochs(work):
    """Numbers of the epochs that a training has recorded."""
    file = work / "segresnet_0" / "model" / "metrics.jsonl"
    records = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
    return [record["epoch"] for record in records if record["event"] == "epoch"]


def wait_for_epochs(submit, job, work, count):
    """Until a training has recorded more epochs than that, as long as its job is alive."""

    def there():
        assert submit.cluster.job(job)["state"] in {"PENDING", "RUNNING"}, submit.log("train", job)
        return len(epochs(work)) > count

    wait_until(there, lambda: submit.log("train", job))


def test_a_training_goes_on_in_the_next_wall_time(submit, converted, cluster):
    work = submit.folder / "work"
    arguments = (
        "--datalist", converted.datalist, "--work_dir", work, "--num_fold", 2,
        "--num_epochs", 5000, "--overrides", *TINY,
    )  # fmt: skip
    job = submit("train", *arguments, options=["--time=10", "--signal=B:USR1@60"])
    wait_for_epochs(submit, job, work, 2)
    cluster.end_time(job, 80)  # Told at SLURM's next look, within half a minute.
    cluster.wait_for(job, "PENDING")
    before = epochs(work)
    assert (work / "segresnet_0" / "model" / "last.pt").is_file()
    assert not list(submit.scratch.iterdir())
    said = submit.log("train", job)
    assert "interrupted; the same command goes on" in said
    assert "starts again (restart 1)." in said

    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=10")
    cluster.release(job)
    wait_for_epochs(submit, job, work, len(before))
    # No epoch is trained twice, and none is left out.
    seen = epochs(work)
    assert seen == list(range(1, len(seen) + 1))
    assert seen[: len(before)] == before
    # The second start is known as one after a wall time, and as one that had got on.
    first, second = read_lines(work / STARTS_NAME, Start)
    assert (first.run, first.handed_on) == (f"job {job}", False)
    assert (second.run, second.handed_on) == (f"job {job}", True)
    assert first.mark != second.mark

    cluster.run("scancel", job)
    cluster.wait_for(job, "CANCELLED")
    cluster.drain()
    assert "restart 2" not in submit.log("train", job)


def test_a_job_whose_wall_time_is_over_before_its_flow_began_does_not_start_again(
    submit, converted, cluster
):
    """It would do so for ever."""
    slow = {"AUTO3DSEG_SETUP": "python() { sleep 3600; }"}
    job = submit("analyze", "--datalist", converted.datalist, **slow)
    wait_until(lambda: "flows/analyze.py" in submit.log("analyze", job), lambda: "no start")
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    assert ended(cluster, job)["state"] == "FAILED", submit.log("analyze", job)
    assert "before the flow has begun: submit the job again" in submit.log("analyze", job)

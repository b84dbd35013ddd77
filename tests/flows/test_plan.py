"""The plan as a script, as a mode of full, and before and after a run."""

import json

import pytest

from cellmap_core.cluster.plan import read_plan
from cellmap_core.cluster.profiles import SITE_VARIABLE
from tests.flows.test_scripts import refused, script


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """A profile of a cluster that is not here: nothing can be submitted to it."""

    def write(gpu_memory_gb):
        path = tmp_path / "site.yaml"
        train = {"gpus": 1, "gpu_memory_gb": gpu_memory_gb}
        path.write_text(json.dumps({"name": "testville", "stages": {"train": train}}))
        monkeypatch.setenv(SITE_VARIABLE, str(path))
        # Whatever commands of SLURM this machine has, they are not that cluster's.
        monkeypatch.setenv("PATH", "/nowhere")

    return write


def test_the_plan_is_printed_and_kept_and_nothing_else_is_made(phantom, tmp_path, profile):
    profile(48)
    arguments = ("--datasplit", phantom, "--work_dir", "w", "--output_dir", "n", "--num_fold", 2)
    done = script("plan", *arguments, cwd=tmp_path, home=tmp_path / "prefect")
    assert done.returncode == 0, done.stderr
    for text in ("Plan for testville", "It fits", "train segresnet", "order of magnitude"):
        assert text in " ".join(done.stdout.split())
    assert {p.name for p in (tmp_path / "w").iterdir()} == {"plan.json", "plan.md"}
    assert not (tmp_path / "n").exists()


def test_what_is_too_big_ends_the_plan_and_full_before_it_starts(
    converted, tmp_path, profile, monkeypatch, capsys
):
    profile(2)
    big = ("--overrides", "patch_size_vox=[256,256,256]", "--num_fold", 2)
    arguments = ("--datalist", converted.datalist, "--work_dir", "w", *big)
    monkeypatch.chdir(tmp_path)
    said = refused("full", arguments, capsys)
    assert said.startswith("error: the run does not fit testville: train segresnet: one patch")
    assert list((tmp_path / "w").iterdir()) == []
    planned = script("full", "--mode", "plan", *arguments, cwd=tmp_path, home=tmp_path / "prefect")
    assert planned.returncode == 2
    assert "segresnet.patch_size_vox or segresnet.init_filters in the overrides" in planned.stderr
    assert "Plan for testville" in planned.stdout
    assert read_plan(tmp_path / "w").problems

"""The main job through a real server, work pool and worker, as a user starts it."""

import json
import shlex
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from cellmap_core.cluster.plan import read_plan
from cellmap_core.proxies import LOOPBACK
from deployments import local, service

TINY = {
    "num_fold": 2,
    "num_epochs": 2,
    "overrides": {
        "init_filters": 8,
        "blocks_down": [1, 1],
        "patch_size_vox": [16, 16, 16],
        "batch_size": 2,
        "num_steps_per_epoch": 2,
    },
}
ARTIFACTS = {
    "plan",
    "plan-stages",
    "crops",
    "crops-summary",
    "crops-sheet",
    "progress-convert",
    "datastats",
    "datastats-classes",
    "progress-segresnet-0",
    "training-segresnet-0",
    "training-segresnet-1",
    "leaderboard",
    "leaderboard-summary",
    "ensemble",
    "ensemble-cases",
}


@pytest.fixture(scope="module")
def broken_phantom(phantom, tmp_path_factory):
    """The phantom with one crop whose labels are gone."""
    folder = tmp_path_factory.mktemp("broken") / "data"
    shutil.copytree(phantom.parent, folder)
    shutil.rmtree(folder / "phantom-a/phantom-a.zarr/recon-1/labels/groundtruth/crop3")
    return folder / phantom.name


@pytest.fixture(scope="module")
def options(broken_phantom, tmp_path_factory):
    work = tmp_path_factory.mktemp("full run")
    return {
        "datasplit": str(broken_phantom),
        "output_dir": str(work / "nifti_data"),
        "work_dir": str(work / "work_dir"),
        **TINY,
    }


@pytest.fixture(scope="module")
def first(client, options):
    """The main job on a datasplit with a broken crop."""
    return client.run("full", **options), client.last_run()


def test_the_rest_is_done_and_the_broken_crop_is_named(first, options):
    outcome, run = first
    assert outcome.returncode == 1, outcome.stdout + outcome.stderr
    assert run.state.is_failed()
    assert "phantom-a/crop3" in run.state.message
    assert "holds crop1, crop2" in run.state.message
    predictions = Path(options["work_dir"]) / "ensemble_output"
    assert (predictions / "phantom-b_crop6.zarr" / "mito" / "s0" / ".zarray").is_file()
    assert not (predictions / "phantom-a_crop3.zarr").exists()


def test_every_stage_is_a_task_and_publishes(first, client):
    _, run = first
    states = {name.split("-")[0]: state for name, state in client.task_states(run).items()}
    assert set(states) == {
        "convert", "analyze", "generate", "train segresnet_0", "train segresnet_1",
        "leaderboard", "ensemble", "plan", "predicted and used",
    }  # fmt: skip
    assert {name for name, state in states.items() if not state.is_completed()} == {"convert"}
    assert states["convert"].is_failed()
    assert "1 failed - phantom-a/crop3: " in states["convert"].message
    artifacts = client.artifacts(run)
    assert set(artifacts) >= ARTIFACTS
    assert artifacts["progress-convert"].data == 100
    assert "data:image/jpeg;base64," in artifacts["crops-sheet"].data
    rows = json.loads(artifacts["crops"].data)
    assert {r["status"] for r in rows if r["crop"] == "crop3"} == {"failed"}
    leaderboard = json.loads(artifacts["leaderboard"].data)
    assert {"0", "1"} <= {str(row["fold"]) for row in leaderboard}
    assert {"cell", "mito"} <= set(leaderboard[0])
    assert all(len(str(a.data)) < 300_000 for a in artifacts.values())


def test_a_run_keeps_its_plan_and_what_it_used(first, options):
    work = Path(options["work_dir"])
    assert read_plan(work).site == "this machine"
    page = (work / "plan.md").read_text()
    assert "# Predicted and used on this machine" in page
    assert page.count("| train | segresnet_") == 2


def test_training_shows_its_epochs_while_it_goes_on(first, client):
    _, run = first
    assert client.artifacts(run)["progress-segresnet-0"].data == 100
    lines = client.logs(run)
    assert any("epoch 2/2" in line for line in lines), lines


def test_the_librarys_own_lines_are_in_the_runs_log(first, client):
    _, run = first
    assert any(line.startswith("phantom-b/crop5: ") for line in client.logs(run))


def test_the_ui_asks_its_own_server(client):
    with urllib.request.urlopen(f"{client.service.url}/ui-settings", timeout=10) as answer:
        assert json.load(answer)["api_url"] == client.service.api_url


def test_there_is_no_traceback_of_bad_input(first, client):
    _, run = first
    assert not [line for line in client.logs(run) if "Traceback" in line]


def test_a_second_run_does_nothing_and_says_so(first, client, options):
    before = {
        path: path.stat().st_mtime_ns
        for folder in ("output_dir", "work_dir")
        for path in Path(options[folder]).rglob("*")
        if path.is_file() and path.suffix in {".gz", ".pt", ".yaml"}
    }
    assert before
    outcome = client.run("full", **options, on_bad_crop="exclude")
    run = client.last_run()
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert run.state.name == "Cached"
    assert "nothing to do" in run.state.message
    # What only shows a run is shown of each.
    shows = ("leaderboard", "plan", "predicted")
    states = client.task_states(run)
    assert {s.name for name, s in states.items() if not name.startswith(shows)} == {"Cached"}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert set(client.artifacts(run)) >= ARTIFACTS


def test_each_stage_is_a_deployment_that_takes_up_what_is_there(first, client, options, tmp_path):
    """And a missing datalist fails it with one line, and a config file gives what is not given."""
    config = tmp_path / "site.yaml"
    config.write_text("work_dir: /nowhere/at/all\nnum_fold: 2\n")
    datalist = f"{options['output_dir']}/datalist.json"
    shared = {"work_dir": options["work_dir"], "num_fold": 2}
    training = {name: options[name] for name in ("num_epochs", "overrides")}
    given = {
        "convert": {
            **{name: options[name] for name in ("datasplit", "output_dir", "num_fold")},
            "on_bad_crop": "exclude",
        },
        "analyze": {"work_dir": options["work_dir"], "datalist": datalist},
        "generate": {**shared, **training, "datalist": datalist},
        "train": {"work_dir": options["work_dir"], "config": str(config)},
        "ensemble": shared,
    }
    for stage, values in given.items():
        run = client.ended(client.start(stage, **values))
        assert run.state.name == "Cached", (stage, run.state)
    # No shell has replaced the variable, which is the worker's.
    broken = {"datalist": "$HOME/no such/datalist.json", "work_dir": str(tmp_path / "w")}
    refused = client.ended(client.start("analyze", **broken))
    assert refused.state.is_failed()
    missing = f"no datalist at {Path.home()}/no such/datalist.json; expected"
    assert refused.state.message.startswith(missing)
    assert not [line for line in client.logs(refused) if "Traceback" in line]
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"work_dir": "$NOT_SET_ANYWHERE/w"}, "$NOT_SET_ANYWHERE is not set here"),
        ({"scale": "best"}, "scale='best'; expected s0"),
    ],
)
def test_a_parameter_that_only_the_run_can_judge_fails_with_one_line(given, said, client):
    outcome = client.run("analyze", **given)
    run = client.last_run()
    assert outcome.returncode == 1
    assert said in run.state.message
    assert "\n" not in run.state.message
    assert not [line for line in client.logs(run) if "Traceback" in line]


@pytest.mark.parametrize(
    ("given", "named"), [({"num_fold": 1}, "num_fold"), ({"epochs": 3}, "epochs")]
)
def test_bad_parameters_are_refused_when_the_run_is_asked_for(given, named, client):
    outcome = client.run("full", **given)
    assert outcome.returncode != 0
    assert named in outcome.stdout + outcome.stderr


def test_a_second_service_in_the_same_folder_is_refused(client, capsys):
    assert local.main(["up", "--home", str(client.home)]) == 1
    assert "running already" in capsys.readouterr().out


def test_a_worker_that_ends_is_told_not_waited_for(tmp_path, monkeypatch, capsys):
    real = service._background

    def broken(home, name, arguments, served):
        return real(home, name, ["no-such-command"] if name == "worker" else arguments, served)

    monkeypatch.setattr(service, "_background", broken)
    assert local.main(["up", "--home", str(tmp_path / "home")]) == 1
    said = capsys.readouterr().out
    assert "the Prefect worker ended with" in said
    assert "no-such-command" in said
    assert service.read(tmp_path / "home") is None


def test_down_ends_a_service_that_does_not_answer(tmp_path, capsys):
    command = [sys.executable, "-c", "import time; time.sleep(300)", "prefect"]
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            served = service.Service(url="http://127.0.0.1:9", server_pid=process.pid)
            service._record(tmp_path, served)
            assert local.main(["down", "--home", str(tmp_path)]) == 0
            assert not service._group_alive(process.pid)
        finally:
            process.kill()
    assert "The service is down" in capsys.readouterr().out
    assert service.read(tmp_path) is None


def test_what_a_shell_reads_lets_it_past_the_proxy(tmp_path):
    """Whatever the shell has set already, and read twice."""
    service._write_environment(tmp_path, service.Service(url="http://127.0.0.1:1", server_pid=0))
    file = shlex.quote(str(service.environment_file(tmp_path)))
    ours = ",".join(LOOPBACK)
    for before, excepted in (
        ("unset no_proxy NO_PROXY", ours),
        ("unset NO_PROXY; no_proxy=.lab", f".lab,{ours}"),
        ("unset no_proxy; NO_PROXY=.lab", f".lab,{ours}"),
        ("no_proxy='*'", "*"),
    ):
        code = f"{before}; . {file}; . {file}; sh -c 'echo \"$no_proxy $NO_PROXY\"'"
        said = subprocess.run(["sh", "-euc", code], capture_output=True, text=True, check=True)
        assert said.stdout.split() == [excepted, excepted]


def test_down_without_a_service_says_so(tmp_path, capsys):
    assert local.main(["down", "--home", str(tmp_path)]) == 0
    assert "No service is running" in capsys.readouterr().out

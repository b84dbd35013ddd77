"""The flows as scripts on a workstation, with no server."""

import contextlib
import importlib
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cellmap_core.options import MODELS
from flows.house import shell
from tests.conftest import ROOT
from tests.tiny_project import make_bundles


def script(name, *arguments, cwd, home=None, **given):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment |= given
    if home:
        environment["PREFECT_HOME"] = str(home)
    return subprocess.run(
        [sys.executable, str(ROOT / "flows" / f"{name}.py"), *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_analyze_of_a_datasplit_converts_first_and_shows_its_progress(phantom, tmp_path):
    """In a terminal: bars, then the page. A second run has nothing to do, from any folder."""
    arguments = ["--datasplit", phantom, "--output_dir", "data", "--work_dir", "my work"]
    command = [sys.executable, ROOT / "flows" / "analyze.py", *arguments, "--num_fold", 2]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        list(map(str, command)),
        cwd=tmp_path,
        env={**environment, "PREFECT_HOME": str(tmp_path / "prefect"), "COLUMNS": "120"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = _read_all(ours)
    assert process.returncode == 0, shown
    assert re.search("crops .* 6 of 6, ", shown)
    assert re.search("cases .* 4 of 4, ", shown)
    assert "What the data say" in shown
    assert "10 made" in shown
    assert (tmp_path / "my work" / "analysis" / "intensity.png").is_file()
    # The datalist is where conversion was told to write it; no other option names it.
    here = ("--output_dir", tmp_path / "data", "--work_dir", tmp_path / "my work")
    # What the host of a laboratory's server may have set concerns another server.
    given = {"PREFECT_SERVER_API_AUTH_STRING": "a:b", "http_proxy": "http://127.0.0.1:9"}
    again = script("analyze", *here, cwd="/", home=tmp_path / "prefect", **given)
    assert again.returncode == 0, again.stderr
    assert "nothing to do, all 4 as they were" in again.stdout


def _read_all(terminal):
    """What a program writes to its terminal until it ends, without colours."""
    content = b""
    with contextlib.suppress(OSError):  # A terminal that nobody writes to any more.
        while block := os.read(terminal, 1 << 16):
            content += block
    os.close(terminal)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", content.decode())


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("analyze", ["--datalst", "x"], "unknown option --datalst; did you mean --datalist"),
        ("analyze", ["--datalist", "/no/list.json"], "no datalist at /no/list.json"),
        ("convert", ["--datasplit", "/no/split.csv"], "no file /no/split.csv"),
        ("analyze", ["--datasplit", "/no/split.csv"], "no file /no/split.csv"),
        ("convert", ["--scale", "best"], "scale='best'"),
        ("full", ["--algos", "unet", "--datalist", "x"], "segresnet"),
        ("full", [], "neither a datasplit nor a datalist"),
        ("train", ["--work_dir", "nothing"], "no bundle segresnet_0 in nothing"),
        ("generate", ["--num_fold", "1"], "num_fold='1'"),
        # Where conversion was told to write its datalist, the next stages look for it.
        ("analyze", ["--output_dir", "mine"], "no datalist at mine/datalist.json"),
        ("generate", ["--output_dir", "mine"], "no datalist at mine/datalist.json"),
        (
            "full",
            ["--mode", "analyze", "--output_dir", "mine"],
            "no datalist at mine/datalist.json",
        ),
        (
            "full",
            ["--mode", "generate", "--output_dir", "mine"],
            "no datalist at mine/datalist.json",
        ),
        ("plan", ["--output_dir", "mine", "--datalist", "x"], "no datalist at x"),
        ("full", ["--datalist", "x", "--overrides", "foo=1"], "unknown override foo"),
        ("analyze", ["--config", "/no/c.yaml"], "no config file /no/c.yaml"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    name, arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert message in refused(name, arguments, capsys)
    assert list(tmp_path.iterdir()) == []


def refused(name, arguments, capsys):
    """The one line of a refusal, in this process: a script takes seconds to import Prefect."""
    module = importlib.import_module(f"flows.{name}")
    code = shell(getattr(module, name), MODELS[name], module.check, list(map(str, arguments)))
    said = capsys.readouterr().err
    assert code == 2, said
    (line,) = said.strip().splitlines()
    return line


def test_a_script_that_refuses_ends_with_its_code_and_no_more_words(tmp_path):
    outcome = script("analyze", "--datalst", "x", cwd=tmp_path)
    assert outcome.returncode == 2, outcome.stderr
    assert outcome.stderr.startswith("error: unknown option --datalst; did you mean --datalist")
    assert len(outcome.stderr.strip().splitlines()) == 1


def test_a_datalist_with_fewer_crops_than_folds_is_refused(
    converted, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    said = refused("full", ["--datalist", converted.datalist, "--num_fold", 9], capsys)
    assert "4 crops to train on; expected at least one for each of 9 folds" in said
    assert list(tmp_path.iterdir()) == []


def test_a_work_folder_that_cannot_be_made_is_refused(converted, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    said = refused("analyze", ["--datalist", converted.datalist, "--work_dir", "file/w"], capsys)
    assert "work_dir file/w cannot be made" in said


def test_an_interrupt_ends_everything_and_says_how_to_go_on(converted, tmp_path):
    """Ctrl-C in a terminal goes to the whole process group."""
    log = tmp_path / "log"
    command = [sys.executable, str(ROOT / "flows" / "full.py"), "--datalist", converted.datalist]
    options = ["--num_fold", "2", "--num_epochs", "500", "--work_dir", tmp_path / "w"]
    small = ["init_filters=8", "blocks_down=[1,1]", "patch_size_vox=[16,16,16]", "batch_size=1"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    with log.open("w") as sink:
        process = subprocess.Popen(
            [*map(str, [*command, *options]), "--overrides", *small, "num_steps_per_epoch=2"],
            env={**environment, "PREFECT_HOME": str(tmp_path / "prefect")},
            stdout=sink,
            stderr=sink,
            start_new_session=True,
            preexec_fn=_interruptible,
        )
    try:
        # However long it takes: the test's own time-out is the limit.
        while "epoch 1/500" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait() == 130
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert "interrupted; the same command goes on" in log.read_text()
    assert (tmp_path / "w" / "segresnet_0" / "model" / "last.pt").is_file()
    while _processes_of(tmp_path):
        time.sleep(0.2)


def _interruptible():
    """A shell's background job ignores SIGINT, and so would what this test starts from there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _processes_of(folder):
    """Command lines and environments that name a folder: what a run may have left behind."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                if str(folder).encode() in text:
                    found.append(entry.name)
    return found


def test_the_help_names_every_option_of_the_request(tmp_path):
    text = script("full", "--help", cwd=tmp_path).stdout
    for option in (
        "--datasplit", "--output_dir", "--scale", "--target_spacing", "--max_crops", "--mode",
        "--work_dir", "--datalist", "--num_fold", "--num_epochs", "--algos",
    ):  # fmt: skip
        assert option in text


def test_a_training_that_fails_stops_no_other(tmp_path, monkeypatch):
    """One slot, the first of two bundles broken: the second is trained all the same."""
    broken, whole = make_bundles(tmp_path, num_epochs=1)
    (broken.folder / "scripts" / "train.py").write_text("raise SystemExit('its own trouble')")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    arguments = ("--work_dir", tmp_path / "work dir", "--num_fold", 2)
    done = script("train", *arguments, cwd=tmp_path, home=tmp_path / "prefect")
    assert done.returncode == 1
    assert (whole.folder / "model" / "result.json").is_file()
    assert "segresnet_0: training segresnet_0 failed" in done.stdout + done.stderr

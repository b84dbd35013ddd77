"""Training as its own process: followed, ended, gone on with, and not done twice."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from cellmap_core.errors import BundleError, OptionError, TrainingError, TrainingInterrupted
from cellmap_core.models import BundleRef
from cellmap_core.training.config_files import read_config
from cellmap_core.training.entry import parse
from cellmap_core.training.launch import command, read_result, train_bundle
from tests.tiny_project import make_bundles


def nothing(_):
    pass


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A bundle trained for two epochs, with what the training said."""
    bundle = make_bundles(tmp_path_factory.mktemp("a project"))[0]
    lines, epochs = [], []
    result = train_bundle(bundle, lines.append, epochs.append, threads=1)
    return bundle, result, lines, epochs


def test_training_learns_and_is_followed(trained):
    bundle, result, lines, epochs = trained
    assert (result.done, result.current, result.epochs) == (1, 0, 2)
    assert [e["epoch"] for e in epochs] == [1, 2]
    assert epochs[1]["loss"] < epochs[0]["loss"]
    assert result.mean_dice > 2 * max(result.trivial_dice.values())
    assert sum(f"{bundle.name} epoch" in line for line in lines) == 2
    assert result.checkpoint == bundle.folder / "model" / "best.pt"


def test_second_call_starts_no_process(trained, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    bundle, result, _, _ = trained
    again = train_bundle(bundle, nothing, nothing)
    assert again.up_to_date
    assert again.model_copy(update={"done": 1, "current": 0}) == result


def test_changed_model_or_configuration_is_not_current(trained):
    bundle = trained[0]
    path = bundle.folder / "configs" / "hyper_parameters.yaml"
    text = path.read_text()
    path.write_text(text.replace("seed: 0", "seed: 1"))
    assert read_result(bundle) is None
    path.write_text(text)
    assert read_result(bundle) is not None
    best = bundle.folder / "model" / "best.pt"
    data = best.read_bytes()
    best.write_bytes(data[:-1])
    assert read_result(bundle) is None
    best.write_bytes(data)


def processes_of(script):
    """Ids of the processes that run a script."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if script.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def test_interrupting_the_parent_ends_the_child_and_it_goes_on(tmp_path):
    bundle = make_bundles(tmp_path / "p", num_epochs=3)[0]
    script = command(bundle.folder)[1]

    def leave(line):
        if "epoch 1/3" in line:
            assert processes_of(script)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_bundle(bundle, leave, nothing, threads=1)
    assert not processes_of(script)
    state = torch.load(bundle.folder / "model" / "last.pt", weights_only=True)
    assert 1 <= state["epoch"] <= 2
    lines, epochs = [], []
    train_bundle(bundle, lines.append, epochs.append, threads=1)
    assert "goes on from epoch" in lines[0]
    assert [e["epoch"] for e in epochs] == list(range(state["epoch"] + 1, 4))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_child_ended_from_outside_may_be_tried_again(tmp_path, number):
    bundle = make_bundles(tmp_path, num_epochs=500)[0]
    argv = command(bundle.folder)

    def kill(line):
        if "epoch 1/500" in line:
            os.kill(processes_of(argv[1])[0], number)

    with pytest.raises(TrainingInterrupted, match="goes on from its checkpoint") as error:
        train_bundle(bundle, kill, nothing, threads=1)
    assert error.value.may_pass
    assert (bundle.folder / "model" / "last.pt").is_file()


def test_child_ends_when_its_parent_is_gone(tmp_path):
    bundle = make_bundles(tmp_path, num_epochs=500)[0]
    script = (
        "import sys; from pathlib import Path; from cellmap_core.models import BundleRef;"
        "from cellmap_core.training.launch import train_bundle;"
        "b = BundleRef(algo='segresnet', fold=0, folder=Path(sys.argv[1]));"
        "train_bundle(b, lambda line: print(line, flush=True), lambda e: None, threads=1)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(bundle.folder)], stdout=subprocess.PIPE, text=True
    )
    assert "epoch 1/500" in parent.stdout.readline()
    parent.kill()
    parent.wait()
    while processes_of(command(bundle.folder)[1]):
        time.sleep(0.2)
    parent.stdout.close()


def test_failure_is_one_clear_line(tmp_path):
    bundle = make_bundles(tmp_path)[0]
    (tmp_path / "nifti data" / "labels" / "crop1.nii").unlink()
    with pytest.raises(TrainingError) as error:
        train_bundle(bundle, nothing, nothing, threads=1)
    assert str(error.value).startswith("training segresnet_0 failed (exit code 1): no file ")
    assert "Traceback" not in str(error.value)


def test_crash_shows_the_end_of_the_log(tmp_path):
    bundle = make_bundles(tmp_path)[0]
    (bundle.folder / "scripts" / "train.py").write_text("print('before')\nraise ValueError('x')\n")
    with pytest.raises(TrainingError, match=r"(?s)before.*ValueError: x"):
        train_bundle(bundle, nothing, nothing)


@pytest.fixture
def small_cgroup():
    """A memory cgroup of 300 MB, by its file that takes processes in."""
    tree = Path("/sys/fs/cgroup/memory")
    group = tree / f"auto3dseg-tests-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(300 << 20))
    except OSError as error:
        pytest.skip(f"no memory cgroup (version 1) can be made here: {error}")
    yield group / "cgroup.procs"
    group.rmdir()


def test_a_training_that_the_kernel_kills_for_its_memory_is_not_tried_again(tmp_path, small_cgroup):
    bundle = make_bundles(tmp_path)[0]
    (bundle.folder / "scripts" / "train.py").write_text("bytearray(1 << 30)")
    site = tmp_path / "site.yaml"
    site.write_text("{name: mine, stages: {train: {memory_gb: 3}}}")
    script = (
        "import os, sys; from pathlib import Path; from cellmap_core.models import BundleRef;"
        "from cellmap_core.training.launch import train_bundle;"
        "Path(sys.argv[2]).write_text(str(os.getpid()));"
        "b = BundleRef(algo='segresnet', fold=0, folder=Path(sys.argv[1]));"
        "train_bundle(b, print, print, threads=1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(bundle.folder), str(small_cgroup)],
        env={**os.environ, "AUTO3DSEG_SITE": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.splitlines()[-1] == (
        "cellmap_core.errors.TrainingError: training segresnet_0 ran out of host memory, and the "
        "kernel killed it; raise stages.train.memory_gb of the site profile mine (now 3)"
    )
    assert not TrainingError.may_pass


def test_no_bundle_is_told(tmp_path):
    with pytest.raises(BundleError, match="run the generate stage first"):
        train_bundle(BundleRef(algo="a", fold=0, folder=tmp_path / "a_0"), nothing, nothing)


def test_command_line_as_monai_writes_it():
    files, values = parse(["run", "--config_file='/a b/c.yaml,/d.yaml'", "--num_epochs=3"])
    assert [str(f) for f in files] == ["/a b/c.yaml", "/d.yaml"]
    assert values == {"num_epochs": "3"}


def test_overrides_of_the_command_line_are_used_and_checked(tmp_path):
    bundle = make_bundles(tmp_path)[0]
    argv = command(bundle.folder, {"num_epochs": 1})
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert "epoch 1/1" in done.stdout
    with pytest.raises(OptionError, match="unknown override epochs") as error:
        read_config(*parse(command(bundle.folder, {"epochs": 1})[2:]))
    assert error.value.exit_code == 2


def test_starting_a_training_does_not_import_torch():
    modules = (
        "cellmap_core.training.launch, cellmap_core.training.rules, cellmap_core.bundles.generate,"
        "cellmap_core.bundles.names, cellmap_core.training.patches"
    )
    check = f"import sys, {modules}; sys.exit(bool({{'torch', 'monai'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_config_of_a_bundle_is_readable_yaml(trained):
    path = trained[0].folder / "configs" / "hyper_parameters.yaml"
    assert yaml.safe_load(path.read_text())["rules"]["normalisation"]["reason"]

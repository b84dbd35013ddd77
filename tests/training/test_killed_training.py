"""Kill a training with signal 9, whenever; it ends as if nothing had been."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time

import pytest
import torch

from cellmap_core.models import BundleRef
from cellmap_core.training.entry import main
from cellmap_core.training.launch import EXIT_GO_ON, STOP_NAME, command
from tests.tiny_project import make_bundles

# Files of the code whose calls are counted.
_TRAINING = os.path.join("cellmap_core", "training")  # noqa: PTH118 - a part of a path

# Children of a process that has torch already: most of a short training's time is its import.
fork = multiprocessing.get_context("forkserver")
fork.set_forkserver_preload(["cellmap_core.training.run"])


def _run(arguments, log, calls, die_at):
    # Every call of a function of the training is counted, so that the moment of a kill is one of
    # the work, in whatever it does, and not one of the clock.
    def count(frame, event, _):
        if event == "call" and _TRAINING in frame.f_code.co_filename:
            calls.value += 1
            if calls.value == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.settrace(count)
    # As a process of its own would: its output is a log that is there when it is killed.
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    sys.exit(main(arguments))


def start(bundle, die_at=None):
    """Run the bundle's ``train.py`` in a process of its own; ``calls`` counts what it does."""
    arguments, calls = command(bundle.folder)[2:], fork.Value("q", 0, lock=False)
    log = str(bundle.folder / "log.txt")
    process = fork.Process(target=_run, args=(arguments, log, calls, die_at))
    process.calls = calls
    process.start()
    return process


def copy_of(bundle, folder):
    """The same bundle elsewhere: its model is its own, data and configuration are shared."""
    shutil.copytree(bundle.folder, folder)
    path = folder / "configs" / "hyper_parameters.yaml"
    path.write_text(path.read_text().replace(str(bundle.folder), str(folder)))
    return BundleRef(algo=bundle.algo, fold=bundle.fold, folder=folder)


def ended(bundle):
    """Everything that a finished training leaves in its two checkpoints."""
    model = bundle.folder / "model"
    return {n: torch.load(model / n, weights_only=True) for n in ("last.pt", "best.pt")}


def same(one, other, where=""):
    """Compare nested states bit by bit; what was measured may differ."""
    if isinstance(one, dict):
        measured = {"seconds", "timing", "memory"}
        assert set(one) == set(other), where
        for key in set(one) - measured:
            same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            same(*pair, f"{where}/{number}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


@pytest.mark.parametrize("algo", ["segresnet", "dints"])
def test_five_kills_at_random_steps_change_no_bit(tmp_path, algo):
    if algo == "segresnet":
        bundle = make_bundles(tmp_path / "p", num_epochs=3, num_steps_per_epoch=4)[0]
    else:
        from tests.training.test_algorithms import tiny_bundles

        bundle = tiny_bundles(tmp_path / "p", ["dints"], num_steps_per_epoch=4)[0]
    killed = copy_of(bundle, tmp_path / "p" / "work dir" / "killed_0")
    first = start(bundle)
    first.join()
    whole = first.calls.value
    assert first.exitcode == 0, (bundle.folder / "log.txt").read_text()
    chance, kills, log = random.Random(5), 0, killed.folder / "log.txt"
    log.touch()
    while kills < 5 or "goes on from epoch" not in log.read_text():
        process = start(killed, die_at=int(chance.uniform(0.1, 0.5) * whole))
        process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
        else:
            # Through before the last kill: from the beginning, with the kills still to come.
            assert process.exitcode == 0, log.read_text()
            shutil.rmtree(killed.folder / "model")
    last = start(killed)
    last.join()
    assert last.exitcode == 0, log.read_text()
    same(ended(bundle), ended(killed))


@pytest.mark.parametrize("how", ["SIGTERM", "SIGUSR1", "bundle", "work_dir"])
def test_asked_to_end_it_saves_within_a_step_and_says_go_on_later(tmp_path, how):
    bundle = make_bundles(tmp_path, num_epochs=200, num_steps_per_epoch=10)[0]
    process = start(bundle)
    metrics = bundle.folder / "model" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()):
        assert process.is_alive()
        time.sleep(0.02)
    files = {"bundle": bundle.folder / STOP_NAME, "work_dir": bundle.folder.parent / STOP_NAME}
    if how in files:
        files[how].touch()
    else:
        os.kill(process.pid, signal.Signals[how])
    process.join()
    assert process.exitcode == EXIT_GO_ON
    said = (bundle.folder / "log.txt").read_text()
    assert "go on later: segresnet_0 was asked to end at step" in said
    step = int(said.rsplit("at step ", 1)[1].split(";")[0])
    last = torch.load(bundle.folder / "model" / "last.pt", weights_only=True)
    assert last["step"] == step >= 10
    # Nothing beyond the step in hand was done: at most the epoch that was going on.
    done = len([json.loads(line) for line in metrics.read_text().splitlines()])
    assert 10 * done <= step <= 10 * (done + 1)

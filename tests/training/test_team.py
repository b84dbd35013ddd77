"""Two processes on one training: the same result as one."""

import os
import shutil
import subprocess

import pytest
import torch

from cellmap_core.errors import TrainingInterrupted
from cellmap_core.training.config_files import CONFIG_NAME
from cellmap_core.training.launch import EXIT_GO_ON, command, read_result, train_bundle
from tests.closeness import relative_error
from tests.tiny_project import make_bundles

ALONE = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(bundle, processes, **overrides):
    done = subprocess.run(
        command(bundle.folder, overrides, processes),
        env=os.environ | ALONE, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def last_state(bundle):
    return torch.load(bundle.folder / "model" / "last.pt", weights_only=True)


def mean_gradient(state):
    """Return the optimizer's moving average of the gradients, all weights in one row.

    The weights themselves are not compared: AdamW makes whole steps of the rounding of small
    gradients, which differs between CPUs and numbers of processes.
    """
    kept = state["learner"]["optimizer"]["state"]
    return torch.cat([kept[key]["exp_avg"].flatten() for key in sorted(kept)])


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    # A small learning rate: the losses of later steps stay comparable.
    return make_bundles(
        tmp_path_factory.mktemp("a project"),
        num_steps_per_epoch=3, batch_size=3, micro_batch=3, learning_rate=1e-4,
    )  # fmt: skip


def test_two_processes_train_as_one_and_one_goes_on_from_both(bundles):
    bundle = bundles[0]
    code, said = run(bundle, 1)
    assert code == 0, said
    alone = last_state(bundle)
    dice = read_result(bundle).dice
    shutil.rmtree(bundle.folder / "model")

    code, said = run(bundle, 2)
    assert code == 0, said
    together = last_state(bundle)
    # A few voxels whose probability is next to the threshold may change sides.
    assert read_result(bundle).dice == pytest.approx(dice, abs=2e-2)
    assert relative_error(mean_gradient(together), mean_gradient(alone)) < 1e-2
    for ours, theirs in zip(alone["records"], together["records"], strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-3)
    # Two share the three patches of a batch unevenly; lines of one process alone are printed.
    assert said.count("segresnet_0 epoch 1/2") == 1


def test_two_processes_search_and_train_dints(tmp_path):
    from tests.training.test_algorithms import tiny_bundles

    bundle = next(b for b in tiny_bundles(tmp_path) if b.algo == "dints")
    code, said = run(bundle, 2)
    assert code == 0, said
    assert read_result(bundle).epochs == 2
    assert (bundle.folder / "model" / "architecture.json").is_file()


def test_more_processes_than_patches_are_refused(bundles):
    code, said = run(bundles[1], 2, batch_size=1, micro_batch=1)
    assert code != 0
    assert "batch_size 1 for 2 processes; expected a patch for each" in said


def test_asked_to_end_all_leave_together(bundles, monkeypatch):
    bundle = bundles[1]
    path = bundle.folder / CONFIG_NAME
    path.write_text(path.read_text().replace("num_epochs: 2", "num_epochs: 300"))
    process = subprocess.Popen(
        command(bundle.folder, processes=2),
        env=os.environ | ALONE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    while "segresnet_1 epoch 1/" not in process.stdout.readline():
        assert process.poll() is None
    process.terminate()
    said, _ = process.communicate()
    assert "go on later: segresnet_1 was asked to end at step" in said
    assert process.returncode != 0
    step = last_state(bundle)["step"]
    assert f"at step {step}" in said
    # One process takes up what two have left, and the launcher knows why torchrun ended.
    stop = bundle.folder / "STOP"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def hold(line):
        if "goes on from epoch" in line:
            stop.touch()

    with pytest.raises(TrainingInterrupted, match="on request"):
        train_bundle(bundle, hold, lambda _: None, threads=1)
    assert last_state(bundle)["step"] > step
    assert EXIT_GO_ON == 75

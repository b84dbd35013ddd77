"""The main job on real EM: it must learn something, and predict every test crop."""

import json
from pathlib import Path

import numpy as np
import pytest

from cellmap_core.inference.ome_zarr import read_mask
from cellmap_core.inference.predicted_labels import labels_path, read_table, table_path
from cellmap_core.label_table import PRESENT
from cellmap_core.nifti import read_volume

#: A small network that sees a membrane in a minute or two of two cores.
OPTIONS = {
    "target_spacing": [16, 16, 16],
    "num_fold": 2,
    "num_epochs": 2,
    "overrides": {
        "init_filters": 8,
        "blocks_down": [1, 1, 1],
        "patch_size_vox": [32, 32, 32],
        "batch_size": 4,
        "num_steps_per_epoch": 60,
        "learning_rate": 0.002,
        "overlap": 0.1,
    },
}


@pytest.fixture(scope="module")
def finished(client, real_em, tmp_path_factory):
    work = tmp_path_factory.mktemp("real")
    outcome = client.run(
        "full",
        datasplit=str(real_em / "datasplit.csv"),
        test_manifest=str(real_em / "test_crop_manifest.csv"),
        output_dir=str(work / "nifti_data"),
        work_dir=str(work / "work_dir"),
        **OPTIONS,
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return work / "work_dir"


def test_membranes_beat_all_background_and_all_foreground(finished):
    for fold in (0, 1):
        result = json.loads((finished / f"segresnet_{fold}" / "model" / "result.json").read_text())
        # All background has Dice 0 on a class that is present.
        assert result["dice"]["pm"] > result["trivial_dice"]["pm"] > 0, result


def test_there_is_a_prediction_for_every_test_crop(finished):
    result = json.loads((finished / "ensemble_output" / "ensemble.json").read_text())
    assert {case["case"] for case in result["cases"]} == {
        "flyem_medulla-fib25-1/crop103",
        "flyem_medulla-fib25-1/crop104",
        "cardona_dros-vnc-1/crop113",
    }
    for case in result["cases"]:
        assert (Path(case["prediction"]) / "pm" / "s0" / ".zarray").is_file()
        assert 0 < case["foreground_fraction"]["pm"] < 1


def test_labels_hold_what_the_masks_hold(finished):
    """Of all predicted classes, in whatever combinations a short training predicts them."""
    result = json.loads((finished / "ensemble_output" / "ensemble.json").read_text())
    for case in result["cases"]:
        prediction = Path(case["prediction"])
        table = read_table(table_path(prediction))
        states = table.states()[read_volume(labels_path(prediction))]
        for name in case["foreground_fraction"]:
            labelled = states[..., table.classes.index(name)] == PRESENT
            assert np.array_equal(labelled, read_mask(prediction, name) == 1), name

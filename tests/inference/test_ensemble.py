"""The ensemble: a mean of probabilities, on the raw grid, done once."""

import json
import shutil
import signal
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from monai.transforms import LoadImage, SaveImage

from cellmap_core.datalist import read_datalist, write_datalist
from cellmap_core.errors import EnsembleError, OptionError
from cellmap_core.inference.ensemble import ensemble
from cellmap_core.inference.inferer import InferClass, background
from cellmap_core.inference.ome_zarr import read_mask
from cellmap_core.inference.predicted_labels import labels_path, read_table, table_path
from cellmap_core.label_table import PRESENT, LabelTable
from cellmap_core.models import BundleRef
from cellmap_core.nifti import read_grid, read_volume, write_volume
from cellmap_core.training.config_files import read_bundle_config
from tests.tiny_project import CLASSES, GRID, make_bundles, pretend_training


@pytest.fixture
def project(tmp_path):
    bundles = make_bundles(tmp_path / "a project")
    for number, bundle in enumerate(bundles):
        pretend_training(bundle, number)
    root = tmp_path / "a project"
    return root / "nifti data" / "datalist.json", root / "work dir", bundles


def probabilities(bundle: BundleRef, datalist) -> np.ndarray:
    """(C, z, y, x), by the way MONAI takes."""
    entry = read_datalist(datalist).testing[0]
    inferer = InferClass([bundle.folder / "configs" / "hyper_parameters.yaml"])
    return inferer.infer(datalist.parent / entry.image).numpy().transpose(0, 3, 2, 1)


def test_prediction_is_the_mean_of_the_members(project):
    datalist, work_dir, bundles = project
    result = ensemble(datalist, work_dir, bundles)
    assert (result.done, result.failures, result.members) == (1, (), ("segresnet_0", "segresnet_1"))
    mean = np.mean([probabilities(b, datalist) for b in bundles], axis=0)
    sure = np.abs(mean - 0.5) > 1e-5
    case = result.cases[0]
    for c, name in enumerate(("mito", "er")):
        mask = read_mask(case.prediction, name)
        assert 0 < mask.sum() < mask.size
        assert np.array_equal(mask[sure[c]], (mean > 0.5)[c][sure[c]])
        assert case.foreground_fraction[name] == mask.mean()
    mito, er = mean > 0.5
    expected = np.select([mito & er, mito, er], [3, 1, 2])  # As the label table has them.
    labels = read_volume(work_dir / "ensemble_output" / "crop4.nii.gz")
    clear = sure.all(axis=0)
    assert np.array_equal(labels[clear], expected[clear])
    assert read_grid(work_dir / "ensemble_output" / "crop4.nii.gz") == GRID


def test_labels_hold_what_the_masks_hold_of_combinations_the_data_never_had(project, caplog):
    datalist, work_dir, bundles = project
    cases = read_datalist(datalist)
    table = LabelTable.of(CLASSES)
    testing = tuple(e.model_copy(update={"label": None}) for e in cases.testing)
    write_datalist(datalist, cases.model_copy(update={"testing": testing, "table": table}))
    case = ensemble(datalist, work_dir, bundles).cases[0]
    labels = read_volume(labels_path(case.prediction))
    own = read_table(table_path(case.prediction))
    states = own.states()[labels]
    masks = [read_mask(case.prediction, name) for name in CLASSES]
    assert (masks[0] & masks[1]).any()
    for c, mask in enumerate(masks):
        assert np.array_equal(states[..., c] == PRESENT, mask == 1)
    assert own.combinations[:3] == table.combinations
    assert [c.present for c in own.combinations[3:]] == [CLASSES]
    assert case.further_ids == 1
    assert "1 predicted combinations of classes have no id" in caplog.text
    document = json.loads(table_path(case.prediction).read_text())
    assert document["predicted_classes"] == list(CLASSES)
    assert document["class_names"][0] == {"name": "mito", "index": [1, 3]}


def test_dice_counts_known_voxels_only(project):
    datalist, work_dir, bundles = project
    case = ensemble(datalist, work_dir, bundles).cases[0]
    entry = read_datalist(datalist).testing[0]
    label = read_volume(datalist.parent / entry.label)
    mask = read_mask(case.prediction, "mito").astype(bool)
    known, truth = label != 4, label == 1
    hit = (mask & truth & known).sum()
    assert case.dice["mito"] == pytest.approx(2 * hit / ((mask & known).sum() + truth.sum()))


def test_untrained_channel_is_not_averaged_in(project, caplog):
    datalist, work_dir, bundles = project
    pretend_training(bundles[1], 1, learnt=("mito",))
    case = ensemble(datalist, work_dir, bundles).cases[0]
    alone = probabilities(bundles[0], datalist)[1]
    assert np.array_equal(read_mask(case.prediction, "er"), alone > 0.5)
    assert (probabilities(bundles[1], datalist)[1] == 0).all()
    pretend_training(bundles[0], 0, learnt=("mito",))
    case = ensemble(datalist, work_dir, bundles).cases[0]
    assert set(case.dice) == {"mito"}
    assert not (case.prediction / "er").exists()
    assert "no prediction of er" in caplog.text


def test_ome_zarr_says_where_it_is(project):
    datalist, work_dir, bundles = project
    folder = ensemble(datalist, work_dir, bundles).cases[0].prediction
    attributes = json.loads((folder / "mito" / ".zattrs").read_text())
    (scale,) = attributes["multiscales"]
    assert scale["version"] == "0.4"
    assert [(a["name"], a["unit"]) for a in scale["axes"]] == [(n, "nanometer") for n in "zyx"]
    transforms = scale["datasets"][0]["coordinateTransformations"]
    assert transforms[0]["scale"] == [8.0, 8.0, 8.0]
    assert transforms[1]["translation"] == [104.0, 52.0, 26.0]
    array = json.loads((folder / "mito" / "s0" / ".zarray").read_text())
    assert (array["zarr_format"], array["dimension_separator"], array["dtype"]) == (2, "/", "|u1")
    assert (folder / "mito" / "s0" / "0" / "0" / "0").is_file()


def about(axis, degrees):
    """A rotation about a world axis."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(4)
    a, b = (n for n in range(3) if n != axis)
    turn[[a, a, b, b], [a, b, a, b]] = cos, -sin, sin, cos
    return turn


PLAIN = np.array([[8.0, 0, 0, 500], [0, 4, 0, 20], [0, 0, 6, 30], [0, 0, 0, 1]])
AFFINES = {
    "ras": PLAIN,
    "las": np.diag([-1, 1, 1, 1]) @ PLAIN,
    "lps": np.diag([-1, -1, 1, 1]) @ PLAIN,
    "permuted": np.eye(4)[[2, 0, 1, 3]] @ np.diag([1, -1, 1, 1]) @ PLAIN,
    "oblique": about(2, 20) @ about(0, 35) @ PLAIN,
}


@pytest.fixture
def turned(project):
    """The same voxels as testing cases with all kinds of affines, each with its label."""
    datalist, work_dir, bundles = project
    cases = read_datalist(datalist)
    (one,) = cases.testing
    testing = []
    for name, affine in AFFINES.items():
        files = {"image": f"images/{name}.nii", "label": f"labels/{name}.nii"}
        for kind, file in files.items():
            volume = read_volume(cases.path(getattr(one, kind)))
            nib.save(nib.Nifti1Image(volume.T, affine), datalist.parent / file)
        testing.append(one.model_copy(update={**files, "cellmap": None}))
    write_datalist(datalist, cases.model_copy(update={"testing": (one, *testing)}))
    return datalist, work_dir, bundles


def places(mask, affine):
    """World positions (n, 3), sorted, of the voxels of a mask (i, j, k)."""
    points = nib.affines.apply_affine(affine, np.argwhere(mask)).round(2) + 0.0
    return points[np.lexsort(points.T)]


def test_a_prediction_lies_where_its_image_does(turned):
    datalist, work_dir, bundles = turned
    result = ensemble(datalist, work_dir, bundles)
    assert result.failures == ()
    plain, *others = result.cases
    assert {str(case.dice) for case in others} == {str(plain.dice)}
    expected = read_volume(plain.prediction.with_suffix(".nii.gz"))
    for case, (name, affine) in zip(others, AFFINES.items(), strict=True):
        image = datalist.parent / f"images/{name}.nii"
        labels = nib.load(case.prediction.with_suffix(".nii.gz"))
        assert np.allclose(labels.affine, affine, atol=1e-4)
        assert np.array_equal(labels.dataobj, expected.T)
        one, other = (sitk.ReadImage(f) for f in (image, case.prediction.with_suffix(".nii.gz")))
        for get in ("GetOrigin", "GetSpacing", "GetDirection"):
            assert getattr(one, get)() == pytest.approx(getattr(other, get)())
        mito = read_mask(case.prediction, "mito")
        kept = json.loads((case.prediction / ".zattrs").read_text())["image"]
        assert np.allclose(kept["affine_nm"], affine, atol=1e-4)
        (scale,) = json.loads((case.prediction / "mito/.zattrs").read_text())["multiscales"]
        steps = scale["datasets"][0]["coordinateTransformations"]
        truth = read_mask(plain.prediction, "mito")
        assert 0 < truth.sum() < truth.size
        if name == "oblique":
            # OME-Zarr has no rotation: voxels as in the file, no place that would be wrong.
            assert [s["type"] for s in steps] == ["scale"]
            assert steps[0]["scale"] == pytest.approx([6, 4, 8])
            assert kept["oblique"]
            assert np.array_equal(mito, truth)
            continue
        world = np.diag([*steps[0]["scale"][::-1], 1.0])
        world[:3, 3] = steps[1]["translation"][::-1]
        assert np.array_equal(places(mito.T, world), places(truth.T, affine))


def test_a_label_that_is_not_on_the_grid_of_its_image_fails_by_name(turned):
    datalist, work_dir, bundles = turned
    cases = read_datalist(datalist)
    testing = (cases.testing[0], cases.testing[1].model_copy(update={"label": "labels/las.nii"}))
    write_datalist(datalist, cases.model_copy(update={"testing": testing}))
    result = ensemble(datalist, work_dir, bundles)
    assert result.done == 1
    (failure,) = result.failures
    assert failure.item == "ras.nii"
    assert "axes to RAS" in failure.reason
    assert "axes to LAS" in failure.reason


@pytest.mark.parametrize("name", AFFINES)
def test_probabilities_are_placed_as_monai_places_the_image(turned, name, tmp_path):
    datalist, _, bundles = turned
    path = datalist.parent / f"images/{name}.nii"
    predicted = InferClass(bundles[0].folder / "configs/hyper_parameters.yaml").infer(path)
    image = LoadImage(ensure_channel_first=True)(path)
    assert predicted.shape[1:] == image.shape[1:]
    assert np.allclose(predicted.affine, image.affine)
    assert predicted.meta["space"] == image.meta["space"]
    save = SaveImage(tmp_path, output_postfix="", separate_folder=False, print_log=False)
    save(predicted)
    assert np.allclose(nib.load(tmp_path / f"{name}.nii.gz").affine, AFFINES[name], atol=1e-4)


def test_second_run_predicts_nothing_and_a_new_model_does(project, monkeypatch):
    datalist, work_dir, bundles = project
    first = ensemble(datalist, work_dir, bundles)
    with monkeypatch.context() as patch:
        patch.setattr("cellmap_core.inference.ensemble.predict_case", None)
        again = ensemble(datalist, work_dir, bundles)
    assert again.up_to_date
    assert again.cases == first.cases
    pretend_training(bundles[0], 7)
    assert ensemble(datalist, work_dir, bundles).done == 1
    shutil.rmtree(first.cases[0].prediction / "er")
    assert ensemble(datalist, work_dir, bundles).done == 1
    leftovers = [p.name for p in (work_dir / "ensemble_output").iterdir()]
    assert sorted(leftovers) == [
        ".receipts", "crop4.labels.json", "crop4.nii.gz", "crop4.zarr", "ensemble.json",
    ]  # fmt: skip
    table_path(first.cases[0].prediction).unlink()
    assert ensemble(datalist, work_dir, bundles).done == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from cellmap_core.inference import ensemble, predict
from cellmap_core.models import BundleRef
predict.write_table = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
datalist, work_dir, bundle = map(Path, sys.argv[1:])
ensemble.ensemble(datalist, work_dir, [BundleRef(algo="segresnet", fold=0, folder=bundle)])
"""


def test_a_killed_prediction_leaves_nothing_that_the_next_run_does_not_remove(project):
    datalist, work_dir, bundles = project
    command = [sys.executable, "-c", KILLED, datalist, work_dir, bundles[0].folder]
    killed = subprocess.run(list(map(str, command)), check=False, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    output = work_dir / "ensemble_output"
    (left,) = output.glob(".*.partial.*")
    assert list(left.iterdir())
    ensemble(datalist, work_dir, bundles)
    assert {p.name for p in output.glob(".*")} == {".receipts"}


def test_bad_case_and_untrained_member_fail_by_name(project):
    datalist, work_dir, bundles = project
    cases = read_datalist(datalist)
    gone = cases.testing[0].model_copy(update={"image": "images/gone.nii", "cellmap": None})
    testing = (gone, *cases.testing)
    write_datalist(datalist, cases.model_copy(update={"testing": testing}))
    (bundles[1].folder / "model" / "best.pt").unlink()
    result = ensemble(datalist, work_dir, bundles)
    assert [f.item for f in result.failures] == ["segresnet_1", "gone.nii"]
    assert "train it first" in result.failures[0].reason
    assert [c.case for c in result.cases] == ["jrc_tiny/crop4"]
    assert result.members == ("segresnet_0",)
    written = json.loads((work_dir / "ensemble_output" / "ensemble.json").read_text())
    assert len(written["failures"]) == 2


@pytest.mark.parametrize(("value", "said"), [(0.7, "label id 0.7"), (np.nan, "label id nan")])
def test_labels_that_are_no_ids_fail_their_case_and_move_its_prediction_aside(project, value, said):
    datalist, work_dir, bundles = project
    ensemble(datalist, work_dir, bundles)
    cases = read_datalist(datalist)
    other = cases.training[0].model_copy(update={"fold": None})
    write_datalist(datalist, cases.model_copy(update={"testing": (*cases.testing, other)}))
    label = np.zeros(GRID.shape_vox, np.float32)
    label[3, 4, 5] = value
    write_volume(datalist.parent / cases.testing[0].label, GRID, label)
    result = ensemble(datalist, work_dir, bundles)
    assert [c.case for c in result.cases] == [other.name]
    (failure,) = result.failures
    assert said in failure.reason
    assert "labels/crop4" in failure.reason
    output = work_dir / "ensemble_output"
    assert not list(output.glob("crop4.*"))
    assert {p.name for p in (output / "earlier" / "1").iterdir()} == {
        "crop4.zarr", "crop4.nii.gz", "crop4.labels.json",
    }  # fmt: skip


def test_nothing_to_predict_or_to_predict_with_is_an_error(project):
    datalist, work_dir, bundles = project
    for bundle in bundles:
        shutil.rmtree(bundle.folder / "model")
    with pytest.raises(EnsembleError, match=r"no trained model .*segresnet_0"):
        ensemble(datalist, work_dir, bundles)
    cases = read_datalist(datalist)
    write_datalist(datalist, cases.model_copy(update={"testing": ()}))
    with pytest.raises(EnsembleError, match=r"no testing case; .*convert again"):
        ensemble(datalist, work_dir, bundles)


def test_unlabelled_case_has_no_score(project):
    datalist, work_dir, bundles = project
    cases = read_datalist(datalist)
    testing = tuple(e.model_copy(update={"label": None}) for e in cases.testing)
    write_datalist(datalist, cases.model_copy(update={"testing": testing}))
    case = ensemble(datalist, work_dir, bundles).cases[0]
    assert case.dice == {}
    assert set(case.foreground_fraction) == {"mito", "er"}


def test_inferer_takes_values_of_a_prediction_and_what_monais_runner_passes_on(project):
    _, _, bundles = project
    path = bundles[0].folder / "configs" / "hyper_parameters.yaml"
    passed_on = {"rank": 0, "n_best": 2, "image_save_func": {}, "output_dir": "/x", "resample": 0}
    assert InferClass(str(path), overlap=0.0, **passed_on).config.overlap == 0
    assert InferClass(str(path), **{"dints.overlap": 0.0}).config.overlap == 0.25
    assert read_bundle_config(bundles[0].folder).overlap == 0.25
    for name in ("overlapp", "init_filters", "normalisation", "ranks", "dataroot"):
        with pytest.raises(OptionError, match=f"prediction parameter {name}; expected any"):
            InferClass(str(path), **{name: 1})
    with pytest.raises(OptionError, match=r"override overlap = 2"):
        InferClass(str(path), overlap=2)


def test_background_is_what_the_classes_leave(project):
    _, _, bundles = project
    config = read_bundle_config(bundles[0].folder)
    classes = np.array([[0.7, 0.2, 0.0], [0.6, 0.3, 0.0]], np.float32)
    assert background(classes, config) == pytest.approx([0.3, 0.7, 1])
    softmax = config.model_copy(update={"activation": "softmax"})
    assert background(classes, softmax) == pytest.approx([0, 0.5, 1])

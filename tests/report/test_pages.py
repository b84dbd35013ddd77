"""Pages and tables on small inputs: plain values, legible text, true pictures."""

import base64
import math
import re
from pathlib import Path

import numpy as np
import pytest

from cellmap_core import nifti
from cellmap_core.datalist import Datalist, Entry, write_datalist
from cellmap_core.datastats.analyze import analyze
from cellmap_core.errors import StatisticsError, StoreError
from cellmap_core.grid import Grid
from cellmap_core.label_table import LabelTable
from cellmap_core.models import (
    AnalyzeResult,
    BundleRef,
    CasePrediction,
    EnsembleResult,
    Failure,
    TrainResult,
)
from cellmap_core.report import figures
from cellmap_core.report.crops_page import crops_markdown, crops_table
from cellmap_core.report.datastats_page import datastats_markdown, datastats_table
from cellmap_core.report.ensemble_page import ensemble_markdown, ensemble_table
from cellmap_core.report.text import markdown_table
from cellmap_core.report.training_page import (
    fold_markdown,
    leaderboard_markdown,
    leaderboard_table,
    running_markdown,
)

PNG = b"\x89PNG\r\n\x1a\n"


def assert_plain(rows):
    """Cells that Prefect stores as JSON: plain types, one set of columns, no NaN."""
    assert all(list(row) == list(rows[0]) for row in rows)
    for row in rows:
        for value in row.values():
            assert type(value) in {str, int, float, type(None)}
            assert not (isinstance(value, float) and math.isnan(value))


def pictures(markdown):
    return [base64.b64decode(t) for t in re.findall(r"\(data:image/png;base64,([^)]+)\)", markdown)]


def assert_page(markdown, n_pictures):
    found = pictures(markdown)
    assert len(found) == n_pictures
    for png in found:
        assert png.startswith(PNG)
        assert int.from_bytes(png[16:20], "big") == 640
    assert len(markdown.encode()) < 300_000
    assert "<svg" not in markdown
    assert "<style" not in markdown


@pytest.fixture
def analyzed(tmp_path):
    table = LabelTable.of(("mito", "er", "nuc"))
    label = np.zeros((4, 5, 6), np.uint8)
    label[:2] = 1
    image = np.where(label == 1, 200, 100).astype(np.uint8)
    grid = Grid(shape_vox=label.shape, voxel_nm=(8.0, 8.0, 8.0), translation_nm=(0.0, 0.0, 0.0))
    nifti.write_volume(tmp_path / "image.nii.gz", grid, image)
    nifti.write_volume(tmp_path / "label.nii.gz", grid, label)
    good = Entry(image="image.nii.gz", label="label.nii.gz", fold=0, annotated_classes=(1, 2))
    gone = Entry(image="gone.nii.gz", label="label.nii.gz", fold=1, annotated_classes=(1,))
    listed = Datalist(folder=tmp_path, table=table, training=(good, gone))
    write_datalist(tmp_path / "datalist.json", listed)
    return analyze(tmp_path / "datalist.json", tmp_path / "work")


def test_datastats_table(analyzed):
    rows = datastats_table(analyzed)
    assert_plain(rows)
    assert [tuple(r.values()) for r in rows] == [
        ("mito", 1, 1, 1, 0, 50.0, 1.0, "200.0 ± 0.0"),
        ("er", 2, 1, 0, 1, 0.0, None, None),
        ("nuc", 3, 0, 0, 0, None, None, None),
    ]


def test_datastats_page_carries_its_pictures(analyzed):
    page = datastats_markdown(analyzed)
    assert_page(page, 4)
    assert "gone.nii.gz" in page
    assert "1 cases analysed: 1 made, 0 up to date, 1 failed" in page
    assert "| mito | 1 |" in page


def test_datastats_page_stays_small(analyzed, monkeypatch):
    monkeypatch.setattr("cellmap_core.report.datastats_page.MARKDOWN_LIMIT_BYTES", 9_000)
    page = datastats_markdown(analyzed)
    assert len(pictures(page)) < 3
    assert "(see `" in page


def test_datastats_page_without_reports(tmp_path):
    nothing = AnalyzeResult(
        datastats=tmp_path / "a", datastats_by_case=tmp_path / "b", analysis=tmp_path / "c"
    )
    with pytest.raises(StatisticsError):
        datastats_markdown(nothing)


CROPS = """dataset,crop,split,status,reason,coverage,annotated,extra
jrc_a,crop1,train,converted,,0.98,mito;er,7
jrc_a,crop2,train,failed,no array | at s0,nan,,
jrc_b,crop3,train,excluded,coverage 0.1 < 0.5,0.1,mito,
jrc_b,crop4,validate,converted,,1.0,mito
"""


@pytest.fixture
def crops_csv(tmp_path):
    path = tmp_path / "crops.csv"
    path.write_text(CROPS)
    return path


def test_crops_table(crops_csv):
    rows = crops_table(crops_csv)
    assert_plain(rows)
    assert len(rows) == 4
    assert rows[0]["coverage"] == 0.98
    assert rows[1]["coverage"] == ""
    assert rows[3]["extra"] == ""


def test_crops_page_lists_what_did_not_come_through(crops_csv):
    page = crops_markdown(crops_csv)
    assert "**4 crops**: 2 converted, 1 failed, 1 excluded." in page
    assert "| jrc_a/crop2 | no array \\| at s0 |" in page
    assert "| jrc_b/crop3 | coverage 0.1 < 0.5 |" in page
    assert "crop4" not in page


def test_crops_page_without_table(tmp_path):
    with pytest.raises(StoreError, match=r"crops\.csv"):
        crops_table(tmp_path / "crops.csv")


def training(algo, fold, dice, trivial=0.2):
    some = [d for d in dice.values() if d is not None]
    return TrainResult(
        bundle=BundleRef(algo=algo, fold=fold, folder=Path(f"{algo}_{fold}")),
        checkpoint=Path("model.pt"),
        best_epoch=3,
        epochs=4,
        mean_dice=sum(some) / len(some) if some else None,
        dice=dice,
        trivial_dice=dict.fromkeys(dice, trivial),
        seconds=1800.0,
        host_bytes=3 << 30,
        device_bytes=(5 << 30) if fold else 0,
    )


EPOCHS = [
    {
        "epoch": i,
        "epochs": 4,
        "loss": 1.0 / i,
        "dice": {"mito": 0.1 * i, "er": None},
        "mean_dice": 0.1 * i,
        "seconds": 3.0,
    }
    for i in range(1, 5)
]


def test_fold_page():
    page = fold_markdown(training("segresnet", 0, {"mito": 0.75, "er": None}), EPOCHS)
    assert_page(page, 1)
    assert "| mito | 0.750 | 0.200 | 0.550 |" in page
    assert "| er | – | 0.200 | – |" in page
    assert "Mean Dice **0.750**, +0.550 over trivial, 1 of 2 classes scored, at epoch 3" in page
    assert "Not scored: er." in page
    foreign = training("theirs", 0, {}).model_copy(update={"mean_dice": 0.5})
    assert "Mean Dice **0.500** (its template tells no Dice by class)" in fold_markdown(foreign, [])


def test_page_of_a_running_training():
    unscored = {"epoch": 1, "epochs": 4, "loss": 2.0, "dice": {}, "mean_dice": None, "seconds": 60}
    page = running_markdown("segresnet_0", [unscored])
    assert_page(page, 1)
    assert "Epoch 1 of 4, loss 2.0000, 3 minutes left at this pace. Not validated yet." in page
    page = running_markdown("a_0", EPOCHS[:3])
    assert "Best so far, at epoch 3: mean Dice **0.300**, 1 of 2 classes scored." in page
    assert "Not scored: er." in page


def test_fold_page_without_validation():
    assert_page(fold_markdown(training("dints", 0, {"mito": None}), []), 0)
    epochs = [{"epoch": 1, "epochs": 2, "loss": 1.0, "dice": {}, "mean_dice": None, "seconds": 1}]
    assert_page(fold_markdown(training("dints", 0, {"mito": None}), epochs), 1)


@pytest.fixture
def results():
    return [
        training("dints", 0, {"mito": None, "er": None}),
        training("swinunetr", 1, {"mito": 0.5, "er": 0.3}),
        training("segresnet", 1, {"mito": 0.9, "er": 0.6}),
        training("segresnet", 0, {"mito": 0.7, "er": None}),
        training("swinunetr", 0, {"mito": 0.4, "er": 0.4}),
    ]


def test_leaderboard_is_best_first(results):
    rows = leaderboard_table(results)
    assert_plain(rows)
    assert [(r["algo"], r["fold"]) for r in rows] == [
        ("segresnet", "mean"),
        ("segresnet", 0),
        ("segresnet", 1),
        ("swinunetr", "mean"),
        ("swinunetr", 0),
        ("swinunetr", 1),
        ("dints", "mean"),
        ("dints", 0),
    ]
    assert rows[0]["mito"] == "0.800 ± 0.100"
    assert rows[0]["er"] == "0.600"
    assert rows[0]["mean Dice"] == "0.725 ± 0.025"
    assert rows[2]["mito"] == 0.9
    assert rows[6]["mean Dice"] == "–"
    assert rows[0]["over trivial"] == "0.525 ± 0.025"
    assert [r["classes"] for r in rows[:3]] == ["1 of 2, 2 of 2", "1 of 2", "2 of 2"]
    # Only mito is scored in every fold.
    assert [r["Dice, same classes"] for r in rows[:3]] == ["0.800 ± 0.100", 0.7, 0.9]
    # Of swinunetr mito alone counts in fold 0, as of segresnet.
    assert [r["compared Dice"] for r in rows if r["fold"] == "mean"] == [0.725, 0.4, None]
    cost = ("hours", "RAM GiB", "GPU GiB")
    assert [rows[0][c] for c in cost] == [1.0, 3.0, 5.0]
    assert [rows[1][c] for c in cost] == [0.5, 3.0, None]


def test_leaderboard_page(results):
    page = leaderboard_markdown(results)
    assert_page(page, 1)
    best = "Best: **segresnet**, mean Dice 0.725 ± 0.025 over 2 folds, 0.525 ± 0.025 over trivial."
    assert best in page
    assert "all of them scored (fold 0: mito; fold 1: mito, er)" in page
    assert "Scored in some folds only: er." in page
    assert_page(leaderboard_markdown(results[:1]), 0)
    failed = (Failure(item="dints_1", reason="out of memory"),)
    assert "because they failed: dints_1." in leaderboard_markdown(results, failed)
    assert leaderboard_markdown([]) == "No training has finished.\n"


def test_easier_folds_and_classes_do_not_win():
    """An algorithm that lacks the hard fold and the hard class is not better for it."""
    easy = training("dints", 1, {"mito": 0.95, "er": None})
    whole = [
        training("segresnet", 0, {"mito": 0.5, "er": 0.3}),
        training("segresnet", 1, {"mito": 0.96, "er": 0.4}),
    ]
    page = leaderboard_markdown([easy, *whole])
    assert "Best: **segresnet**" in page
    assert "(fold 1: mito)" in page
    alone = leaderboard_markdown([easy, whole[0]])
    assert "no fold and class in common" in alone
    # Where all were scored on the same, there is nothing to say.
    (first, *_) = rows = leaderboard_table(whole)
    assert not {"compared Dice", "Dice, same classes"} & set(first)
    assert "ranked by" not in leaderboard_markdown(whole)
    assert [r["classes"] for r in rows] == ["2 of 2"] * 3


def test_a_class_that_is_everywhere_is_named():
    result = training("segresnet", 0, {"cell": 1.0, "er": 0.5})
    result = result.model_copy(update={"trivial_dice": {"cell": 1.0, "er": 0.3}})
    page = fold_markdown(result, [])
    assert "Mean Dice **0.750**, +0.100 over trivial, 2 of 2 classes scored" in page
    assert "The mean includes cell, present at every known voxel" in page
    assert "without, it is 0.500." in page
    assert "Present at every known voxel of a fold: cell." in leaderboard_markdown([result])


def ensemble(cases, failures=()):
    return EnsembleResult(
        classes=("mito", "er", "golgi"),
        done=len(cases),
        failures=failures,
        folder=Path("out"),
        members=("segresnet_0", "segresnet_1"),
        cases=cases,
    )


def test_ensemble_page():
    result = ensemble(
        (
            CasePrediction(case="a", prediction=Path("a.zarr"), dice={"mito": 0.5, "er": None}),
            CasePrediction(
                case="b",
                prediction=Path("b.zarr"),
                dice={"mito": 0.7},
                trivial_dice={"mito": 0.3},
                foreground_fraction={"mito": 0.25},
            ),
        ),
        (Failure(item="c", reason="out of\ndisk"),),
    )
    rows = ensemble_table(result)
    assert_plain(rows)
    assert rows[1] == {
        "case": "b",
        "prediction": "b.zarr",
        "mean Dice": 0.7,
        "over trivial": 0.4,
        "classes": "1 of 3",
        "Dice mito": 0.7,
        "Dice er": None,
        "% mito": 25.0,
    }
    page = ensemble_markdown(result)
    assert_page(page, 1)
    assert (
        "Mean Dice **0.600**, +0.300 over trivial, 1 of 3 classes scored, over the 2 of 2 cases "
        "with labels. Not scored: er, golgi."
    ) in page
    assert "| mito | 0.600 | 0.300 | 0.300 | 2 of 2 |" in page
    assert "Not predicted, because no training case shows them: er, golgi." in page
    assert "`<case>.labels.json` the classes of each id" in page
    assert "| c | out of disk |" in page


def test_ensemble_page_without_labels():
    result = ensemble(
        (CasePrediction(case="a", prediction=Path("a"), foreground_fraction={"mito": 0.5}),)
    )
    assert "There is no score: no case has labels." in ensemble_markdown(result)
    assert ensemble_table(result) == [{"case": "a", "prediction": "a", "% mito": 50.0}]


def test_small_numbers_are_not_nothing():
    table = markdown_table([{"a": 0.00002, "b": 0.0, "c": 0.5, "d": None, "e": 3}])
    assert table.splitlines()[-1] == "| 2.0e-05 | 0.000 | 0.500 | – | 3 |"


def test_pictures_are_the_same_bytes_for_the_same_data():
    def draw():
        return figures.bar_plot(["a", "b"], [1.0, None], "x", log=True)

    assert draw() == draw()
    assert figures.embedded("a", PNG) == "![a](data:image/png;base64,iVBORw0KGgo=)"
    assert figures.embedded("a", b"abc") == "![a](data:image/jpeg;base64,YWJj)"


def test_importing_the_pages_draws_nothing():
    import subprocess
    import sys

    code = (
        "import sys, cellmap_core.report.training_page, cellmap_core.report.datastats_page;"
        "print({'matplotlib', 'torch', 'monai', 'prefect', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

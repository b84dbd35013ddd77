import json

import pytest

from cellmap_core.errors import DatalistError
from cellmap_core.folds import FoldItem, assign_folds, working_datalist


def item(dataset, number, *present):
    return FoldItem(name=f"{dataset}/crop{number}", dataset=dataset, present=present)


def test_datasets_stay_together_where_there_are_enough():
    items = [item(f"d{i % 7}", i, "mito") for i in range(40)]
    folds, notes = assign_folds(items, 5)
    assert set(folds.values()) == set(range(5))
    for dataset in {i.dataset for i in items}:
        assert len({folds[i.name] for i in items if i.dataset == dataset}) == 1
    assert not notes


def test_crops_are_spread_and_it_is_said_where_datasets_are_too_few():
    folds, notes = assign_folds([item("only", i, "mito") for i in range(4)], 2)
    assert sorted(folds.values()) == [0, 0, 1, 1]
    assert "validation Dice is optimistic" in notes[0]


def test_a_rare_class_is_spread_evenly():
    items = [item(f"d{i}", i, "mito", *(["nuc"] if i < 4 else [])) for i in range(12)]
    folds, _ = assign_folds(items, 4)
    assert sorted(folds[i.name] for i in items[:4]) == [0, 1, 2, 3]


def test_a_class_of_one_fold_is_named():
    _, notes = assign_folds([item("a", 1, "mito", "np"), item("b", 2, "mito")], 2)
    assert len(notes) == 1
    assert notes[0].startswith("np is present in fold")


def test_the_order_of_the_crops_does_not_matter():
    items = [item(f"d{i % 5}", i, "mito", *(["ld"] if i % 3 else [])) for i in range(20)]
    assert assign_folds(items, 3) == assign_folds(items[::-1], 3)


def test_the_work_folder_gets_the_folds_asked_for(converted, tmp_path):
    target = working_datalist(converted.datalist, tmp_path, 3)
    document = json.loads(target.read_text())
    assert {entry["fold"] for entry in document["training"]} == {0, 1, 2}
    for entry in document["training"] + document["testing"]:
        assert (tmp_path / entry["image"]).is_file()


def test_fewer_crops_than_folds_are_refused(converted, tmp_path):
    with pytest.raises(DatalistError, match=r"4 crops to train on.*5 folds"):
        working_datalist(converted.datalist, tmp_path, 5)
    assert not list(tmp_path.iterdir())


def test_images_of_one_name_in_other_folders_are_other_cases(tmp_path):
    rows = [{"image": f"case{i}/img.nii.gz", "label": f"case{i}/seg.nii.gz"} for i in range(4)]
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps({"training": rows, "class_names": ["mito"]}))
    target = working_datalist(path, tmp_path / "work", 2)
    folds = [entry["fold"] for entry in json.loads(target.read_text())["training"]]
    assert sorted(folds) == [0, 0, 1, 1]


def test_folds_dealt_anew_are_warned_of(converted, tmp_path, caplog):
    working_datalist(converted.datalist, tmp_path, 3)
    assert "assigned anew" in caplog.text


def test_fewer_folds_than_asked_for_are_said():
    folds, notes = assign_folds([item("a", 1, "mito")], 2)
    assert set(folds.values()) == {0}
    assert notes == ("2 folds asked for, 1 made: there are no more crops",)

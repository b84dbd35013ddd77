import json

import pytest

from cellmap_core.datalist import read_datalist
from cellmap_core.errors import DatalistError
from cellmap_core.folds import FoldItem, assign_folds, check_fold_count, working_datalist
from cellmap_core.leakage import equal_files


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
    # No number of folds helps a class of one crop.
    assert notes[0].endswith("never validate it; annotate it in more crops of other datasets")
    rare = [item("a", i, "mito", *(["np"] if i == 1 else [])) for i in range(6)]
    for count in (2, 5):
        _, (_, note) = assign_folds(rare, count, "crop")
        assert note.endswith("never validate it; annotate it in more crops")


def test_a_smaller_num_fold_is_said_where_it_helps():
    items = [item(f"d{i}", i, "mito", *(["np"] if i < 3 else [])) for i in range(8)]
    _, (note,) = assign_folds(items, 4)
    assert "np is not present in fold" in note
    assert note.endswith(", or set num_fold to 3, which has it in every fold")
    _, notes = assign_folds(items, 3)
    assert not notes
    # Crops that show the same voxels are in one fold, whatever their number.
    tied = [i.model_copy(update={"together": "x"}) if "np" in i.present else i for i in items]
    _, (note,) = assign_folds(tied, 4, "crop")
    assert note.startswith("np is present in fold")
    assert "num_fold" not in note


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
    assert notes == ("2 folds asked for, 1 made: there are no more crops; add crops",)
    whole = [item("a", 1, "mito"), item("a", 2, "mito")]
    _, (note,) = assign_folds(whole, 2, "dataset")
    assert note.endswith("no more datasets; set fold_by=crop or add crops of other datasets")
    tied = [item(d, i, "mito").model_copy(update={"together": d}) for d in "ab" for i in (1, 2)]
    (note,) = (n for n in assign_folds(tied, 3, "crop")[1] if "asked for" in n)
    assert note == (
        "3 folds asked for, 2 made: crops that show the same voxels are in one fold, and the 4 "
        "crops are 2 such groups; set num_fold to 2 or less or add crops"
    )
    # To part the datasets does not help, as their crops stay together.
    _, (note,) = assign_folds(tied, 3, "dataset")
    assert note.endswith(
        "no more datasets; set num_fold to 2 or less or add crops of other datasets"
    )
    one = [i.model_copy(update={"together": "x"}) for i in tied]
    _, (note,) = assign_folds(one, 2, "dataset")
    assert "datasets with crops that show the same voxels are in one fold, and the 2 datas" in note
    assert note.endswith("; add crops of other datasets")


def test_a_class_that_no_fold_could_validate_parts_few_datasets():
    """Grouping is worth less than a score for every class, where datasets are few."""
    few = [item("a", i, "mito", "nuc") for i in (1, 2)] + [item("b", i, "mito") for i in (1, 2)]
    folds, notes = assign_folds(few, 2)
    assert {folds["a/crop1"], folds["a/crop2"]} == {0, 1}
    assert "else nuc would be in one fold alone" in notes[0]
    assert notes[0].endswith("fold_by=dataset keeps them together")
    folds, notes = assign_folds(few, 2, "dataset")
    assert folds["a/crop1"] == folds["a/crop2"]
    (note,) = notes
    assert note.startswith("nuc is present in fold")
    assert note.endswith("fold_by=crop has it in 2 folds")
    many = [*few, *(item(d, i, "mito") for d in "cd" for i in (1, 2))]
    folds, notes = assign_folds(many, 2)
    assert folds["a/crop1"] == folds["a/crop2"]
    assert notes[0].endswith("fold_by=crop has it in 2 folds")


def test_one_class_of_many_does_not_part_datasets():
    names = ("cell", "er", "ld", "mito")
    few = [item("a", i, *names, "nuc") for i in (1, 2)] + [item("b", i, *names) for i in (1, 2)]
    folds, _ = assign_folds(few, 2)
    assert folds["a/crop1"] == folds["a/crop2"]


@pytest.mark.parametrize("by", ["auto", "crop", "dataset"])
def test_crops_that_belong_together_share_a_fold(by):
    items = [item(d, i, "mito") for d in "abc" for i in (1, 2)]
    linked = [
        i.model_copy(update={"together": "x"}) if i.name in ("a/crop1", "b/crop2") else i
        for i in items
    ]
    folds, _ = assign_folds(linked, 2, by)
    assert folds["a/crop1"] == folds["b/crop2"]
    assert {*folds.values()} == {0, 1}
    if by == "dataset":
        assert len({folds[f"{d}/crop{i}"] for d in "ab" for i in (1, 2)}) == 1


def write_list(folder, contents, **more):
    """A list made elsewhere, with an image of the given bytes a case."""
    folder.mkdir(exist_ok=True)
    rows = []
    for i, content in enumerate(contents):
        (folder / f"c{i}.nii").write_bytes(content)
        rows.append({"image": f"c{i}.nii", "label": f"l{i}.nii"})
    for i, fold in enumerate(more.pop("folds", ())):
        rows[i]["fold"] = fold
    held_out = more.pop("testing", 0)
    training, testing = rows[: len(rows) - held_out], rows[len(rows) - held_out :]
    document = {"training": training, "testing": testing, "class_names": ["mito"], **more}
    (folder / "datalist.json").write_text(json.dumps(document))
    return folder / "datalist.json"


def test_equal_images_share_a_fold_and_are_named(tmp_path, caplog):
    contents = [bytes([k]) * 100_000 for k in (1, 2, 1, 3, 4, 2)]
    path = write_list(tmp_path / "d", contents, testing=1)
    work = read_datalist(working_datalist(path, tmp_path / "work", 4))
    folds = [entry.fold for entry in work.training]
    assert folds[0] == folds[2]
    assert sorted({*folds}) == [0, 1, 2, 3]
    assert "c0.nii and c2.nii show the same voxels: they are in one fold" in caplog.text
    leak = "c5.nii, which is to be predicted, shows voxels of c1.nii, which is trained on"
    assert leak in caplog.text
    assert any(leak in note for note in work.notes)


def test_files_that_differ_in_one_byte_are_no_equal_files(tmp_path):
    one, other = bytearray(1_000_000), bytearray(1_000_000)
    other[300_001] = 1
    path = write_list(tmp_path / "d", [one, other])
    assert read_datalist(working_datalist(path, tmp_path / "work", 2)).notes == ()


def test_headers_that_are_alike_do_not_make_two_pairs_one_image(tmp_path):
    for name, voxels in (("a", b"one"), ("b", b"two"), ("c", b"one")):
        (tmp_path / f"{name}.hdr").write_bytes(b"the same header")
        (tmp_path / f"{name}.img").write_bytes(voxels)
    named = [tmp_path / "a.hdr", tmp_path / "b.hdr", tmp_path / "c.img"]
    assert equal_files(named) == [[0, 2]]


def test_folds_that_part_equal_images_stand_and_are_warned_of(tmp_path, caplog):
    path = write_list(tmp_path / "d", [b"same", b"same", b"else"], folds=(0, 1, 1))
    work = read_datalist(working_datalist(path, tmp_path / "work", 2))
    assert [entry.fold for entry in work.training] == [0, 1, 1]
    assert "c0.nii (fold 0) and c1.nii (fold 1) show the same voxels" in caplog.text
    assert len(work.notes) == 1


@pytest.mark.parametrize("count", [0, 1])
def test_no_number_of_folds_does_for_fewer_than_two_crops(count, tmp_path):
    path = write_list(tmp_path / "d", [b"image"] * count)
    with pytest.raises(DatalistError, match=f"has {count} crop.* add crops: .* at least 2") as info:
        check_fold_count(path, 5)
    assert "num_fold" not in str(info.value)


def test_too_few_groups_for_the_folds_are_refused_with_the_remedy(tmp_path):
    path = write_list(tmp_path / "d", [b"same", b"same", b"same"])
    with pytest.raises(DatalistError, match=r"1 of 2 folds can be made.*same voxels") as caught:
        working_datalist(path, tmp_path / "work", 2)
    assert str(caught.value).endswith("a group of crops for each fold; add crops")
    assert not (tmp_path / "work").exists()

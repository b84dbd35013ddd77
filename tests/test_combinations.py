import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmap_core.combinations import Coder, present_classes, shared_table
from cellmap_core.datalist import read_datalist, write_datalist
from cellmap_core.errors import DatalistError
from cellmap_core.label_table import ABSENT, PRESENT, UNKNOWN, LabelTable


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_nothing_is_lost_for_any_number_of_classes(count, seed):
    states = np.random.default_rng(seed).integers(0, 3, (count, 4, 5, 6)).astype(np.uint8)
    coder = Coder()
    halves = [coder.encode(list(part), part.shape[1:]) for part in (states[:, :2], states[:, 2:])]
    coded = np.concatenate(halves)
    table = np.array(coder.seen, np.uint8)
    assert np.array_equal(np.moveaxis(table[coded], -1, 0), states)
    assert len(set(coder.seen)) == len(coder.seen)


def test_classes_of_one_state_need_no_voxels():
    varying = np.array([[[ABSENT, PRESENT, UNKNOWN]]], np.uint8)
    coder = Coder()
    coded = coder.encode([PRESENT, varying, ABSENT], (1, 1, 3))
    assert [coder.seen[i] for i in coded.ravel()] == [
        (PRESENT, s, ABSENT) for s in (ABSENT, PRESENT, UNKNOWN)
    ]
    assert len(np.unique(coder.encode([ABSENT] * 3, (2, 2, 2)))) == 1


def test_ids_are_background_then_classes_then_combinations():
    both, hidden = (PRESENT, PRESENT), (UNKNOWN, ABSENT)
    table = shared_table(("cell", "nuc"), [[(ABSENT, ABSENT), hidden], [both, (ABSENT, PRESENT)]])
    assert [(c.id, c.present, c.unknown) for c in table.combinations] == [
        (0, (), ()),
        (1, ("cell",), ()),
        (2, ("nuc",), ()),
        (3, (), ("cell",)),
        (4, ("cell", "nuc"), ()),
    ]
    assert table.groups() == [{"name": "cell", "index": [1, 4]}, {"name": "nuc", "index": [2, 4]}]
    assert table.states()[4].tolist() == [PRESENT, PRESENT]


def test_crops_added_at_the_end_leave_earlier_ids():
    first = [[(PRESENT, PRESENT, ABSENT)], [(ABSENT, UNKNOWN, ABSENT)]]
    more = [*first, [(PRESENT, PRESENT, PRESENT), (ABSENT, PRESENT, PRESENT)]]
    old, new = shared_table(("a", "b", "c"), first), shared_table(("a", "b", "c"), more)
    assert new.combinations[: len(old.combinations)] == old.combinations


def test_the_table_grows_past_a_byte():
    seen = [tuple(int(b) for b in f"{i:09b}") for i in range(300)]
    table = LabelTable.of([f"c{i}" for i in range(9)], seen)
    assert table.dtype == np.uint16


def test_present_classes():
    seen = [(ABSENT, PRESENT, UNKNOWN), (ABSENT, ABSENT, ABSENT)]
    assert present_classes(("a", "b", "c"), seen) == ("b",)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": 0}, {"id": 2}], "every id from 0 on"),
        ([{"id": 0, "present": ["golgi"]}], "golgi"),
        ([{"id": "x"}], "cannot be read"),
    ],
)
def test_a_bad_table_is_refused(rows, message):
    with pytest.raises(DatalistError, match=message):
        LabelTable.from_json(("mito",), rows)


def test_a_list_made_elsewhere_gets_a_table_from_its_groups(tmp_path):
    (tmp_path / "datalist.json").write_text(
        '{"training": [{"image": "a.nii.gz", "label": "b.nii.gz", "fold": 0}],'
        ' "class_names": [{"name": "wt", "index": [1, 2]}, {"name": "tc", "index": [1]}]}'
    )
    datalist = read_datalist(tmp_path / "datalist.json")
    assert datalist.table.combinations[1].present == ("wt", "tc")
    assert datalist.training[0].annotated_classes == (1, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"testing": None, "notes": None, "label_table": None}, None),
        ({"label_table": 3}, "label_table is int"),
        ({"training": None}, "training is NoneType"),
        ({"training": ["a.nii.gz"]}, "training entry 0 is str"),
        ({"training": [{"image": "a"}, {"image": "a"}]}, "lists a twice"),
        ({"training": [{"image": "a", "annotated_classes": [3]}]}, "id 3; expected ids 1 to 2"),
        ({"training": [{"image": "a", "annotated_classes": {"wt": 0}}]}, "class id 0"),
        ({"training": [{"image": 5}]}, "training entry 0, image: input should be a valid string"),
        ({"class_names": ["a", "a"]}, "names a twice"),
        ({"class_names": []}, "names no classes"),
    ],
)  # fmt: skip
def test_a_list_is_checked_as_a_whole(change, message, tmp_path):
    document = {"training": [{"image": "a", "label": "b"}], "class_names": ["wt", "tc"], **change}
    (tmp_path / "datalist.json").write_text(json.dumps(document))
    if message is None:
        assert read_datalist(tmp_path / "datalist.json").testing == ()
        return
    with pytest.raises(DatalistError, match=message):
        read_datalist(tmp_path / "datalist.json")


def listed(folder, **document):
    """A list made elsewhere, read."""
    document = {"training": [{"image": "a.nii", "label": "b.nii"}], **document}
    (folder / "datalist.json").write_text(json.dumps(document))
    return read_datalist(folder / "datalist.json")


TWO = [((), ()), (("mito",), ()), (("er",), ())]
GROUPS = [{"name": "mito", "index": 1}, {"name": "er", "index": 2}]
OWN = [{"id": i, "present": names, "unknown": []} for i, names in enumerate(([], ["mito"], ["er"]))]


@pytest.mark.parametrize(
    ("document", "ids"),
    [
        ({"class_names": ["mito", "er"]}, TWO),
        ({"class_names": ["Background", "mito", "er"]}, TWO),
        ({"class_names": {"1": "mito", "2": "er"}}, TWO),
        ({"labels": {"0": "background", "2": "er", "1": "mito"}}, TWO),
        ({"labels": {"er": 2, "background": 0, "mito": 1}, "file_ending": ".nii"}, TWO),
        ({"class_names": ["mito", "er"], "labels": {"mito": 1, "er": 2, "nuc": 3}}, TWO),
        ({"class_names": GROUPS, "labels": {"0": "background", "1": "mito", "2": "er"}}, TWO),
        ({"class_names": [{"name": "mito", "index": [1]}, {"name": "er", "index": [2]},
                          {"name": "_background_", "index": [0]}],
          "labels": {"0": "background", "1": "Mito"}}, TWO),
        ({"class_names": [{"name": "mito", "index": [1, 2]}, {"name": "er", "index": 2}],
          "labels": {"shell": 1, "core": 2}},  # The groups merge what the labels name.
         [((), ()), (("mito",), ()), (("mito", "er"), ())]),
        (
            {"class_names": [{"name": "background", "index": 0}, {"name": "mito", "index": 1},
                             {"name": "er", "index": 2}]},
            TWO,
        ),
        ({"labels": {"background": 0, "er": [2], "mito": [1, 2]}},
         [((), ()), (("mito",), ()), (("mito", "er"), ())]),
        ({"labels": {"background": 0, "mito": 1, "er": 2, "ignore": 3}},
         [*TWO, ((), ("mito", "er"))]),
        ({"class_names": [{"name": "mito", "index": [1]}, {"name": "background", "index": [2]}]},
         [((), ()), (("mito",), ()), ((), ())]),
    ],
)  # fmt: skip
def test_every_way_to_name_classes_gives_their_ids(document, ids, tmp_path):
    """Background first in a plain list shifted all classes by one; objects were refused."""
    datalist = listed(tmp_path, **document)
    assert [(c.present, c.unknown) for c in datalist.table.combinations] == ids
    assert datalist.table.undefined == ()
    assert datalist.training[0].annotated_classes == tuple(range(1, len(datalist.classes) + 1))
    write_datalist(tmp_path / "datalist.json", datalist)
    assert read_datalist(tmp_path / "datalist.json").table == datalist.table


def test_an_id_between_others_that_none_names_has_no_meaning(tmp_path):
    groups = [{"name": "mito", "index": [1]}, {"name": "er", "index": [3]}]
    for document in ({"class_names": groups}, {"labels": {"mito": 1, "er": 3}}):
        datalist = listed(tmp_path, **document)
        assert datalist.table.undefined == (2,)
        # The background of a prediction was written under the id without a meaning.
        assert datalist.table.id_of() == {(0, 0): 0, (1, 0): 1, (0, 1): 3}
        write_datalist(tmp_path / "datalist.json", datalist)
        assert read_datalist(tmp_path / "datalist.json").table == datalist.table


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"class_names": ["mito", "background"]}, "background at place 2; expected background fi"),
        ({"class_names": ["background"]}, "no class but background"),
        ({"class_names": ["mito", "er"], "labels": {"mito": 2, "er": 1}}, "mito at id 1, labels a"),
        ({"labels": {"mito": 0, "er": 1}}, "class mito has id 0; expected id 0 for background"),
        ({"labels": {"mito": "one"}}, "class mito has no ids but 'one'"),
        ({"labels": {"mito": -1}}, "class mito has ids -1; expected whole numbers from 0"),
        ({"labels": {"mito": 1.5}}, "class mito has ids 1.5"),
        ({"labels": {"mito": 70000}}, "class mito has ids 70000"),
        ({"labels": {"1": "mito", "2": "mito"}}, "names mito twice"),
        ({"labels": {"mito": 1, "background": [0, 1]}}, "id 1 is of a class and of background"),
        ({"labels": ["mito"]}, "names no classes"),
        ({"class_names": [{"name": "mito"}]}, "class mito has no ids but None"),
        (
            {"class_names": GROUPS, "labels": {"er": 1, "mito": 2}},
            "class_names has mito at id 1, labels at 2; expected one id",
        ),
        (
            {"class_names": {"mito": 1, "er": 2}, "labels": {"1": "er", "2": "mito"}},
            "class_names has mito at id 1, labels at 2",
        ),
        (
            {"class_names": ["mito", "er"], "labels": {"1": "golgi", "2": "nuc"}},
            "class_names calls id 1 mito, labels calls it golgi; expected one class for an id",
        ),
        (
            {"class_names": GROUPS, "labels": {"golgi": 1, "nuc": 2}},
            "class_names calls id 1 mito, labels calls it golgi",
        ),
        (
            {"class_names": GROUPS[::-1], "label_table": OWN, "labels": {"er": 1}},
            "label_table has er at id 2, labels at 1",
        ),
        (
            {
                "class_names": [{"name": "mito", "index": [2]}, {"name": "er", "index": [1]}],
                "label_table": OWN,
            },
            "label_table has mito at id 1, class_names at 2",
        ),
    ],
)
def test_classes_that_mean_no_ids_are_refused(document, message, tmp_path):
    with pytest.raises(DatalistError, match=message):
        listed(tmp_path, **document)


def test_held_out_cases_of_every_name_are_predicted(tmp_path):
    """A list called validation was dropped, and nothing said so."""
    datalist = listed(
        tmp_path,
        class_names=["mito"],
        validation=[{"image": "v.nii", "label": "w.nii", "fold": 0}],
        test=["./t.nii", {"image": "v.nii"}],
        holdout=[{"image": "h.nii"}],
    )
    assert [(e.image, e.label, e.fold) for e in datalist.testing] == [
        ("./t.nii", None, None), ("v.nii", "w.nii", None),
    ]  # fmt: skip
    one, other = datalist.remarks
    assert "the cases of its list 'validation' (1) are held out" in one
    assert "the cases of its list 'holdout' (1) are not used" in other
    write_datalist(tmp_path / "datalist.json", datalist)
    assert read_datalist(tmp_path / "datalist.json").remarks == ()


def test_files_of_one_name_are_cases_of_their_own(tmp_path):
    """Two failures of one name were one in the sum of a run's stages."""
    rows = [{"image": f"x/{c}/img.nii.gz", "label": f"x/{c}/seg.nii.gz"} for c in ("a", "b", "c")]
    other = {"image": "x/a/plain.nii.gz", "label": "x/a/seg.nii.gz"}
    datalist = listed(tmp_path, class_names=["mito"], training=[*rows[:2], other], testing=rows[2:])
    entries = (*datalist.training, *datalist.testing)
    assert [e.name for e in entries] == [
        "a/img.nii.gz", "b/img.nii.gz", "plain.nii.gz", "c/img.nii.gz",
    ]  # fmt: skip
    assert [e.stem for e in entries] == ["a_img", "b_img", "plain", "img"]
    write_datalist(tmp_path / "datalist.json", datalist)
    assert read_datalist(tmp_path / "datalist.json") == datalist


def test_ids_may_be_text(tmp_path):
    document = {
        "training": [{"image": "a", "label": "b"}],
        "class_names": [{"name": "wt", "index": "1"}],
    }
    (tmp_path / "datalist.json").write_text(json.dumps(document))
    assert read_datalist(tmp_path / "datalist.json").table.combinations[1].present == ("wt",)

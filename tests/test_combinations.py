import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellmap_core.combinations import Coder, present_classes, shared_table
from cellmap_core.datalist import read_datalist
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


def test_ids_may_be_text(tmp_path):
    document = {
        "training": [{"image": "a", "label": "b"}],
        "class_names": [{"name": "wt", "index": "1"}],
    }
    (tmp_path / "datalist.json").write_text(json.dumps(document))
    assert read_datalist(tmp_path / "datalist.json").table.combinations[1].present == ("wt",)

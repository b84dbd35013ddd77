"""Label ids of predictions: nothing is merged, whatever combinations come."""

import itertools

import numpy as np
import pytest

from cellmap_core.errors import DatalistError
from cellmap_core.inference import predicted_labels
from cellmap_core.inference.predicted_labels import PredictedLabels, read_table, write_table
from cellmap_core.label_table import LabelTable


def label(table, predicted, parts, folder):
    """The ids and the table of a prediction that comes in parts (slices of z, y, x)."""
    folder.mkdir()
    labels = PredictedLabels(table, predicted.shape[1:], folder)
    for part in parts:
        labels.add(part, predicted[(slice(None), *part)])
    return np.concatenate(list(labels.slabs())), labels.table()


def blocks(shape, size):
    edges = [[slice(a, min(a + size, n)) for a in range(0, n, size)] for n in shape]
    return list(itertools.product(*edges))


def assert_nothing_is_lost(ids, table, predicted):
    """The table gives back the classes of every voxel."""
    assert np.array_equal(np.moveaxis(table.states()[ids], -1, 0) == 1, predicted)


@pytest.mark.parametrize(("classes", "dtype"), [(2, "uint8"), (9, "uint16"), (40, "uint32")])
def test_every_combination_has_its_own_id(classes, dtype, tmp_path, monkeypatch):
    """As many as there are: the type grows when they are more than it holds."""
    # Several steps of coding in each block, and several slabs.
    monkeypatch.setattr(predicted_labels, "_CODED_VOXELS", 3000)
    monkeypatch.setattr(predicted_labels, "_SLAB_BYTES", 20000)
    names = tuple(f"c{i}" for i in range(classes))
    both = tuple(int(i < 2) for i in range(classes))
    # One id of the table is of a class that is unknown, which no prediction is.
    table = LabelTable.of(names, [both, tuple(2 * s for s in both)])
    rng = np.random.default_rng(0)
    shape = (70, 40, 30)
    predicted = rng.random((classes, *shape)) > np.linspace(0.2, 0.8, 70)[:, None, None]
    ids, own = label(table, predicted, blocks(shape, 20), tmp_path / "a")
    assert_nothing_is_lost(ids, own, predicted)
    assert own.combinations[: len(table.combinations)] == table.combinations
    assert ids.dtype == own.dtype == dtype
    # The order in which blocks come changes nothing.
    again, same = label(table, predicted, blocks(shape, 20)[::-1], tmp_path / "b")
    assert same == own
    assert np.array_equal(again, ids)


def test_what_the_datalist_knows_keeps_its_ids(tmp_path):
    table = LabelTable.of(("mito", "er"), [(2, 1), (1, 1)])
    predicted = np.array([[0, 1, 0, 1], [0, 0, 1, 1]], bool)[..., None, None]
    ids, own = label(table, predicted, [(slice(0, 4), slice(0, 1), slice(0, 1))], tmp_path / "a")
    assert ids.ravel().tolist() == [0, 1, 2, 4]
    assert own == table


def test_the_table_is_read_back_and_is_monais_groups_too(tmp_path):
    table = LabelTable.of(("mito", "er"), [(1, 1)])
    path = tmp_path / "a.labels.json"
    write_table(path, table, ["mito"])
    assert read_table(path) == table
    path.write_text("{}")
    with pytest.raises(DatalistError, match=r"a\.labels\.json cannot be read .*predict again"):
        read_table(path)

"""Conversion of real EM against the facts that came with it."""

import csv
import json

import numpy as np
import pytest

from cellmap_core.convert import convert
from cellmap_core.datalist import read_datalist
from cellmap_core.label_table import PRESENT, UNKNOWN
from cellmap_core.nifti import read_grid, read_volume
from cellmap_core.options import ConvertOptions


@pytest.fixture(scope="session")
def native(real_em, tmp_path_factory):
    """Every crop at the voxel size of its own labels."""
    return convert(
        ConvertOptions(
            datasplit=real_em / "datasplit.csv",
            test_manifest=real_em / "test_crop_manifest.csv",
            output_dir=tmp_path_factory.mktemp("real"),
            target_spacing="native",
            num_fold=2,
        )
    )


@pytest.fixture(scope="session")
def expected(real_em):
    document = json.loads((real_em / "expected.json").read_text())
    return {
        f"{dataset}/{crop}": facts
        for dataset, content in document["datasets"].items()
        for crop, facts in content["crops"].items()
    }


def test_every_crop_lies_where_it_should(native, expected):
    with native.crops_table.open() as source:
        table = {f"{r['dataset']}/{r['crop']}": r for r in csv.DictReader(source)}
    assert set(table) == set(expected)
    for name, facts in expected.items():
        start = [float(v) for v in table[name]["raw_start_vox"].split()]
        assert start == pytest.approx(facts["raw_start_edge"], abs=1e-3), name
        assert table[name]["status"] == "converted"


def test_every_voxel_of_every_class_is_counted_right(native, expected):
    datalist = read_datalist(native.datalist)
    states = datalist.table.states()
    checked = 0
    for entry in (*datalist.training, *datalist.testing):
        facts = expected[entry.name]
        assert read_grid(datalist.path(entry.image)).shape_vox == tuple(facts["shape"])
        if entry.label is None:
            continue
        counts = np.bincount(read_volume(datalist.path(entry.label)).ravel(), minlength=len(states))
        for number in entry.annotated_classes:
            told = facts["classes"][datalist.classes[number - 1]]
            column = states[:, number - 1]
            assert counts[column == PRESENT].sum() == told["present"], entry.name
            assert counts[column == UNKNOWN].sum() == told["unknown"], entry.name
            checked += 1
    assert checked == 16


def test_membranes_are_darker_than_what_they_enclose(native):
    """The labels lie on the structures: shifted, the contrast would fade."""
    datalist = read_datalist(native.datalist)
    pm = datalist.classes.index("pm")
    for entry in (*datalist.training, *datalist.testing):
        if pm + 1 not in entry.annotated_classes:
            continue
        image = read_volume(datalist.path(entry.image)).astype(float)
        column = datalist.table.states()[read_volume(datalist.path(entry.label))][..., pm]
        contrast = [
            image[np.roll(column, shift, axis=2) != PRESENT].mean()
            - image[np.roll(column, shift, axis=2) == PRESENT].mean()
            for shift in (-12, 0, 12)
        ]
        assert contrast[1] > 10, entry.name
        assert contrast[1] > max(contrast[0], contrast[2]), entry.name

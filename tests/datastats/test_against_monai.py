"""Our numbers against MONAI's DataAnalyzer, on data where MONAI is right."""

import json
import math

import numpy as np
import pytest
import yaml

from cellmap_core.datastats.analyze import analyze

# MONAI takes percentiles of labels at float32 ranks.
LABEL_PERCENTILE = 5e-3
OURS_ALONE = {"class_stats", "saturation", "cellmap", "normalisation"}


def monai_report(data, output, do_ccp):
    """Both of MONAI's reports, made from a list that it can read.

    MONAI joins the data folder onto every item of every list in an entry, so that a list of
    numbers (``annotated_classes``) ends it with a TypeError.
    """
    from monai.apps.auto3dseg import DataAnalyzer

    output.mkdir()
    entries = [e.model_dump(include={"image", "label", "fold"}) for e in data.entries]
    (output / "datalist.json").write_text(json.dumps({"training": entries}))
    DataAnalyzer(
        str(output / "datalist.json"),
        str(data.folder),
        output_path=str(output / "datastats.yaml"),
        do_ccp=do_ccp,
        device="cpu",
        worker=0,
        image_key="image",
        label_key="label",
    ).get_all_case_stats()
    return load(output / "datastats.yaml"), load(output / "datastats_by_case.yaml")


def load(path):
    return yaml.safe_load(path.read_text())


def assert_same(ours, theirs, where=""):
    if isinstance(theirs, dict):
        assert set(theirs) <= set(ours), where
        assert set(ours) - set(theirs) <= OURS_ALONE, where
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), where
        if where.endswith(".shape") and ".label." in where and isinstance(theirs[0], list):
            # Components have no order of their own.
            ours, theirs = sorted(ours), sorted(theirs)
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{where}.{i}")
    elif isinstance(theirs, str):
        assert ours == theirs, where
    elif "percentile" in where and isinstance(theirs, int):
        # Of whole numbers MONAI casts the percentiles back to whole numbers, cutting them.
        assert int(ours) == theirs, f"{where}: {ours} ≠ {theirs}"
    else:
        rel = LABEL_PERCENTILE if "percentile" in where and "label" in where else 1e-5
        assert math.isclose(ours, theirs, rel_tol=rel, abs_tol=1e-9), f"{where}: {ours} ≠ {theirs}"


def fill(data, rng, blobs, dtype, shapes):
    for i, shape in enumerate(shapes):
        image = rng.integers(1, 250, shape).astype(dtype)
        if dtype == np.float32:
            image = image + rng.random(shape, dtype=np.float32)
        data.add(f"crop{i}", image, blobs(shape, 3))
    return data.write()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("do_ccp", [False, True])
@pytest.mark.parametrize(
    ("dtype", "shapes"),
    [
        (np.uint8, [(13, 11, 17)]),
        (np.uint8, [(13, 11, 17), (9, 20, 14), (12, 12, 12), (7, 9, 10)]),
        (np.uint16, [(13, 11, 17), (9, 20, 14)]),
        (np.float32, [(13, 11, 17), (9, 20, 14)]),
        (np.int16, [(13, 11, 17)]),
    ],
)
def test_every_number_is_monais(
    new_data_set, rng, blobs, tmp_path, dtype, shapes, do_ccp, monkeypatch
):
    # Several slabs a case, so that the joins between slabs are compared too.
    monkeypatch.setattr("cellmap_core.datastats.tally._SLAB_VOXELS", 4 * 11 * 17)
    data = new_data_set()
    datalist = fill(data, rng, blobs, dtype, shapes)
    summary, by_case = monai_report(data, tmp_path / "monai", do_ccp)
    result = analyze(datalist, tmp_path / "ours", do_ccp)
    ours = load(result.datastats)
    assert ours["stats_by_cases"] == []
    assert_same(ours["stats_summary"], summary["stats_summary"])
    assert_same(load(result.datastats_by_case), by_case)
    assert len(by_case["stats_by_cases"]) == len(shapes)

"""Crops to look at: each kind of oddity is named, and nothing else is."""

import io

import numpy as np
import pytest
import yaml
from PIL import Image

from cellmap_core.datastats.analyze import analyze
from cellmap_core.datastats.outliers import find_outliers
from cellmap_core.label_table import PRESENT, UNKNOWN

SHAPE = (12, 16, 20)


@pytest.fixture
def data(new_data_set, rng):
    """Eight ordinary crops of two classes."""
    made = new_data_set(("a", "b"), [(UNKNOWN, UNKNOWN), (PRESENT, PRESENT)])
    for i in range(8):
        made.add(f"plain{i}", ordinary(rng), halves())
    return made


def ordinary(rng, mean=130, stdev=25):
    return np.clip(rng.normal(mean, stdev, SHAPE), 1, 254).astype(np.uint8)


def halves():
    label = np.ones(SHAPE, np.uint8)
    label[6:] = 2
    return label


def odd_ones(data, tmp_path):
    result = analyze(data.write(), tmp_path / "work")
    cases = yaml.safe_load(result.datastats_by_case.read_text())["stats_by_cases"]
    return {o.case.removeprefix("jrc_test/"): o.text() for o in find_outliers(cases)}, result


def test_ordinary_crops_are_not_named(data, tmp_path):
    found, result = odd_ones(data, tmp_path)
    assert found == {}
    assert not (result.analysis.parent / "analysis" / "outliers.jpg").exists()
    assert "to look at" not in result.analysis.read_text()


def test_each_kind_is_named(data, rng, tmp_path):
    data.add("blank", np.full(SHAPE, 9, np.uint8), halves())
    burnt = ordinary(rng)
    burnt[rng.random(SHAPE) < 0.1] = 255
    data.add("burnt", burnt, halves())
    black = ordinary(rng)
    black[rng.random(SHAPE) < 0.1] = 0
    data.add("black", black, halves())
    data.add("bright", ordinary(rng, mean=200), halves())
    data.add("faint", ordinary(rng, stdev=5), halves())
    data.add("one", ordinary(rng), np.ones(SHAPE, np.uint8))
    data.add("none", ordinary(rng), np.zeros(SHAPE, np.uint8))
    data.add("unknown", ordinary(rng), np.full(SHAPE, 3, np.uint8))
    data.add(
        "shifted", ordinary(rng), halves(), alignment="shifted", label_shift_nm=(0.0, -40.0, 8.0)
    )
    # Padding outside the EM is black, and nobody knows what is there.
    padded, label = ordinary(rng), halves()
    padded[:, :2], label[:, :2] = 0, 3
    data.add("padded", padded, label)
    found, result = odd_ones(data, tmp_path)
    expected = {
        "blank": "blank (every voxel is 9)",
        "burnt": "of the known voxels are plain white)",
        "black": "of the known voxels are plain black)",
        "bright": "another brightness (mean 2",
        "faint": "another contrast (stdev ",
        "one": "one label only (a)",
        "none": "one label only (background)",
        "unknown": "no voxel of any class is known",
        "shifted": "misaligned (labels lie y -40, x +8 nm off the EM)",
    }
    assert set(found) == set(expected)
    for name, text in expected.items():
        assert text in found[name], name
    page = result.analysis.read_text()
    assert "## 9 crops to look at" in page
    assert "![Crops to look at](analysis/outliers.jpg)" in page
    picture = (result.analysis.parent / "analysis" / "outliers.jpg").read_bytes()
    assert Image.open(io.BytesIO(picture)).width > 300


def test_saturation_is_at_the_ends_of_the_crop_whatever_its_type(new_data_set, rng, tmp_path):
    data = new_data_set()
    twelve_bits = rng.integers(100, 4096, SHAPE).astype(np.uint16)
    twelve_bits[rng.random(SHAPE) < 0.2] = 4095
    parts = rng.random(SHAPE).astype(np.float32)
    parts[rng.random(SHAPE) < 0.2] = 0
    data.add("bits", twelve_bits, halves())
    data.add("parts", parts, halves())
    data.add("few", rng.integers(0, 9, SHAPE).astype(np.uint8), halves())
    data.add("fine", rng.random(SHAPE).astype(np.float32), halves())
    found, _ = odd_ones(data, tmp_path)
    assert set(found) == {"bits", "parts"}
    assert "plain white" in found["bits"]
    assert "plain black" in found["parts"]


def test_what_is_blank_is_said_exactly(new_data_set, rng, tmp_path):
    data = new_data_set()
    dot = np.zeros(SHAPE, np.uint8)
    dot[3, 4, 5] = 5
    data.add("dot", dot, halves())
    data.add("channels", np.stack([ordinary(rng), np.full(SHAPE, 7, np.uint8)]), halves())
    found, _ = odd_ones(data, tmp_path)
    assert found == {
        "dot": "blank (all that is not black is 5)",
        "channels": "channel 1: blank (every voxel is 7)",
    }


def test_few_crops_have_no_usual_contrast(new_data_set, rng, tmp_path):
    data = new_data_set()
    for i, mean in enumerate((60, 130, 200)):
        data.add(f"c{i}", ordinary(rng, mean), halves())
    assert odd_ones(data, tmp_path)[0] == {}

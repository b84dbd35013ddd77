"""The drop-in for MONAI's DataAnalyzer: plain files, its numbers where they are right."""

import json

import numpy as np
import pytest
import yaml

from cellmap_core.datastats.analyzer import DataAnalyzer
from cellmap_core.errors import DatalistError, OptionError, StatisticsError
from tests.datastats.conftest import write
from tests.datastats.test_against_monai import assert_same


@pytest.fixture
def plain(tmp_path):
    """Writes a case and lists it, without a word on classes."""
    rows = []

    def add(image, label=None):
        row = {}
        for key, volume in (("image", image), ("label", label)):
            if volume is not None:
                row[key] = f"{key}{len(rows)}.nii.gz"
                write(tmp_path / row[key], volume)
        rows.append({**row, "fold": 0})
        return {"training": rows}

    return add


def monai(datalist, root, output, **options):
    from monai.apps.auto3dseg import DataAnalyzer as Peer

    (output.parent / "peer.json").write_text(json.dumps(datalist))
    peer = Peer(
        str(output.parent / "peer.json"),
        str(root),
        output_path=str(output),
        device="cpu",
        worker=0,
        **options,
    )
    peer.get_all_case_stats()
    by_case = output.with_name(output.name.replace(".yaml", "_by_case.yaml"))
    return yaml.safe_load(output.read_text()), yaml.safe_load(by_case.read_text())


def without_intensity(document):
    for key in [k for k in document if "intensity" in k]:
        del document[key]
    for value in document.values():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                without_intensity(part)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("do_ccp", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_number_of_plain_files_is_monais(plain, rng, blobs, tmp_path, do_ccp, channels):
    for shape in ((9, 11, 7), (8, 10, 12)):
        many = (channels, *shape) if channels > 1 else shape
        datalist = plain(rng.integers(1, 250, many).astype(np.uint8), blobs(shape, 3))
    theirs = monai(datalist, tmp_path, tmp_path / "theirs.yaml", do_ccp=do_ccp)
    ours = DataAnalyzer(datalist, tmp_path, tmp_path / "ours.yaml", do_ccp=do_ccp)
    report = ours.get_all_case_stats()
    assert ours.failures == ()
    assert_same(report["stats_by_cases"], theirs[1]["stats_by_cases"])
    if channels > 1:
        # MONAI's summary of intensities leaves out all channels but the first.
        means = [i["mean"] for c in report["stats_by_cases"] for i in c["image_stats"]["intensity"]]
        summary = report["stats_summary"]["image_stats"]["intensity"]
        assert summary["mean"] == pytest.approx(np.mean(means))
        for document in (report["stats_summary"], theirs[0]["stats_summary"]):
            without_intensity(document)
    assert_same(report["stats_summary"], theirs[0]["stats_summary"])
    assert yaml.safe_load((tmp_path / "ours.yaml").read_text())["stats_by_cases"] == []
    written = yaml.safe_load((tmp_path / "ours_by_case.yaml").read_text())
    assert written["stats_by_cases"] == report["stats_by_cases"]


@pytest.mark.filterwarnings("ignore")
def test_histograms_are_monais(plain, rng, tmp_path):
    """MONAI overwrites the first case's histogram by the total: one case, and the total."""
    datalist = plain(
        rng.integers(0, 250, (2, 5, 6, 7)).astype(np.int16), np.ones((5, 6, 7), np.uint8)
    )
    options = {"hist_bins": [7, 5], "hist_range": [[0, 200], [-10, 300]]}
    theirs, _ = monai(datalist, tmp_path, tmp_path / "theirs.yaml", **options)
    plain(rng.integers(0, 250, (2, 5, 6, 7)).astype(np.int16), np.ones((5, 6, 7), np.uint8))
    report = DataAnalyzer(datalist, tmp_path, "", **options).get_all_case_stats()
    first, second = (case["image_histogram"] for case in report["stats_by_cases"])
    for ours, expected in zip(
        first, theirs["stats_summary"]["image_histogram"]["histogram"], strict=True
    ):
        assert ours["counts"] == expected["counts"]
        assert ours["bin_edges"] == pytest.approx(expected["bin_edges"])
    total = report["stats_summary"]["image_histogram"]["histogram"]
    for one, other, both in zip(first, second, total, strict=True):
        assert both["counts"] == np.add(one["counts"], other["counts"]).tolist()


def test_labels_of_any_integer_type_keep_their_ids(plain, tmp_path):
    large = 3_000_000_017
    label = np.zeros((4, 3, 2), np.int64)
    label[0], label[1] = large, -5
    image = (label > 0).astype(np.uint8) * 100 + 1
    datalist = plain(image, label)
    plain(image, label.astype(np.float64))
    report = DataAnalyzer(datalist, tmp_path, "", do_ccp=True).get_all_case_stats()
    for case in report["stats_by_cases"]:
        assert case["label_stats"]["labels"] == [-5, 0, large]
        means = [row["image_intensity"][0]["mean"] for row in case["label_stats"]["label"]]
        assert means == [1, 1, 101]
        assert [row["ncomponents"] for row in case["label_stats"]["label"]] == [1, 1, 1]
        assert case["image_foreground_stats"]["intensity"][0]["mean"] == 101
    assert report["stats_summary"]["label_stats"]["labels"] == [-5, 0, large]


def test_images_alone(plain, rng, tmp_path):
    datalist = plain(rng.integers(1, 9, (4, 3, 2)).astype(np.uint8))
    report = DataAnalyzer(datalist, tmp_path, "", label_key=None, do_ccp=True).get_all_case_stats()
    assert set(report["stats_summary"]) == {"image_stats", "n_cases"}
    assert report["stats_by_cases"][0]["label_filepath"] == "None"


def test_what_cannot_be_analysed_is_named(plain, tmp_path, caplog):
    ones = np.ones((4, 3, 2), np.uint8)
    datalist = plain(ones * 0, ones)
    plain(np.full((4, 3, 2), np.inf, np.float32), ones)
    plain(ones, ones[:2])
    datalist["training"].append({"image": "gone.nii.gz", "label": "label0.nii.gz"})
    analyzer = DataAnalyzer(datalist, tmp_path, tmp_path / "out.json", fmt="json")
    report = analyzer.get_all_case_stats()
    # The blank case is none of them.
    assert report["stats_summary"]["n_cases"] == 1
    reasons = [failure.reason for failure in analyzer.failures]
    assert len(reasons) == 3
    assert "NaN or infinite" in reasons[0]
    assert "differ in shape" in reasons[1]
    assert "no file" in reasons[2]
    assert all(failure.item in caplog.text for failure in analyzer.failures)
    assert json.loads((tmp_path / "out_by_case.json").read_text()) == report


def test_wrong_use_is_one_line(plain, tmp_path):
    datalist = plain(np.ones((4, 3, 2), np.uint8), np.ones((2, 3, 2), np.uint8))
    with pytest.raises(StatisticsError, match="none of 1 cases has statistics, the first because"):
        DataAnalyzer(datalist, tmp_path, "").get_all_case_stats()
    with pytest.raises(DatalistError, match="no list testing"):
        DataAnalyzer(datalist, tmp_path, "").get_all_case_stats("testing")
    with pytest.raises(DatalistError, match="cannot be read"):
        DataAnalyzer(tmp_path / "none.json").get_all_case_stats()
    with pytest.raises(DatalistError, match="one file each as image, mask"):
        DataAnalyzer(datalist, label_key="mask").get_all_case_stats()
    for wrong in (
        {"average": False},
        {"fmt": "toml"},
        {"hist_bins": [3, 3]},
        {"hist_bins": -1},
        {"hist_bins": 3, "hist_range": [5, 1]},
        {"hist_bins": 3, "hist_range": ["a", "b"]},
    ):
        with pytest.raises(OptionError):
            DataAnalyzer(datalist, **wrong)

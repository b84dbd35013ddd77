"""The stage: the summary by label value, caching, failures, files."""

import gzip
import json
import re
import shutil

import numpy as np
import pytest
import yaml

from cellmap_core.datastats import analyze as stage
from cellmap_core.datastats.analyze import analyze
from cellmap_core.datastats.findings import findings
from cellmap_core.datastats.reduce import summarize
from cellmap_core.datastats.reports import read_summary
from cellmap_core.errors import BusyError, DatalistError, OptionError, StatisticsError
from cellmap_core.label_table import UNKNOWN
from cellmap_core.provenance import held
from cellmap_core.training.rules import propose
from tests.datastats.conftest import write


def case_of(labels):
    """Equal parts of each label; intensity 10·label + 5."""
    label = np.repeat(np.array(labels, np.uint8), 12).reshape(len(labels), 3, 4)
    return label * 10 + 5, label


@pytest.fixture
def three(new_data_set):
    """The data on which MONAI's summary mixes up its labels."""
    data = new_data_set(tuple(f"class{i}" for i in range(1, 16)))
    for i, labels in enumerate(([0, 1, 2], [0, 2], [0, 14])):
        data.add(f"crop{i}", *case_of(labels))
    return data


def test_summary_is_by_label_value(three, tmp_path):
    result = analyze(three.write(), tmp_path / "work", do_ccp=True)
    summary = read_summary(result.datastats)
    stats = summary["label_stats"]
    assert stats["labels"] == [0, 1, 2, 14]
    means = {
        i: r["image_intensity"]["mean"]
        for i, r in zip(stats["labels"], stats["label"], strict=True)
    }
    assert means == {0: 5.0, 1: 15.0, 2: 25.0, 14: 145.0}
    fractions = [r["foreground_percentage"]["mean"] for r in stats["label"]]
    assert fractions == pytest.approx(
        [(1 / 3 + 1 / 2 + 1 / 2) / 3, 1 / 3, (1 / 3 + 1 / 2) / 2, 0.5]
    )
    assert [r["ncomponents"]["max"] for r in stats["label"]] == [1, 1, 1, 1]
    assert stats["label"][3]["shape"]["max"] == [4, 3, 1]
    assert summary["n_cases"] == 3
    assert summary["image_stats"]["shape"]["max"] == [4, 3, 3]
    assert summary["image_foreground_stats"]["intensity"]["max"] == 145
    # Foreground means 20, 25 and 145.
    assert summary["image_foreground_stats"]["intensity"]["mean"] == pytest.approx(190 / 3)


def test_class_rows(three, tmp_path):
    three.add("crop3", *case_of([0, 1]), annotated=[1])
    summary = read_summary(analyze(three.write(), tmp_path / "work").datastats)
    rows = {r["name"]: r for r in summary["class_stats"]}
    assert len(rows) == 15
    one, two = rows["class1"], rows["class2"]
    assert (one["annotated_in"], one["present_in"], one["absent_in"]) == (4, 2, 2)
    assert (two["annotated_in"], two["present_in"], two["absent_in"]) == (3, 2, 1)
    assert one["voxels"] == {"present": 24, "absent": 84, "unknown": 0}
    assert one["foreground_percentage"]["max"] == 0.5
    assert one["image_intensity"]["mean"] == 15
    assert rows["class9"]["image_intensity"] is None
    assert rows["class9"]["foreground_percentage"]["max"] == 0


def test_result_does_not_depend_on_the_order(new_data_set, rng, tmp_path):
    data = new_data_set()
    for i in range(7):
        data.add(
            f"crop{i}",
            rng.integers(0, 256, (3, 4, 5)).astype(np.uint8),
            rng.integers(0, 3, (3, 4, 5)).astype(np.uint8),
        )
    result = analyze(data.write(), tmp_path / "work")
    cases = yaml.safe_load(result.datastats_by_case.read_text())["stats_by_cases"]
    expected = summarize(cases, data.table.classes)
    for _ in range(10):
        shuffled = [cases[i] for i in rng.permutation(len(cases))]
        assert summarize(shuffled, data.table.classes) == expected


def test_class_unknown_throughout_is_neither_present_nor_absent(new_data_set, tmp_path):
    data = new_data_set(("a",), [(UNKNOWN,)])
    ones = np.ones((2, 2, 2), np.uint8)
    data.add("present", ones, ones)
    data.add("unknown", ones, ones * 2)
    (row,) = read_summary(analyze(data.write(), tmp_path / "work").datastats)["class_stats"]
    assert (row["annotated_in"], row["present_in"], row["absent_in"]) == (2, 1, 0)
    assert row["foreground_percentage"]["min"] == 1


def test_moved_data_stay_current(three, tmp_path):
    analyze(three.write(), three.folder / "work")
    moved = three.folder.rename(tmp_path / "moved")
    result = analyze(moved / "datalist.json", moved / "work")
    assert (result.done, result.current) == (0, 3)
    cases = yaml.safe_load(result.datastats_by_case.read_text())["stats_by_cases"]
    assert [c["image_filepath"] for c in cases] == [
        str(moved / f"images/crop{i}.nii.gz") for i in range(3)
    ]


def files_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_second_run_does_nothing(three, tmp_path, monkeypatch):
    datalist, work = three.write(), tmp_path / "work"
    first = analyze(datalist, work)
    assert (first.done, first.current) == (3, 0)
    before = files_of(work)
    assert {"class_balance.png", "crop_sizes.png", "annotation_matrix.png"} <= {
        p.name for p in before
    }

    def forbidden(*_args):
        raise AssertionError("nothing may be computed")

    with monkeypatch.context() as patch:
        patch.setattr(stage, "case_statistics", forbidden)
        patch.setattr(stage, "summarize", forbidden)
        second = analyze(datalist, work)
    assert (second.done, second.current) == (0, 3)
    assert second.up_to_date
    assert files_of(work) == before
    # Made again from nothing the reports are the same, byte by byte.
    again = tmp_path / "again"
    analyze(datalist, again)
    for name in ("datastats.yaml", "datastats_by_case.yaml", "analysis.md"):
        assert (again / name).read_bytes() == (work / name).read_bytes()
    for picture in (work / "analysis").iterdir():
        assert (again / "analysis" / picture.name).read_bytes() == picture.read_bytes()


def test_only_what_changed_is_computed(three, tmp_path):
    work = tmp_path / "work"
    analyze(three.write(), work)
    three.add("crop9", *case_of([0, 3]))
    added = analyze(three.write(), work)
    assert (added.done, added.current) == (1, 3)
    assert read_summary(added.datastats)["n_cases"] == 4
    # A changed file, a changed annotation and a changed option each count.
    three.entries.pop()
    three.add("crop9", *case_of([0, 4]))
    assert analyze(three.write(), work).done == 1
    three.entries[0] = three.entries[0].model_copy(update={"annotated_classes": (1,)})
    assert analyze(three.write(), work).done == 1
    assert analyze(three.write(), work, do_ccp=True).done == 4


def test_other_files_of_the_same_names_are_read(three, new_data_set, tmp_path):
    """As after a conversion into another folder, or when an entry gets another label file."""
    work = tmp_path / "work"
    analyze(three.write(), work)
    other = new_data_set(three.table.classes, folder="other")
    for i in range(3):
        image, label = case_of([0, 1])
        other.add(f"crop{i}", image + 100, label)
    result = analyze(other.write(), work)
    assert (result.done, result.current) == (3, 0)
    assert (
        read_summary(result.datastats)["label_stats"]["label"][1]["image_intensity"]["min"] == 115
    )
    # The same content elsewhere is the same case.
    copy = tmp_path / "copy"
    shutil.copytree(other.folder, copy)
    assert analyze(copy / "datalist.json", work).current == 3
    entry = other.entries[0]
    (other.folder / "labels_v2").mkdir()
    write(other.folder / "labels_v2/crop0.nii.gz", np.ones((2, 3, 4), np.uint8))
    other.entries[0] = entry.model_copy(update={"label": "labels_v2/crop0.nii.gz"})
    result = analyze(other.write(), work)
    assert result.done == 1
    cases = yaml.safe_load(result.datastats_by_case.read_text())["stats_by_cases"]
    assert cases[0]["label_stats"]["labels"] == [1]


def test_names_with_dollars_are_drawn_as_they_are(new_data_set, tmp_path):
    data = new_data_set(("a$b$", "\\frac{$", "x|y"))
    for i in range(2):
        data.add(f"crop{i}$_x", *case_of([0, 1, 2, 3]), dataset="jrc_$x_0|é$")
    assert analyze(data.write(), tmp_path / "work").analysis.is_file()


def test_no_odd_crop_moves_the_scale_of_all(new_data_set, rng, tmp_path):
    def scale_of(name, odd):
        data = new_data_set(("a", "b"), folder=name)
        for i in range(8):
            image = np.random.default_rng(i).normal(128, 20, (6, 20, 20)).astype(np.float32)
            data.add(f"c{i}", image, case_label)
        for i, image in enumerate(odd):
            data.add(f"odd{i}", image.astype(np.float32), case_label)
        summary = read_summary(analyze(data.write(), tmp_path / name / "work").datastats)
        return propose(summary, 8)["normalisation"][0]

    case_label = rng.integers(0, 3, (6, 20, 20)).astype(np.uint8)
    ordinary = scale_of("ordinary", [])
    assert ordinary["mean"] == pytest.approx(128, abs=2)
    assert ordinary["stdev"] == pytest.approx(20, rel=0.05)
    hot = np.random.default_rng(9).normal(128, 20, case_label.shape)
    hot[0, 0, 0] = 1e30
    blank = np.zeros(case_label.shape)
    for name, odd in (("blank", [blank, blank]), ("hot", [hot])):
        assert scale_of(name, odd) == pytest.approx(ordinary, rel=0.03), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(label_table=[]), r"label_table ids \[\]; expected every id"),
        (
            lambda d: d["training"].append({**d["training"][0], "image": "./images/crop0.nii.gz"}),
            "lists images/crop0.nii.gz twice",
        ),
    ],
)
def test_a_datalist_that_contradicts_itself_is_refused(three, tmp_path, change, message):
    path = three.write()
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(DatalistError, match=message):
        analyze(path, tmp_path / "work")


def test_a_folder_that_cannot_be_made_is_named(three, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="file/work cannot be made"):
        analyze(three.write(), tmp_path / "file" / "work")


def test_lost_report_is_written_again(three, tmp_path):
    datalist, work = three.write(), tmp_path / "work"
    result = analyze(datalist, work)
    before = result.datastats.read_bytes()
    result.datastats.unlink()
    assert analyze(datalist, work).done == 0
    assert result.datastats.read_bytes() == before


def test_bad_cases_fail_by_name_and_the_rest_goes_on(three, tmp_path):
    ones = np.ones((2, 3, 4), np.uint8)
    three.add("shape", ones, ones[:, :2])
    three.add("id", ones, ones * 16)
    three.add("nan", np.full((2, 3, 4), np.nan, np.float32), ones)
    cut = three.folder / three.add("cut", ones, ones).image
    cut.write_bytes(cut.read_bytes()[:-12])
    rubbish = three.folder / three.add("rubbish", ones, ones).image
    rubbish.write_bytes(b"not gzip at all")
    short = three.folder / three.add("short", ones, ones).label
    short.write_bytes(gzip.compress(gzip.decompress(short.read_bytes())[:-3]))
    (three.folder / three.add("gone", ones, ones).label).unlink()
    header = three.folder / three.add("type", ones, ones, suffix=".nii").image
    header.write_bytes(header.read_bytes()[:70] + b"\xe7\x03" + header.read_bytes()[72:])
    flat = three.folder / three.add("flat", ones, ones, suffix=".nii").image
    flat.write_bytes(flat.read_bytes()[:40] + b"\x02" + flat.read_bytes()[41:])
    three.add("blank", ones * 0, ones * 0)
    result = analyze(three.write(), tmp_path / "work")
    names = ("shape", "id", "nan", "cut", "rubbish", "short", "gone", "type", "flat")
    assert [f.item for f in result.failures] == [f"jrc_test/{n}" for n in names]
    assert result.done == 4
    assert read_summary(result.datastats)["n_cases"] == 4
    page = result.analysis.read_text()
    assert all(f"jrc_test/{n}" in page for n in names)
    # A failed case is tried again.
    assert len(analyze(three.write(), tmp_path / "work").failures) == len(names)


def test_no_case_at_all(new_data_set, tmp_path):
    data = new_data_set()
    data.add("c", np.ones((2, 3, 4), np.uint8), np.ones((2, 3, 3), np.uint8))
    with pytest.raises(StatisticsError, match="none of the 1 training cases"):
        analyze(data.write(), tmp_path / "work")


def test_two_cases_of_one_file_name(three, tmp_path):
    entry = three.entries[0]
    other = three.folder / "other"
    other.mkdir()
    three.add("twin", *case_of([0, 14]))
    twin = three.entries.pop()
    for kind in ("image", "label"):
        (three.folder / getattr(twin, kind)).rename(other / f"{kind}s.nii.gz")
    (other / "crop0.nii.gz").write_bytes((other / "images.nii.gz").read_bytes())
    three.entries.append(
        entry.model_copy(update={"image": "other/crop0.nii.gz", "label": "other/labels.nii.gz"})
    )
    result = analyze(three.write(), tmp_path / "work")
    cases = yaml.safe_load(result.datastats_by_case.read_text())["stats_by_cases"]
    assert [c["label_stats"]["labels"] for c in cases] == [[0, 1, 2], [0, 2], [0, 14], [0, 14]]
    assert analyze(three.write(), tmp_path / "work").current == 4


def test_yaml_is_plain(three, tmp_path):
    result = analyze(three.write(), tmp_path / "work", do_ccp=True)
    text = result.datastats_by_case.read_text()
    assert "!!" not in text
    assert "&id" not in text
    assert yaml.safe_load(text)["stats_summary"] == read_summary(result.datastats)


def test_summary_of_a_missing_file(tmp_path):
    with pytest.raises(StatisticsError, match="flows/analyze"):
        read_summary(tmp_path / "datastats.yaml")
    (tmp_path / "datastats.yaml").write_text("[1, 2]")
    with pytest.raises(StatisticsError, match="stats_summary"):
        read_summary(tmp_path / "datastats.yaml")


def test_work_runs_in_other_processes(three, tmp_path):
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:

        def spread(function, items, *, done=None, lost=None):
            results = list(pool.map(function, items))
            for result in results:
                done(result)
            return results

        result = analyze(three.write(), tmp_path / "work", mapper=spread)
    assert result.done == 3
    here = analyze(three.write(), tmp_path / "here")
    for name in ("datastats.yaml", "datastats_by_case.yaml", "analysis.md"):
        assert (tmp_path / "work" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    assert here.done == 3


def test_a_case_whose_worker_dies_is_named_and_the_rest_goes_on(three, tmp_path):
    def killer(function, items, *, done=None, lost=None):
        results = [lost(items[0], RuntimeError("gone")), *map(function, items[1:])]
        for result in results:
            done(result)
        return results

    result = analyze(three.write(), tmp_path / "work", mapper=killer)
    assert [(f.item, f.reason) for f in result.failures] == [
        ("jrc_test/crop0", "its worker was killed (RuntimeError); out of memory?")
    ]
    assert result.done == 2


def test_progress_is_told(three, tmp_path):
    told = []
    analyze(three.write(), tmp_path / "work", report=lambda part, what: told.append((part, what)))
    assert [part for part, _ in told] == pytest.approx([1 / 3, 2 / 3, 1])
    assert told[-1][1].startswith("3 of 3, ")


def test_one_analysis_at_a_time_in_one_folder(three, tmp_path):
    work = tmp_path / "work"
    with held(work / ".cache" / "datastats"), pytest.raises(BusyError, match="another run"):
        analyze(three.write(), work)


def test_findings_name_what_follows(three, tmp_path):
    three.add("blank", np.zeros((3, 3, 4), np.uint8), np.zeros((3, 3, 4), np.uint8), annotated=[1])
    result = analyze(three.write(), tmp_path / "work")
    document = yaml.safe_load(result.datastats_by_case.read_text())
    found = {f.topic: f for f in findings(document["stats_summary"], document["stats_by_cases"])}
    assert "4 × 6 × 8 nm" in found["Voxel spacing"].finding
    assert "class14 (12 voxels, 14.29% of known, 1 crop)" in found["In too few crops"].finding
    assert "Too rare to trust" not in found
    assert "class3" in found["Classes nowhere present"].finding
    assert "class1," not in found["Classes nowhere present"].finding
    assert "Classes nowhere annotated" not in found
    assert "2 × 3 × 4 to 3 × 3 × 4" in found["Crop sizes"].finding
    (size,) = re.findall("Patch size (.*?), batch size", found["Crop sizes"].consequence)
    proposed = propose(document["stats_summary"], 4)
    assert size == " × ".join(map(str, proposed["patch_size_vox"][0]))


def test_findings_see_mixed_spacing(new_data_set, tmp_path):
    data = new_data_set()
    ones = np.ones((3, 3, 3), np.uint8)
    data.add("a", ones, ones, annotated=[1])
    data.add("b", ones, ones, annotated=[1], voxel_nm=(8.0, 8.0, 8.0))
    result = analyze(data.write(), tmp_path / "work")
    document = yaml.safe_load(result.datastats_by_case.read_text())
    found = {f.topic: f for f in findings(document["stats_summary"], document["stats_by_cases"])}
    assert "Not the same" in found["Voxel spacing"].finding
    assert found["Classes nowhere annotated"].finding == "b."


def foreign(folder, volumes, **document):
    """A list made elsewhere: an image and a label file a case, and how it names classes."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    rows = []
    for i, label in enumerate(volumes):
        label = np.asarray(label, np.uint8).reshape(-1, 3, 4)
        write(folder / f"images/c{i}.nii", label * 10 + np.uint8(i))
        write(folder / f"labels/c{i}.nii", label)
        rows.append({"image": f"images/c{i}.nii", "label": f"labels/c{i}.nii"})
    (folder / "datalist.json").write_text(json.dumps({"training": rows, **document}))
    return folder / "datalist.json"


@pytest.mark.parametrize(
    "document",
    [
        {"class_names": ["background", "mito", "er"]},
        {"labels": {"0": "background", "1": "mito", "2": "er"}},
        {"labels": {"background": 0, "mito": 1, "er": 2, "ignore": 3}},
    ],
)
def test_classes_of_other_tools_have_the_voxels_of_their_ids(document, tmp_path):
    label = np.repeat([0, 1, 1, 2], 12)
    ignored = 0
    if "ignore" in document.get("labels", {}):
        label, ignored = np.concatenate([label, np.full(12, 3)]), 12
    result = analyze(foreign(tmp_path / "data", [label], **document), tmp_path / "work")
    rows = {r["name"]: r["voxels"] for r in read_summary(result.datastats)["class_stats"]}
    assert rows == {
        name: {
            "present": int((label == i).sum()),
            "absent": int((label != i).sum()) - ignored,
            "unknown": ignored,
        }
        for i, name in enumerate(("mito", "er"), start=1)
    }


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (
            {"class_names": ["mito", "er"]},
            r"labels/c1\.nii has label ids from 0 to 3; expected",
        ),
        ({"labels": {"mito": 1, "er": 4}}, r"labels/c1\.nii has the label id 3; expected"),
    ],
)
def test_a_label_id_outside_the_table_names_its_file(document, message, tmp_path):
    labels = [np.repeat([0, 1], 12), np.repeat([0, 3], 12)]
    result = analyze(foreign(tmp_path / "data", labels, **document), tmp_path / "work")
    (failure,) = result.failures
    assert failure.item == "c1.nii"
    assert re.search(message, failure.reason)


def test_the_same_image_twice_is_named(tmp_path, caplog):
    path = foreign(tmp_path / "data", [np.repeat([0, 1], 12)] * 2, class_names=["mito"])
    shutil.copy(tmp_path / "data/images/c0.nii", tmp_path / "data/images/c1.nii")
    analyze(path, tmp_path / "work")
    assert re.search(r"c0\.nii .*and c1\.nii .*show the same voxels", caplog.text)

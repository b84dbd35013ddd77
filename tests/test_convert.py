"""Conversion of the phantom against the function it is drawn from."""

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import zarr

from cellmap_core.convert import check_crop_count, convert
from cellmap_core.datalist import read_datalist
from cellmap_core.errors import BusyError, DatasplitError, IncompleteError, OptionError
from cellmap_core.folds import working_datalist
from cellmap_core.label_table import PRESENT, UNKNOWN
from cellmap_core.models import StageResult
from cellmap_core.nifti import read_grid, read_volume
from cellmap_core.options import ConvertOptions
from cellmap_core.phantom import SPECIMENS, label_grid, tissue
from cellmap_core.provenance import held


@pytest.fixture
def own_phantom(phantom, tmp_path) -> Path:
    """A phantom that a test may break."""
    shutil.copytree(phantom.parent, tmp_path / "data")
    return tmp_path / "data" / phantom.name


def run(datasplit, output, **options):
    return convert(ConvertOptions(datasplit=datasplit, output_dir=output, num_fold=2, **options))


def rows(result):
    with result.crops_table.open() as source:
        return {f"{r['dataset']}/{r['crop']}": r for r in csv.DictReader(source)}


def places(folder):
    """Which file, written when: of one that is written anew both change."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {p.relative_to(folder): (p.stat().st_ino, p.stat().st_mtime_ns) for p in files}


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_labels_are_the_phantom_at_every_known_voxel(converted):
    """At 4 nm (the labels' own grid) labels are exact, class by class and state by state."""
    datalist = read_datalist(converted.datalist)
    crops = {f"{s.name}/{c.name}": (s, c) for s in SPECIMENS for c in s.crops}
    states = datalist.table.states()
    assert {e.name for e in (*datalist.training, *datalist.testing)} == set(crops)
    for entry in (*datalist.training, *datalist.testing):
        specimen, crop = crops[entry.name]
        fine = tissue(specimen, label_grid(crop))
        found = states[read_volume(datalist.path(entry.label))]
        names = [datalist.classes[i - 1] for i in entry.annotated_classes]
        assert set(names) == set(crop.classes)
        for name in names:
            truth = fine[name].reshape(*[n for m in found.shape[:3] for n in (m, 2)])
            majority = truth.mean(axis=(1, 3, 5)) >= 0.5
            column = found[..., datalist.classes.index(name)]
            known = column != UNKNOWN
            assert np.array_equal((column == PRESENT)[known], majority[known])
            hidden = crop.size_vox[1] // 4 if crop.unknown_region else 0
            assert known[:, hidden:].all()
            assert not known[:, :hidden].any()


def test_image_and_label_show_the_same_place(converted):
    """The nucleus is dark and the outside bright in the image, wherever the label says so."""
    datalist = read_datalist(converted.datalist)
    for entry in datalist.training:
        image = read_volume(datalist.path(entry.image)).astype(float)
        label = read_volume(datalist.path(entry.label))
        states = datalist.table.states()[label]
        mito = states[..., datalist.classes.index("mito")] == PRESENT
        known = states[..., datalist.classes.index("mito")] != UNKNOWN
        if mito.sum() > 100:
            assert image[mito].mean() < image[known & ~mito].mean() - 20, entry.name


def test_two_readers_agree_on_the_physical_points(converted):
    datalist = read_datalist(converted.datalist)
    for entry in datalist.training:
        path = datalist.path(entry.image)
        grid = read_grid(path)
        assert grid.translation_nm == entry.cellmap.translation_nm
        point = nib.load(path).affine @ [3, 2, 1, 1]
        expected = [t + i * v for t, i, v in zip(
            grid.translation_nm[::-1], (3, 2, 1), grid.voxel_nm[::-1], strict=True)]  # fmt: skip
        assert point[:3] == pytest.approx(expected)
        # ITK's first two axes point the other way (LPS against RAS).
        itk = np.array(sitk.ReadImage(str(path)).TransformIndexToPhysicalPoint((3, 2, 1)))
        assert itk * [-1, -1, 1] == pytest.approx(expected)


def test_the_table_tells_every_crop(converted):
    table = rows(converted)
    row = table["phantom-a/crop1"]
    assert row["status"] == "converted"
    assert row["raw_start_vox"] == "8 8 8"
    assert row["label_voxel_nm"] == "4 4 4"
    assert row["output_shape"] == "40 40 40"
    assert row["annotated"] == "cell nuc nucleo mito"
    assert float(row["coverage"]) == 1


def test_the_datalist_is_what_monai_expects(converted):
    from monai.auto3dseg.utils import datafold_read

    training, validation = datafold_read(
        str(converted.datalist), str(converted.datalist.parent), fold=1
    )
    assert len(training) == len(validation) == 2
    assert all(Path(e["image"]).is_file() and Path(e["label"]).is_file() for e in training)
    document = json.loads(converted.datalist.read_text())
    assert [g["name"] for g in document["class_names"]] == ["cell", "nuc", "nucleo", "mito"]


def test_folds_keep_specimens_apart(converted):
    datalist = read_datalist(converted.datalist)
    by_fold = {f: {e.cellmap.dataset for e in datalist.split(f)[1]} for f in datalist.folds()}
    assert sorted(map(sorted, by_fold.values())) == [["phantom-a"], ["phantom-b"]]


def test_a_second_run_does_nothing_and_changed_options_redo(own_phantom, tmp_path):
    output = tmp_path / "out"
    first = run(own_phantom, output)
    before = content(output), places(output)
    again = run(own_phantom, output)
    assert (first.done, again.done, again.up_to_date) == (6, 0, True)
    assert (content(output), places(output)) == before
    assert run(own_phantom, output, target_spacing=(16, 16, 16)).done == 6


def test_only_what_changed_is_redone(own_phantom, tmp_path):
    output = tmp_path / "out"
    run(own_phantom, output)
    array = zarr.open_array(
        own_phantom.parent / "phantom-a/phantom-a.zarr/recon-1/labels/groundtruth/crop1/mito/s0"
    )
    array[0, 0, 0] = 255
    (output / "images" / "phantom-b_crop5.nii.gz").write_bytes(b"half a file")
    result = run(own_phantom, output)
    assert (result.done, result.current) == (2, 4)
    assert read_volume(output / "images" / "phantom-b_crop5.nii.gz").shape == (40, 40, 40)


def damage_missing_store(folder):
    shutil.rmtree(folder / "phantom-a" / "phantom-a.zarr" / "recon-1" / "em")
    return {"phantom-a/crop1": ("failed", "does not exist")}


def damage_missing_crop(folder):
    shutil.rmtree(folder / "phantom-a/phantom-a.zarr/recon-1/labels/groundtruth/crop1")
    return {"phantom-a/crop1": ("failed", "holds crop2, crop3")}


def damage_missing_class(folder):
    shutil.rmtree(folder / "phantom-a/phantom-a.zarr/recon-1/labels/groundtruth/crop1/nuc")
    return {"phantom-a/crop1": ("failed", "no class nuc")}


def damage_truncated_chunk(folder):
    crop = folder / "phantom-a/phantom-a.zarr/recon-1/labels/groundtruth/crop1"
    chunk = crop / "cell/s0/1/1/1"
    chunk.write_bytes(chunk.read_bytes()[:20])
    return {"phantom-a/crop1": ("failed", "cannot be read")}


def damage_json(folder):
    crop = folder / "phantom-a/phantom-a.zarr/recon-1/labels/groundtruth/crop1"
    (crop / "cell" / ".zattrs").write_text("{broken")
    return {"phantom-a/crop1": ("failed", "cell")}


def damage_no_multiscales(folder):
    crop = folder / "phantom-a/phantom-a.zarr/recon-1/labels/groundtruth/crop1"
    (crop / "cell" / ".zattrs").write_text("{}")
    return {"phantom-a/crop1": ("failed", "no multiscales")}


def damage_no_encoding(folder):
    crop = folder / "phantom-a/phantom-a.zarr/recon-1/labels/groundtruth/crop1"
    attributes = json.loads((crop / "cell" / ".zattrs").read_text())
    del attributes["cellmap"]
    (crop / "cell" / ".zattrs").write_text(json.dumps(attributes))
    (crop / "cell" / "s0" / ".zattrs").write_text("{}")
    return {"phantom-a/crop1": ("failed", "no annotation encoding")}


def damage_not_downloaded(folder):
    shutil.rmtree(folder / "phantom-a/phantom-a.zarr/recon-1/em/fibsem-uint8/s0/0")
    return {"phantom-a/crop1": ("excluded", "40% of its EM")}


@pytest.mark.parametrize(
    "damage",
    [damage_missing_store, damage_missing_crop, damage_missing_class, damage_truncated_chunk,
     damage_json, damage_no_multiscales, damage_no_encoding, damage_not_downloaded],
)  # fmt: skip
def test_a_broken_crop_is_named_and_the_rest_goes_on(damage, own_phantom, tmp_path):
    expected = damage(own_phantom.parent)
    result = run(own_phantom, tmp_path / "out")
    table = rows(result)
    for name, (status, reason) in expected.items():
        assert table[name]["status"] == status
        assert reason in table[name]["reason"], table[name]["reason"]
        listed = result.failures if status == "failed" else result.excluded
        assert name in {f.item for f in listed}
        stem = name.replace("/", "_")
        assert not list((tmp_path / "out").rglob(f"{stem}*"))
    assert table["phantom-b/crop4"]["status"] == "converted"


def test_where_em_is_missing_the_labels_are_unknown(own_phantom, tmp_path):
    """Training on labels over black is what nobody noticed before."""
    (own_phantom.parent / "phantom-a/phantom-a.zarr/recon-1/em/fibsem-uint8/s0/0/0/0").unlink()
    result = run(own_phantom, tmp_path / "out")
    assert float(rows(result)["phantom-a/crop1"]["coverage"]) == pytest.approx(1 - (24 / 40) ** 3)
    datalist = read_datalist(result.datalist)
    label = read_volume(tmp_path / "out" / "labels" / "phantom-a_crop1.nii.gz")
    states = datalist.table.states()[label]
    assert (states[:24, :24, :24] == UNKNOWN).all()
    assert (states[24:] != UNKNOWN).all()


def test_excluding_by_policy_is_no_failure(own_phantom, tmp_path):
    damage_missing_crop(own_phantom.parent)
    result = run(own_phantom, tmp_path / "out", on_bad_crop="exclude")
    assert result.failures == ()
    assert [f.item for f in result.excluded] == ["phantom-a/crop1"]


def test_when_no_crop_can_be_converted_there_is_no_datalist(own_phantom, tmp_path):
    run(own_phantom, tmp_path / "out")
    shutil.rmtree(own_phantom.parent / "phantom-a")
    shutil.rmtree(own_phantom.parent / "phantom-b")
    with pytest.raises(IncompleteError, match=r"datalist\.1\.old\.json.*phantom-b/crop6 failed"):
        run(own_phantom, tmp_path / "out")
    # The datalist of the first run would list images that are gone.
    assert {p.name for p in (tmp_path / "out").glob("datalist*")} == {"datalist.1.old.json"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"datasplit": None}, OptionError, "no datasplit"),
        ({"classes": ["mitochondria"]}, OptionError, "unknown class 'mitochondria'"),
        ({"num_fold": 5}, DatasplitError, "4 crops to train on.* set num_fold to 4 or less"),
        ({"max_crops": 1}, DatasplitError, "1 crop to train on.* add crops: .* at least 2"),
        ({"num_fold": 3, "fold_by": "dataset"}, DatasplitError, "2 datasets .* set fold_by=crop"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    options, error, message, phantom, tmp_path
):
    chosen = {"datasplit": phantom, "output_dir": tmp_path / "out", **options}
    with pytest.raises(error, match=message):
        check_crop_count(ConvertOptions(**chosen))
    assert not (tmp_path / "out").exists()


def test_only_some_classes_in_another_order(phantom, tmp_path):
    result = run(phantom, tmp_path, classes=["mito", "nuc"], max_crops=2, compression="none")
    datalist = read_datalist(result.datalist)
    assert datalist.classes == ("mito", "nuc")
    assert {e.name: e.annotated_classes for e in datalist.training} == {
        "phantom-a/crop1": (1, 2),
        "phantom-a/crop2": (1,),
    }
    assert all(e.image.endswith(".nii") for e in datalist.training)


def test_a_union_is_derived_where_only_its_parts_are_annotated(own_phantom, tmp_path):
    crop = own_phantom.parent / "phantom-a/phantom-a.zarr/recon-1/labels/groundtruth/crop1"
    for part, source in {"mito_mem": "mito", "mito_lum": "nucleo", "mito_ribo": "nucleo"}.items():
        shutil.copytree(crop / source, crop / part)
    shutil.rmtree(crop / "mito")
    text = own_phantom.read_text().replace("crop1/[cell,nuc,nucleo,mito]", "crop1/[mito]")
    own_phantom.write_text(text)
    result = run(own_phantom, tmp_path / "out", max_crops=1, classes=["mito"])
    specimen = SPECIMENS[0]
    fine = tissue(specimen, label_grid(specimen.crops[0]))
    either = (fine["mito"] | fine["nucleo"]).reshape(40, 2, 40, 2, 40, 2)
    nucleo = fine["nucleo"].reshape(40, 2, 40, 2, 40, 2).mean(axis=(1, 3, 5)) >= 0.5
    mito = fine["mito"].reshape(40, 2, 40, 2, 40, 2).mean(axis=(1, 3, 5)) >= 0.5
    label = read_volume(result.datalist.parent / "labels" / "phantom-a_crop1.nii.gz")
    assert either.any()
    assert np.array_equal(label == 1, nucleo | mito)


@pytest.mark.parametrize(("policy", "annotated"), [("absent", 4), ("unannotated", 3)])
def test_a_class_without_labels_is_absent_or_unannotated(policy, annotated, own_phantom, tmp_path):
    crop = own_phantom.parent / "phantom-a/phantom-a.zarr/recon-1/labels/groundtruth/crop1"
    for level in ("s0", "s1", "s2"):
        for chunk in (crop / "nucleo" / level).iterdir():
            if chunk.is_dir():
                shutil.rmtree(chunk)
    result = run(own_phantom, tmp_path / "out", empty_class=policy, max_crops=2)
    first = read_datalist(result.datalist).training[0]
    assert len(first.annotated_classes) == annotated


def listing_test_crops(folder, *rows):
    path = folder / "test_crops.csv"
    header = "crop_name,dataset,class_label,voxel_size,translation,shape"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.mark.parametrize(
    "grid",
    [
        "[8.0;8.0;8.0],[80.0;80.0;80.0],[30;30;30]",  # A part of the training crop.
        "[4.0;4.0;4.0],[62.0;62.0;62.0],[80;80;80]",  # The training crop itself.
        "[4.0;4.0;4.0],[142.0;142.0;142.0],[80;80;80]",  # As large, but 80 nm further.
    ],
)
def test_a_test_crop_never_takes_the_files_of_another(grid, phantom, converted, tmp_path, caplog):
    """It overwrote the image of the training crop of its name, whose labels stayed."""
    rows_to_predict = [f"{crop},phantom-a,mito,{grid}" for crop in ("1", "3")]
    manifest = listing_test_crops(tmp_path, *rows_to_predict)
    result = run(phantom, tmp_path / "out", test_manifest=manifest)
    for name in ("crop1", "crop2", "crop3"):
        for kind in ("images", "labels"):
            path = f"{kind}/phantom-a_{name}.nii.gz"
            expected = (converted.datalist.parent / path).read_bytes()
            assert (tmp_path / "out" / path).read_bytes() == expected
    datalist = read_datalist(result.datalist)
    made = {e.name: e for e in datalist.testing if e.name.endswith("-test")}
    assert set(made) == {"phantom-a/crop1-test", "phantom-a/crop3-test"}
    for entry in made.values():
        shown = read_grid(datalist.path(entry.image)).box
        numbers = [[float(n) for n in part[1:-1].split(";")] for part in grid.split(",")]
        low = [t - v / 2 for v, t in zip(*numbers[:2], strict=True)]
        assert shown.low_nm == pytest.approx(low)
        assert shown.size_nm == pytest.approx(np.multiply(numbers[0], numbers[2]))
    assert "phantom-a/crop1 is in the datasplit (train) and in the test manifest" in caplog.text
    assert "phantom-a/crop1-test, which is to be predicted, shows voxels of" in caplog.text
    again = run(phantom, tmp_path / "out", test_manifest=manifest)
    assert (again.done, again.current) == (0, 8)


def moved(crop, to, nm):
    """A copy of a crop whose labels say that they are further along x."""
    shutil.copytree(crop, crop.with_name(to))
    for path in crop.with_name(to).glob("*/.zattrs"):
        attributes = json.loads(path.read_text())
        for dataset in attributes["multiscales"][0]["datasets"]:
            dataset["coordinateTransformations"][1]["translation"][2] += nm
        path.write_text(json.dumps(attributes))


def test_crops_that_show_the_same_voxels_share_a_fold(own_phantom, tmp_path, caplog):
    """The same crop under another name, one that overlaps it, and one that only touches it."""
    labels = own_phantom.parent / "phantom-a/phantom-a.zarr/recon-1/labels/groundtruth"
    for name, nm in {"crop7": 0, "crop8": 80, "crop9": 400}.items():
        moved(labels / "crop1", name, nm)
    first = own_phantom.read_text().splitlines()[0]
    names = ("crop1", "crop7", "crop8", "crop9")
    rows = {name: first.replace("crop1", name) for name in names}
    # Two images of one reconstruction show the same place.
    em = own_phantom.parent / "phantom-a/phantom-a.zarr/recon-1/em"
    shutil.copytree(em / "fibsem-uint8", em / "fibsem-uint16")
    rows["crop7"] = rows["crop7"].replace("fibsem-uint8", "fibsem-uint16")
    own_phantom.write_text("\n".join(rows.values()))
    result = run(own_phantom, tmp_path / "out", fold_by="crop")
    datalist = read_datalist(result.datalist)
    folds = {e.cellmap.crop: e.fold for e in datalist.training}
    assert folds["crop1"] == folds["crop7"] == folds["crop8"] != folds["crop9"]
    shared = {e.cellmap.crop: e.cellmap.overlaps for e in datalist.training}
    assert shared["crop1"] == ("phantom-a/crop7", "phantom-a/crop8")
    assert "phantom-a/crop1 and phantom-a/crop8 show the same voxels" in caplog.text
    work = read_datalist(working_datalist(result.datalist, tmp_path / "work", 2, "crop"))
    assert {e.cellmap.crop: e.fold for e in work.training} == folds


def test_stores_of_one_name_are_two_datasets(own_phantom, tmp_path, caplog):
    """Their crops of one name were refused, and their folds were mixed."""
    folder = own_phantom.parent
    for name in ("old", "new"):
        shutil.copytree(folder / "phantom-a", folder / name / "phantom-a")
    lines = [r for r in own_phantom.read_text().splitlines() if "phantom-a" in r and "train" in r]
    rows_of = [r.replace("phantom-a/", f"{n}/phantom-a/", 2) for n in ("old", "new") for r in lines]
    own_phantom.write_text("\n".join(rows_of))
    result = run(own_phantom, tmp_path / "out")
    assert result.done == 4
    datalist = read_datalist(result.datalist)
    assert {e.name for e in datalist.training} == {
        f"{n}_phantom-a/{c}" for n in ("old", "new") for c in ("crop1", "crop2")
    }
    assert len({e.image for e in datalist.training}) == 4
    assert "2 stores are called phantom-a; their datasets: new_phantom-a (" in caplog.text


def test_label_stores_of_one_em_are_one_specimen(own_phantom, tmp_path):
    """Two people's labels of one volume must not validate each other."""
    folder = own_phantom.parent
    for name in ("ann", "bob"):
        shutil.copytree(folder / "phantom-a/phantom-a.zarr", folder / f"{name}.zarr")
        shutil.rmtree(folder / f"{name}.zarr/recon-1/em")
    one, two, _, other = (r for r in own_phantom.read_text().splitlines() if "train" in r)
    lines = [
        row.replace('phantom-a/phantom-a.zarr","recon-1/labels', f'{name}.zarr","recon-1/labels')
        for row, name in ((one, "ann"), (two, "bob"))
    ]
    own_phantom.write_text("\n".join([*lines, other]))
    datalist = read_datalist(run(own_phantom, tmp_path / "out", fold_by="dataset").datalist)
    folds = {e.name: e.fold for e in datalist.training}
    assert set(folds) == {"ann/crop1", "bob/crop2", "phantom-b/crop5"}
    assert folds["ann/crop1"] == folds["bob/crop2"] != folds["phantom-b/crop5"]


@pytest.mark.parametrize("step", ["read_crop", "write_label"])
def test_a_crop_whose_worker_died_leaves_no_old_files(step, phantom, tmp_path):
    """Files of an earlier run stayed under the names that the failed crop has."""

    def deadly(function, items, *, done=None, lost=None):
        kills = function.func.__name__ == step
        results = [
            lost(item, MemoryError()) if kills and number == 0 else function(item)
            for number, item in enumerate(items)
        ]
        for result in results if done else ():
            done(result)
        return results

    run(phantom, tmp_path)
    assert list(tmp_path.rglob("phantom-a_crop1*"))
    options = ConvertOptions(datasplit=phantom, output_dir=tmp_path, num_fold=2)
    result = convert(options, deadly)
    assert [f.item for f in result.failures] == ["phantom-a/crop1"]
    assert "its worker was killed" in rows(result)["phantom-a/crop1"]["reason"]
    assert not list(tmp_path.rglob("phantom-a_crop1*"))
    assert len(list((tmp_path / "images").iterdir())) == 5


def test_crops_without_the_classes_asked_for_are_in_the_tally(phantom, tmp_path):
    result = run(phantom, tmp_path, classes=["nucleo"])
    assert [f.item for f in result.excluded] == ["phantom-a/crop2", "phantom-b/crop5"]
    assert result.tally() == "4 made, 0 up to date, 0 failed, 2 excluded"
    again = run(phantom, tmp_path, classes=["nucleo"])
    assert again.tally() == "up to date: nothing to do, all 4 as they were, 2 excluded"
    assert (
        StageResult(done=1).and_then(result).tally() == "5 made, 0 up to date, 0 failed, 2 excluded"
    )


def test_scale_levels(phantom, tmp_path):
    auto = run(phantom, tmp_path / "a", scale="auto", target_spacing=(16, 16, 16), max_crops=2)
    assert {r["raw_level"] for r in rows(auto).values()} == {"s1"}
    with pytest.raises(IncompleteError, match=r"no scale level s7; expected one of s0, s1, s2"):
        run(phantom, tmp_path / "b", scale="s7", max_crops=2)


def test_a_level_coarser_than_the_target_is_warned_of(phantom, tmp_path, caplog):
    run(phantom, tmp_path / "a", scale="s1", max_crops=2)
    assert "2 crops is interpolated from a level coarser" in caplog.text
    caplog.clear()
    run(phantom, tmp_path / "b", scale="s1", target_spacing=(16, 16, 16), max_crops=2)
    assert "interpolated" not in caplog.text


def test_native_spacing_is_the_labels_own(phantom, tmp_path):
    result = run(phantom, tmp_path, target_spacing="native", max_crops=2)
    assert {r["output_voxel_nm"] for r in rows(result).values()} == {"4 4 4"}
    assert {r["output_shape"] for r in rows(result).values()} == {"80 80 80"}


def test_whatever_a_crop_comes_up_with_the_rest_goes_on(phantom, tmp_path, monkeypatch):
    from cellmap_core import crop_files as module

    real = module.open_crop

    def odd(ref, *others):
        if ref.crop == "crop2":
            raise ZeroDivisionError("in some codec")
        return real(ref, *others)

    monkeypatch.setattr(module, "open_crop", odd)
    result = run(phantom, tmp_path)
    assert [f.item for f in result.failures] == ["phantom-a/crop2"]
    assert "in some codec" in result.failures[0].reason
    assert result.done == 5


def test_labels_are_read_at_their_finest_whatever_the_level_of_the_em(phantom, tmp_path):
    """The phantom's coarser label levels are decimated: a majority of those is another one."""
    options = {"target_spacing": (16, 16, 16), "max_crops": 2}
    finest = run(phantom, tmp_path / "s0", scale="s0", **options)
    auto = run(phantom, tmp_path / "auto", scale="auto", **options)
    assert {r["raw_level"] for r in rows(auto).values()} == {"s1"}
    for entry in read_datalist(finest.datalist).training:
        same = [read_volume(r.datalist.parent / entry.label) for r in (finest, auto)]
        assert np.array_equal(*same)


def test_what_is_interpolated_from_a_hole_has_no_labels(own_phantom, tmp_path):
    whole = run(own_phantom, tmp_path / "whole", target_spacing=(4, 4, 4), max_crops=2)
    (own_phantom.parent / "phantom-a/phantom-a.zarr/recon-1/em/fibsem-uint8/s0/0/0/0").unlink()
    result = run(own_phantom, tmp_path / "out", target_spacing=(4, 4, 4), max_crops=2)
    entry = read_datalist(result.datalist).training[0]
    states = read_datalist(result.datalist).table.states()
    known = (states[read_volume(result.datalist.parent / entry.label)] != UNKNOWN).any(-1)
    expected = read_volume(whole.datalist.parent / entry.image)
    assert np.array_equal(read_volume(result.datalist.parent / entry.image)[known], expected[known])
    assert 0.5 < known.mean() < 0.8


@pytest.fixture
def replace_em(own_phantom):
    """Put other values in the place of phantom-a's EM."""

    def replace(make):
        group = zarr.open_group(
            own_phantom.parent / "phantom-a/phantom-a.zarr/recon-1/em/fibsem-uint8"
        )
        values = make(group["s0"][:])
        del group["s0"]
        group.create_array(
            "s0", shape=values.shape, dtype=values.dtype, chunks=(32,) * 3,
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )[:] = values  # fmt: skip

    return replace


def test_a_blank_em_with_a_hole_is_blank(own_phantom, replace_em, tmp_path):
    replace_em(lambda em: np.full_like(em, 77))
    (own_phantom.parent / "phantom-a/phantom-a.zarr/recon-1/em/fibsem-uint8/s0/0/0/0").unlink()
    result = run(own_phantom, tmp_path)
    assert {f.item for f in result.excluded} == {f"phantom-a/crop{i}" for i in (1, 2, 3)}
    assert "blank (every voxel is 77)" in result.excluded[0].reason


def test_em_that_is_no_number_fails_by_name(own_phantom, replace_em, tmp_path):
    def broken(em):
        values = em.astype(np.float32)
        values[20, 20, 20] = np.nan
        return values

    replace_em(broken)
    result = run(own_phantom, tmp_path)
    assert [f.item for f in result.failures] == ["phantom-a/crop1"]
    assert "no numbers" in result.failures[0].reason


def test_half_precision_em_is_stored_in_single(own_phantom, replace_em, converted, tmp_path):
    replace_em(lambda em: em.astype(np.float16))
    image = read_volume(
        run(own_phantom, tmp_path).datalist.parent / "images/phantom-a_crop1.nii.gz"
    )
    assert image.dtype == np.float32
    plain = read_volume(converted.datalist.parent / "images/phantom-a_crop1.nii.gz")
    assert np.array_equal(image, plain)


def test_a_translation_that_is_no_number_fails_by_name(own_phantom, tmp_path):
    path = own_phantom.parent / "phantom-a/phantom-a.zarr/recon-1/em/fibsem-uint8/.zattrs"
    attributes = json.loads(path.read_text())
    transforms = attributes["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    transforms[1]["translation"][0] = float("nan")
    path.write_text(json.dumps(attributes))
    result = run(own_phantom, tmp_path)
    assert {f.item for f in result.failures} == {f"phantom-a/crop{i}" for i in (1, 2, 3)}
    assert "expected finite numbers" in result.failures[0].reason


def test_a_fill_value_that_fills_nothing_need_not_mean_anything(own_phantom, converted, tmp_path):
    crop = own_phantom.parent / "phantom-a/phantom-a.zarr/recon-1/labels/groundtruth/crop1"
    encoding = {"absent": 1, "present": 2, "unknown": 255}
    kind = {"type": "semantic_segmentation", "encoding": encoding}
    note = {"annotation": {"class_name": "mito", "annotation_type": kind}}
    array = zarr.open_array(crop / "mito/s0")
    values = array[:]
    array[:] = values + 1
    # The class group says the same of its values.
    for place in (array, zarr.open_group(crop / "mito")):
        place.attrs["cellmap"] = note
    result = run(own_phantom, tmp_path)
    assert result.failures == ()
    name = "labels/phantom-a_crop1.nii.gz"
    assert (tmp_path / name).read_bytes() == (converted.datalist.parent / name).read_bytes()


def test_two_runs_do_not_write_into_one_folder(phantom, tmp_path):
    with held(tmp_path), pytest.raises(BusyError, match="another run is writing"):
        run(phantom, tmp_path)
    assert run(phantom, tmp_path, max_crops=2).done == 2


def test_another_compression_leaves_no_files_of_the_first(phantom, tmp_path):
    run(phantom, tmp_path, max_crops=2)
    run(phantom, tmp_path, max_crops=2, compression="none")
    kinds = {p.suffix for d in ("images", "labels") for p in (tmp_path / d).iterdir()}
    assert kinds == {".nii"}


def test_em_finer_than_it_was_taken_is_judged_at_its_own_voxels(phantom, tmp_path):
    """Interpolated EM has no edges between its voxels; the check must not call that unclear."""
    result = run(phantom, tmp_path, target_spacing=(4, 4, 4))
    assert {r["alignment"] for r in rows(result).values()} == {"aligned"}


def test_shifted_labels_are_named(own_phantom, tmp_path, caplog):
    crop = own_phantom.parent / "phantom-a/phantom-a.zarr/recon-1/labels/groundtruth/crop1"
    for path in crop.glob("*/.zattrs"):
        attributes = json.loads(path.read_text())
        for dataset in attributes["multiscales"][0]["datasets"]:
            dataset["coordinateTransformations"][1]["translation"][2] += 40
        path.write_text(json.dumps(attributes))
    result = run(own_phantom, tmp_path)
    row = rows(result)["phantom-a/crop1"]
    assert row["alignment"] == "shifted"
    shift = [float(v) for v in row["label_shift_nm"].split()]
    assert shift == pytest.approx([0, 0, 40], abs=8)
    assert "phantom-a/crop1: labels shifted against the EM: x +" in caplog.text

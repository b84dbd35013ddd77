"""Crops given by a manifest, a data root or a glob are those of the datasplit."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from cellmap_core import crop_folders, remote
from cellmap_core.convert import convert, plan
from cellmap_core.datalist import read_datalist
from cellmap_core.datasplit import read_datasplit, read_test_manifest
from cellmap_core.errors import DatasplitError, OptionError
from cellmap_core.nifti import read_volume
from cellmap_core.options import ConvertOptions
from cellmap_core.phantom import CLASSES, SPECIMENS, label_grid
from tests import test_remote

http, s3 = test_remote.http, test_remote.s3

TRUTH = "recon-1/labels/groundtruth"
GLOB = f"*/*.zarr/{TRUTH}/crop[1245]"
TRAIN = [(s.name, c) for s in SPECIMENS for c in s.crops if c.split == "train"]
NAMED = "crop_name,dataset,class_label,voxel_size,translation,shape"
PLACED = "crop_number,collection,alignment,crop_url,em_url"


def numbers(values):
    return f"[{';'.join(str(v) for v in values)}]"


def write_named(folder):
    lines = [NAMED]
    for dataset, crop in TRAIN:
        grid = label_grid(crop)
        place = map(numbers, (grid.voxel_nm, grid.translation_nm, grid.shape_vox))
        rest = ",".join(place)
        number = crop.name.removeprefix("crop")
        lines += [f"{number},{dataset},{name},{rest}" for name in crop.classes]
    return written(folder / "train_crop_manifest.csv", lines)


def write_placed(folder, start=""):
    lines = [PLACED]
    for dataset, crop in TRAIN:
        store = f"{start}{dataset}/{dataset}.zarr"
        urls = f"{store}/{TRUTH}/{crop.name},{store}/recon-1/em/fibsem-uint8/"
        lines.append(f"{crop.name.removeprefix('crop')},{dataset},recon-1,{urls}")
    return written(folder / "manifest.csv", lines)


def written(path, lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def given(form, phantom, tmp_path):
    """The options that name the phantom's training crops in one of the forms."""
    root = phantom.parent
    return {
        "named": lambda: {"datasplit": write_named(tmp_path), "data_root": str(root)},
        "placed": lambda: {"datasplit": write_placed(tmp_path), "data_root": str(root)},
        "absolute": lambda: {"datasplit": write_placed(tmp_path, f"{root}/")},
        "root": lambda: {"datasplit": root},
        "glob": lambda: {"datasplit": root / GLOB},
    }[form]()


FORMS = ("named", "placed", "absolute", "root", "glob")


@pytest.fixture
def own_root(phantom, tmp_path) -> Path:
    """A data root that a test may break."""
    shutil.copytree(phantom.parent, tmp_path / "data")
    return tmp_path / "data"


def places(crops):
    return {(c.name, c.raw, c.labels) for c in crops}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_names_the_same_crops(form, phantom, tmp_path):
    expected = read_datasplit(phantom).crops
    wanted = expected if form == "root" else [c for c in expected if c.split == "train"]
    datasplit, classes = plan(ConvertOptions(**given(form, phantom, tmp_path)))
    assert places(datasplit.crops) == places(wanted)
    assert {c.split for c in datasplit.crops} == {"train"}
    assert datasplit.bad_rows == ()
    assert classes == (CLASSES if form == "named" else tuple(sorted(CLASSES)))


def contents(result):
    """Image, state of every class at every voxel, and facts of each training crop."""
    datalist = read_datalist(result.datalist)
    states = datalist.table.states()
    order = [datalist.classes.index(name) for name in CLASSES]
    return {
        entry.name: (
            datalist.path(entry.image).read_bytes(),
            states[read_volume(datalist.path(entry.label))][..., order],
            {datalist.classes[i - 1] for i in entry.annotated_classes},
            {datalist.classes[i - 1] for i in entry.present_classes},
            # Which crops overlap it depends on the crops that are given.
            entry.cellmap.model_copy(update={"overlaps": None}),
        )
        for entry in datalist.training
    }


@pytest.mark.parametrize("form", ["named", "placed", "root", "glob"])
def test_every_form_converts_to_the_same_crops(form, phantom, converted, tmp_path):
    options = given(form, phantom, tmp_path)
    result = convert(ConvertOptions(output_dir=tmp_path / "out", num_fold=2, **options))
    found, expected = contents(result), contents(converted)
    assert (set(found) == set(expected)) == (form != "root")
    for name, (image, states, *facts) in expected.items():
        assert found[name][0] == image
        assert np.array_equal(found[name][1], states)
        assert list(found[name][2:]) == facts


def test_a_folder_for_a_class_does_not_make_it_annotated(own_root, tmp_path):
    """An empty class that the crop's own list does not name was never looked for."""
    crop = own_root / f"phantom-a/phantom-a.zarr/{TRUTH}/crop1"
    for chunk in (crop / "nucleo").glob("s?/[0-9]*"):
        shutil.rmtree(chunk)
    attributes = json.loads((crop / ".zattrs").read_text())
    attributes["cellmap"]["annotation"]["class_names"].remove("nucleo")
    (crop / ".zattrs").write_text(json.dumps(attributes))
    options = ConvertOptions(datasplit=own_root / GLOB, output_dir=tmp_path / "out", num_fold=2)
    first = read_datalist(convert(options).datalist).training[0]
    assert first.name == "phantom-a/crop1"
    assert first.annotated_classes == (1, 2, 3)  # Of cell, mito, nuc, nucleo.


def test_a_manifest_says_the_split_and_the_reconstruction(tmp_path):
    path = written(
        tmp_path / "m.csv",
        ["Dataset, crop_name, alignment, split", "jrc_a,7,recon-2,validate", "jrc_a,crop8,,"],
    )
    one, two = read_datasplit(path).crops
    assert (one.name, one.split, one.line) == ("jrc_a/crop7", "validate", 2)
    assert one.labels == f"{tmp_path}/jrc_a/jrc_a.zarr/recon-2/labels/groundtruth/crop7"
    assert (two.name, two.split) == ("jrc_a/crop8", "train")
    assert two.raw == f"{tmp_path}/jrc_a/jrc_a.zarr/recon-1/em/fibsem-uint8"


def test_bad_rows_of_a_manifest_are_kept_by_line(tmp_path):
    rows = ["", "1,a,mito", "1,a,pm", "2,,mito", "# none", "3,a,mito,x,y,z,8"]
    datasplit = read_datasplit(written(tmp_path / "m.csv", [NAMED, *rows]))
    assert [(c.name, c.classes) for c in datasplit.crops] == [("a/crop1", ("mito", "pm"))]
    assert [b.line for b in datasplit.bad_rows] == [5, 7]
    assert [b.reason for b in datasplit.bad_rows] == [
        "no dataset; expected a value in the column dataset",
        "7 columns; expected 6 as in the header",
    ]


def test_a_manifest_that_went_through_pandas_is_the_same(tmp_path):
    """Numbers became decimal fractions, and empty cells words."""
    plain = [f"{NAMED},alignment,split", "1,a,mito,,,,recon-1,train", "2,a,,,,,,"]
    odd = [plain[0], "1.0,a,mito,nan,,,recon-1,train", "2.0,a,NaN,nan,nan,nan,nan,NaN"]
    one, other = (read_datasplit(written(tmp_path / "m.csv", rows)) for rows in (plain, odd))
    assert one == other
    assert [c.labels.split("/")[-1] for c in other.crops] == ["crop1", "crop2"]
    placed = [PLACED, "3.0,nan,recon-1,b.zarr/recon-1/labels/groundtruth/crop3,b.zarr/em"]
    (crop,) = read_datasplit(written(tmp_path / "m.csv", placed)).crops
    assert crop.name == "b/crop3"


def test_a_crop_has_one_number_in_all_columns(tmp_path):
    """The voxels of crop1 were written as crop2, and 01 was another crop than 1."""
    url = "{}.zarr/recon-1/labels/groundtruth/{}/s0,a.zarr/recon-1/em/fibsem-uint8"
    given = [("2.0", "crop1"), ("1.0", "crop1"), ("02", "crop2"), ("3", "crop03"), ("4", "roi")]
    rows = [f"{number},a,recon-1,{url.format('a', crop)}" for number, crop in given]
    datasplit = read_datasplit(written(tmp_path / "m.csv", [PLACED, *rows]))
    (bad,) = datasplit.bad_rows
    expected = "crop_number 2.0 and crop_url a.zarr/recon-1/labels/groundtruth/crop1/s0; expected"
    assert (bad.line, bad.reason) == (2, f"{expected} one number for a crop")
    found = [(c.crop, c.labels.rsplit("/", 1)[-1]) for c in datasplit.crops]
    assert found == [
        ("crop1", "crop1"), ("crop2", "crop2"), ("crop3", "crop03"), ("crop4", "roi"),
    ]  # fmt: skip
    rows = ["1,a,mito", "01,a,pm", "crop02,a,mito"]
    one, other = read_datasplit(written(tmp_path / "n.csv", [NAMED, *rows])).crops
    assert (one.crop, one.classes) == ("crop1", ("mito", "pm"))
    assert other.labels.endswith("/crop02")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["crop_number,collection,crop_url", "1,a,x"], "expected crop_name and dataset, or"),
        ([NAMED], "names no crop"),
        ([NAMED, "1,,mito", "2,,mito"], "first: line 2: no dataset"),
        ([f"{NAMED},split", "1,a,mito,1,1,1,trian"], "one of train, validate, test"),
        ([PLACED, "1,a,recon-1,,x"], "no crop_url"),
    ],
)
def test_a_manifest_of_no_use_is_refused(lines, message, tmp_path):
    with pytest.raises(DatasplitError, match=message):
        read_datasplit(written(tmp_path / "m.csv", lines))


def test_data_root_is_where_relative_paths_start(phantom, tmp_path):
    copied = shutil.copy(phantom, tmp_path / "datasplit.csv")
    moved = read_datasplit(Path(copied), str(phantom.parent)).crops
    assert places(moved) == places(read_datasplit(phantom).crops)
    far = "s3://janelia-cosem-datasets"
    crop = read_datasplit(write_named(tmp_path), f"{far}/").crops[0]
    assert crop.labels == f"{far}/phantom-a/phantom-a.zarr/{TRUTH}/crop1"
    assert crop.raw == f"{far}/phantom-a/phantom-a.zarr/recon-1/em/fibsem-uint8"
    rows = ["557,jrc_x,mito,[8;8;8],[4;4;4],[50;50;50]"]
    path = written(tmp_path / "test.csv", [NAMED, *rows])
    (crop,) = read_test_manifest(path, [], far)
    assert crop.raw == f"{far}/jrc_x/jrc_x.zarr/recon-1/em/fibsem-uint8"


@pytest.mark.parametrize("root", ["nowhere", "gs://bucket", "s3:///key"])
def test_a_data_root_that_is_no_place_is_refused(root, phantom):
    with pytest.raises(OptionError, match=f"data_root {root}.* expected a folder, s3://"):
        read_datasplit(phantom, root)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("s3://bucket/jrc*/crop*", "s3://bucket/jrc.* is remote"),
        ("https://host/datasplit.csv", "https://host/datasplit.csv is remote"),
        ("data/**/crop1", r"holds \*\*"),
        ("data/*/nothing*", "no folder matches"),
        ("data/phantom-a", "no crop under .* the folder that holds the datasets"),
        ("data/*", "no .zarr in .*/data/phantom-a"),
        ("data/*/*.zarr", "phantom-a.zarr is no crop"),
    ],
)
def test_what_holds_no_crop_is_explained(path, message, own_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasplitError, match=message):
        read_datasplit(Path(path))


def test_a_name_with_brackets_is_no_glob_where_it_exists(phantom, tmp_path):
    shutil.copytree(phantom.parent, tmp_path / "data [1]")
    assert len(read_datasplit(tmp_path / "data [1]").crops) == 6
    assert len(read_datasplit(tmp_path / "data [1]" / phantom.name).crops) == 6


def test_the_raw_is_fibsem_uint8_or_the_only_image(own_root):
    images = {
        "phantom-a": ("fibsem-uint8", "fibsem-uint16"),
        "phantom-b": ("tem-uint8",),
        "c": ("one", "two"),
        "d": (),
    }
    for dataset in ("c", "d"):
        (own_root / f"{dataset}/{dataset}.zarr/{TRUTH}/crop9").mkdir(parents=True)
    for dataset, names in images.items():
        em = own_root / f"{dataset}/{dataset}.zarr/recon-1/em"
        shutil.rmtree(em, ignore_errors=True)
        for name in names:
            (em / name).mkdir(parents=True)
    datasplit = read_datasplit(own_root)
    assert {(c.dataset, Path(c.raw).name) for c in datasplit.crops} == {
        ("phantom-a", "fibsem-uint8"),
        ("phantom-b", "tem-uint8"),
    }
    ambiguous, missing = (b.reason for b in datasplit.bad_rows)
    assert ambiguous.startswith("c/crop9: ")
    assert ambiguous.endswith("em holds one, two; expected fibsem-uint8, or one image only")
    assert missing.startswith("d/crop9: ")
    assert "em cannot be listed (No such file or directory)" in missing


def test_reconstructions_of_one_crop_are_both_kept(own_root):
    store = own_root / "phantom-a/phantom-a.zarr"
    (store / "recon-2/em/fibsem-uint8").mkdir(parents=True)
    for name in ("crop1", "crop10"):
        (store / "recon-2/labels/groundtruth" / name).mkdir(parents=True)
    for given in (own_root, own_root / "*/*.zarr/recon-?/labels/groundtruth/*"):
        datasplit = read_datasplit(given)
        assert datasplit.bad_rows == ()
        found = {c.stem: c.labels for c in datasplit.crops if c.dataset == "phantom-a"}
        assert list(found) == [
            "phantom-a_crop1", "phantom-a_crop2", "phantom-a_crop3",
            "phantom-a_crop1_recon-2", "phantom-a_crop10",
        ]  # fmt: skip
        assert found["phantom-a_crop1_recon-2"].endswith("recon-2/labels/groundtruth/crop1")
    extra = written(own_root / "test.csv", [NAMED, "7,phantom-a,pm,[8;8;8],[4;4;4],[50;50;50]"])
    (crop,) = read_test_manifest(extra, datasplit.crops)
    assert crop.raw == f"{store}/recon-1/em/fibsem-uint8"


def test_a_folder_that_may_not_be_read_is_named(own_root, monkeypatch):
    real = os.scandir

    def refusing(folder):
        if str(folder).endswith("phantom-b"):
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(crop_folders.os, "scandir", refusing)
    datasplit = read_datasplit(own_root)
    assert {c.dataset for c in datasplit.crops} == {"phantom-a"}
    (bad,) = datasplit.bad_rows
    assert bad.reason == f"{own_root}/phantom-b cannot be listed (Permission denied)"


def test_classes_are_looked_for_only_where_nothing_tells_them(own_root, tmp_path):
    path = write_placed(tmp_path)
    crop = own_root / f"phantom-a/phantom-a.zarr/{TRUTH}/crop1"
    shutil.copytree(crop / "mito", crop / "my_organelle")
    shutil.copytree(crop / "mito", crop / "all")
    shutil.rmtree(own_root / f"phantom-b/phantom-b.zarr/{TRUTH}/crop5")
    options = {"datasplit": path, "data_root": str(own_root)}
    datasplit, classes = plan(ConvertOptions(**options))
    assert classes == ("cell", "mito", "my_organelle", "nuc", "nucleo")
    assert [c.crop for c in datasplit.crops] == ["crop1", "crop2", "crop4"]
    assert datasplit.bad_rows[0].line == 5
    assert datasplit.bad_rows[0].reason.startswith("phantom-b/crop5: its classes cannot be listed")
    datasplit, classes = plan(ConvertOptions(classes=["mito"], **options))
    assert (len(datasplit.crops), classes) == (4, ("mito",))
    assert plan(ConvertOptions(classes=["my_organelle"], **options))[1] == ("my_organelle",)
    with pytest.raises(OptionError, match="did you mean my_organelle"):
        plan(ConvertOptions(classes=["my_organele"], **options))


def test_crops_without_any_class_are_refused(phantom, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    options = {"datasplit": write_placed(tmp_path), "data_root": str(tmp_path / "elsewhere")}
    with pytest.raises(DatasplitError, match=r"no class is listed.*phantom-a/crop1: .*not exist"):
        plan(ConvertOptions(**options))


@pytest.mark.parametrize("server", ["s3", "http"])
def test_remote_crops_tell_their_classes(server, request, tmp_path, monkeypatch):
    address = request.getfixturevalue(server)
    if server == "s3":
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        remote._open.cache_clear()
    root = f"s3://{test_remote.BUCKET}" if server == "s3" else address[0]
    path = write_placed(tmp_path)
    with path.open("a") as manifest:
        manifest.write(f"9,gone,recon-1,gone.zarr/{TRUTH}/crop9,gone.zarr/recon-1/em/x\n")
    datasplit, classes = plan(ConvertOptions(datasplit=path, data_root=root))
    assert classes == tuple(sorted(CLASSES))
    assert len(datasplit.crops) == 4
    (bad,) = datasplit.bad_rows
    assert bad.line == 6
    assert f"gone/crop9: its classes cannot be listed (no zarr group at {root}" in bad.reason

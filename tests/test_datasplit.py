import pytest

from cellmap_core.crop_refs import Datasplit, with_test_crops
from cellmap_core.datasplit import CropRef, parse_row, read_datasplit, read_test_manifest
from cellmap_core.errors import DatasplitError, RowError

STORE = "/data/jrc_hela-2/jrc_hela-2.zarr"
CROP = "recon-1/labels/groundtruth/crop234"
EM = "recon-1/em/fibsem-uint8"


@pytest.mark.parametrize(
    "row",
    [
        f'"train","{STORE}","{EM}","{STORE}","{CROP}/[nuc,mito]"',
        f"train,{STORE},{EM},{STORE},{CROP}/[nuc,mito]",
        f"train, {STORE} , {EM}/s0, {STORE}, {CROP}/[ nuc , mito ]",
        f'"train","{STORE}/{EM}","{STORE}/{CROP}/[nuc,mito]"',
        f"train,{STORE}/{EM}/s0,{STORE}/{CROP}/[nuc,mito]",
    ],
)
def test_every_form_of_a_row_is_the_same_crop(row, tmp_path):
    crop = parse_row(row, str(tmp_path))
    assert (crop.dataset, crop.crop, crop.split) == ("jrc_hela-2", "crop234", "train")
    assert crop.raw == f"{STORE}/{EM}"
    assert crop.labels == f"{STORE}/{CROP}"
    assert crop.classes == ("nuc", "mito")


def test_relative_paths_are_relative_to_the_csv(tmp_path):
    crop = parse_row(f"train,a.zarr,{EM},a.zarr,{CROP}/[nuc]", str(tmp_path))
    assert crop.raw == f"{tmp_path}/a.zarr/{EM}"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("train,a,b", "no .zarr"),
        ("trian,a.zarr/em,a.zarr/crop1/[nuc]", "split 'trian'; expected one of train, validate"),
        ("train,a.zarr", "2 columns"),
    ],
)
def test_a_bad_row_says_what_is_wrong(row, message, tmp_path):
    with pytest.raises(RowError, match=message):
        parse_row(row, str(tmp_path))


@pytest.mark.parametrize(
    ("given", "split"),
    [("Train", "train"), ("TRAINING", "train"), ("Val", "validate"), ("valid", "validate"),
     ("Validation", "validate"), ("Validate", "validate"), ("Test", "test"), ("testing", "test")],
)  # fmt: skip
def test_the_split_is_the_one_that_is_meant(given, split, tmp_path):
    """A split in capitals passed the check, but what was kept of it was no split."""
    row = f"{given},a.zarr/{EM},a.zarr/{CROP}/[nuc]"
    assert parse_row(row, str(tmp_path)).split == split
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(f"crop_name,dataset,class_label,split\n1,a,nuc,{given}\n")
    assert [crop.split for crop in read_datasplit(manifest).crops] == [split]


def test_a_bad_row_stops_no_other_and_is_kept(tmp_path):
    path = tmp_path / "datasplit.csv"
    path.write_text(f"# a comment\n\ntrain,x\ntrain,a.zarr/{EM},a.zarr/{CROP}/[nuc]\n")
    datasplit = read_datasplit(path)
    assert [c.name for c in datasplit.crops] == ["a/crop234"]
    assert [(b.line, b.text) for b in datasplit.bad_rows] == [(3, "train,x")]


def test_rows_of_one_crop_become_one(tmp_path):
    path = tmp_path / "datasplit.csv"
    rows = [f"train,a.zarr/{EM},a.zarr/{CROP}/[{c}]" for c in ("nuc", "mito,nuc")]
    rows.append(f"validate,a.zarr/{EM},a.zarr/{CROP}/[nuc]")
    path.write_text("\n".join(rows))
    datasplit = read_datasplit(path)
    assert [c.classes for c in datasplit.crops] == [("nuc", "mito")]
    assert "one split a crop" in datasplit.bad_rows[0].reason


def test_both_reconstructions_of_a_crop_are_kept(tmp_path):
    path = tmp_path / "datasplit.csv"
    other = CROP.replace("recon-1", "recon-2")
    rows = [f"train,a.zarr/{EM},a.zarr/{c}/[{n}]" for n in ("nuc", "pm") for c in (CROP, other)]
    for ordered in (rows, rows[::-1]):
        path.write_text("\n".join(ordered))
        datasplit = read_datasplit(path)
        assert {c.name: (c.labels, {*c.classes}) for c in datasplit.crops} == {
            "a/crop234": (f"{tmp_path}/a.zarr/{CROP}", {"nuc", "pm"}),
            "a/crop234_recon-2": (f"{tmp_path}/a.zarr/{other}", {"nuc", "pm"}),
        }
    path.write_text("\n".join([rows[0], rows[0].replace("groundtruth", "other")]))
    datasplit = read_datasplit(path)
    assert "a/crop234 a second time with other paths" in datasplit.bad_rows[0].reason


def names_by_store(path, places, crops=("crop1", "crop2")):
    rows = [
        f"train,{place}/{EM},{place}/recon-1/labels/groundtruth/{crop}/[nuc]"
        for place in places
        for crop in crops
    ]
    path.write_text("\n".join(rows))
    datasplit = read_datasplit(path)
    assert datasplit.bad_rows == ()
    assert len({c.stem for c in datasplit.crops}) == len(datasplit.crops)
    return {c.labels.split("/recon-1")[0]: c.dataset for c in datasplit.crops}


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (["/d/jrc/jrc.zarr", "/d/c.zarr"], ["jrc", "c"]),
        (["/d/old/jrc/jrc.zarr", "/d/new/jrc/jrc.zarr"], ["old_jrc", "new_jrc"]),
        (["/d/x/em.zarr", "/d/y/em.zarr", "/d/c.zarr"], ["x_em", "y_em", "c"]),
        (["/a/x/em.zarr", "/a/y/em.zarr", "/b/x/em.zarr"], ["a_x_em", "a_y_em", "b_x_em"]),
        (["s3://one/v.zarr", "s3://two/v.zarr"], ["one_v", "two_v"]),
        (["/d/em.zarr", "/d/y/em.zarr"], ["d_em", "y_em"]),
        (["/d/x/em.zarr", "s3://one/y/em.zarr"], ["x_em", "y_em"]),
    ],
)
def test_stores_of_one_name_are_datasets_of_their_own(places, names, tmp_path):
    """They were one dataset, whose second crop1 was refused and whose others shared a fold."""
    for order in (1, -1):
        found = names_by_store(tmp_path / "d.csv", places[::order])
        assert found == dict(zip(places, names, strict=True))


def test_a_store_and_its_copy_in_a_bucket_are_one_dataset(tmp_path):
    """Of a data set that is downloaded in part, some crops are read here and some there."""
    rows = [
        f"train,{root}/jrc/jrc.zarr/{EM},{root}/jrc/jrc.zarr/recon-1/labels/groundtruth/{crop}/[nuc]"
        for root, crop in (("/data", "crop1"), ("s3://bucket", "crop2"))
    ]
    (tmp_path / "d.csv").write_text("\n".join(rows))
    assert [c.name for c in read_datasplit(tmp_path / "d.csv").crops] == ["jrc/crop1", "jrc/crop2"]


def test_names_made_of_folders_are_nobody_elses(tmp_path):
    places = ["/d/x/em.zarr", "/d/y/em.zarr", "/d/z/x_em.zarr"]
    names = names_by_store(tmp_path / "d.csv", places)
    assert names["/d/z/x_em.zarr"] == "x_em"
    assert names["/d/y/em.zarr"] == "y_em"
    assert len(set(names.values())) == 3
    assert names["/d/x/em.zarr"].startswith("x_em-")


def test_a_link_to_a_store_is_that_store(tmp_path):
    (tmp_path / "here" / "v.zarr").mkdir(parents=True)
    (tmp_path / "there").symlink_to(tmp_path / "here")
    rows = [
        f"train,{place}/v.zarr/{EM},{place}/v.zarr/recon-1/labels/groundtruth/{crop}/[nuc]"
        for place, crop in (("here", "crop1"), ("there", "crop2"))
    ]
    (tmp_path / "d.csv").write_text("\n".join(rows))
    assert [c.name for c in read_datasplit(tmp_path / "d.csv").crops] == ["v/crop1", "v/crop2"]


def test_a_datasplit_of_bad_rows_alone_is_refused(tmp_path):
    (tmp_path / "d.csv").write_text("# a comment\ntrain,x\n")
    with pytest.raises(DatasplitError, match=r"names no crop .*line 2: 2 columns"):
        read_datasplit(tmp_path / "d.csv")


@pytest.mark.parametrize("text", ["", "# only a comment\n", "split,raw,labels\n"])
def test_an_empty_datasplit_is_refused(text, tmp_path):
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(DatasplitError, match="is empty"):
        read_datasplit(tmp_path / "d.csv")


def test_a_missing_datasplit_is_named(tmp_path):
    with pytest.raises(DatasplitError, match=r"no file .*nope\.csv"):
        read_datasplit(tmp_path / "nope.csv")


def test_the_manifest_of_test_crops_takes_the_finest_grid(tmp_path):
    path = tmp_path / "test_crop_manifest.csv"
    path.write_text(
        "crop_name,dataset,class_label,voxel_size,translation,shape\n"
        "557,jrc_x,mito,[8.0;8.0;8.0],[4.0;4.0;4.0],[50;50;50]\n"
        "557,jrc_x,pm,[4.0;4.0;4.0],[2.0;2.0;2.0],[100;100;100]\n"
    )
    (crop,) = read_test_manifest(path, [])
    assert crop.name == "jrc_x/crop557"
    assert crop.grid.voxel_nm == (4, 4, 4)
    assert crop.raw == f"{tmp_path}/jrc_x/jrc_x.zarr/recon-1/em/fibsem-uint8"


TEST_HEADER = "crop_name,dataset,class_label,voxel_size,translation,shape"
TEST_ROW = "{crop},jrc_x,mito,[8;8;8],{at},{shape}"


def to_predict(folder, *rows, crops=()):
    """Crops of a test manifest with rows of 8 nm voxels."""
    path = folder / "test.csv"
    given = {"crop": "1", "at": "[4;4;4]", "shape": "[5;5;5]"}
    lines = [TEST_ROW.format(**{**given, **row}) for row in rows]
    path.write_text("\n".join([TEST_HEADER, *lines]))
    return read_test_manifest(path, crops)


def test_a_crop_number_with_a_decimal_point_is_that_crop(tmp_path):
    """Which is what pandas writes where another row of the column is empty."""
    numbers = ("1.0", "2.", "crop3.0", "4", "crop5", "my crop", "01", "007.0")
    crops = to_predict(tmp_path, *({"crop": n} for n in numbers))
    # 01 is crop1, which has one entry.
    assert [c.crop for c in crops] == [*(f"crop{n}" for n in range(1, 6)), "my crop", "crop7"]


def test_a_crop_is_called_crop01_only_where_a_crop_is(tmp_path):
    own = CropRef(dataset="jrc_x", crop="crop01", split="train", raw="/d/jrc_x.zarr/em")
    (crop,) = to_predict(tmp_path, {"crop": "crop01"}, crops=[own])
    assert crop.crop == "crop01"
    for crops in ([], [own.model_copy(update={"crop": "crop1"})]):
        with pytest.raises(DatasplitError, match="line 3: crop_name crop01; expected crop1, with"):
            to_predict(tmp_path, {"crop": "1"}, {"crop": "crop01"}, crops=crops)


def test_only_crops_that_are_in_both_lists_are_said_to_be(tmp_path):
    """crop1-test of a manifest was taken for crop1, and crop1 of the manifest for a listed one."""
    crops = to_predict(tmp_path, *({"crop": c} for c in ("1", "crop1-test", "2", "crop2-test")))
    one = CropRef(dataset="jrc_x", crop="crop1", split="train", raw="/d/jrc_x.zarr/em")
    for order in (crops, crops[::-1]):
        datasplit = with_test_crops(Datasplit(crops=(one,)), order)
        ((known, predicted),) = datasplit.listed_twice
        assert (known, predicted.crop) == (one, "crop1-test-test")
        assert sorted(c.crop for c in datasplit.crops) == [
            "crop1", "crop1-test", "crop1-test-test", "crop2", "crop2-test",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"crop": "1.5"}, "line 2: crop 1.5; expected a whole number"),
        ({"crop": "1e3"}, "line 2: crop 1e3; expected a whole number"),
        ({"crop": "nan"}, "line 2: no crop_name"),
        ({"crop": ""}, "line 2: no crop_name"),
        ({"at": "[nan;4;4]"}, r"line 2: translation \[nan;4;4\]; expected finite"),
        ({"at": "[4;inf;4]"}, r"translation \[4;inf;4\]; expected finite"),
        ({"at": "[1e300;4;4]"}, "below a metre"),
        ({"at": "[4;4]"}, "expected three numbers"),
        ({"shape": "[5;5;5.5]"}, "expected three whole numbers above 0"),
        ({"shape": "[5;5;0]"}, "expected three whole numbers above 0"),
        ({"shape": "NaN"}, "line 2: no shape"),
    ],
)
def test_a_row_of_test_crops_that_means_no_crop_is_named(row, message, tmp_path):
    with pytest.raises(DatasplitError, match=message):
        to_predict(tmp_path, row)


def test_a_test_crop_is_in_one_place(tmp_path):
    (crop,) = to_predict(tmp_path, {}, {})
    assert crop.line == 2
    with pytest.raises(
        DatasplitError, match=r"line 3: jrc_x/crop1 at 80 to 120, .* line 2 at 0 to 40, .*one place"
    ):
        to_predict(tmp_path, {}, {"at": "[84;84;84]"})


def test_a_dataset_of_several_stores_is_no_dataset_of_test_crops(tmp_path):
    rows = [f"train,{p}/jrc_x.zarr/{EM},{p}/jrc_x.zarr/{CROP}/[nuc]" for p in ("/d/a", "/d/b")]
    (tmp_path / "d.csv").write_text("\n".join(rows))
    crops = read_datasplit(tmp_path / "d.csv").crops
    with pytest.raises(DatasplitError, match="jrc_x is in several stores; expected a_jrc_x or b_j"):
        to_predict(tmp_path, {}, crops=crops)


def test_a_test_crop_is_in_its_own_reconstruction(tmp_path):
    recon2 = (EM.replace("recon-1", "recon-2"), CROP.replace("recon-1", "recon-2"))
    rows = [f"train,jrc_x.zarr/{em},jrc_x.zarr/{crop}/[nuc]" for em, crop in ((EM, CROP), recon2)]
    (tmp_path / "d.csv").write_text("\n".join(rows))
    path = tmp_path / "test.csv"
    row = TEST_ROW.format(crop=7, at="[4;4;4]", shape="[5;5;5]")
    path.write_text(f"{TEST_HEADER},alignment\n{row},recon-2\n")
    crops = read_datasplit(tmp_path / "d.csv").crops
    (crop,) = read_test_manifest(path, crops)
    assert crop.raw == f"{tmp_path}/jrc_x.zarr/{recon2[0]}"
    path.write_text(f"{path.read_text()}{row},recon-1\n")
    with pytest.raises(DatasplitError, match=r"line 3: jrc_x/crop7 in .*recon-1.*; expected one v"):
        read_test_manifest(path, crops)


@pytest.mark.parametrize("spelling", ["h.zarr/", "./h.zarr", "x/../h.zarr", "h.zarr//"])
def test_a_crop_has_one_place_however_it_is_spelt(spelling, tmp_path):
    path = tmp_path / "datasplit.csv"
    row = '"{}","{}","recon-1/em/fibsem-uint8","{}","recon-1/labels/groundtruth/crop1/[mito]"\n'
    path.write_text(
        row.format("train", "h.zarr", "h.zarr") + row.format("train", spelling, spelling)
    )
    assert [c.name for c in read_datasplit(path).crops] == ["h/crop1"]
    assert read_datasplit(path).bad_rows == ()
    path.write_text(
        row.format("train", "h.zarr", "h.zarr") + row.format("test", spelling, spelling)
    )
    assert len(read_datasplit(path).bad_rows) == 1


def test_no_two_crops_share_a_file_name():
    pairs = [("a_b", "c1"), ("a", "b_c1"), ("sp", "crop 1"), ("sp", "crop-1"), ("sp", "crop:1")]
    refs = [CropRef(dataset=d, crop=c, split="train", raw="r", labels="l") for d, c in pairs]
    assert len({ref.stem for ref in refs}) == len(pairs)
    assert refs[0].stem == "a_b_c1"

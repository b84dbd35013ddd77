import pytest

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
        ("training,a.zarr/em,a.zarr/crop1/[nuc]", "one of train, validate, test"),
        ("train,a.zarr", "2 columns"),
    ],
)
def test_a_bad_row_says_what_is_wrong(row, message, tmp_path):
    with pytest.raises(RowError, match=message):
        parse_row(row, str(tmp_path))


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
    rows.append(f"train,b/a.zarr/{EM},b/a.zarr/{CROP}/[nuc]")
    path.write_text("\n".join(rows))
    datasplit = read_datasplit(path)
    assert {c.name: (c.labels, c.classes) for c in datasplit.crops} == {
        "a/crop234": (f"{tmp_path}/a.zarr/{CROP}", ("nuc", "pm")),
        "a/crop234_recon-2": (f"{tmp_path}/a.zarr/{other}", ("nuc", "pm")),
    }
    assert "a/crop234 a second time with other paths" in datasplit.bad_rows[0].reason


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

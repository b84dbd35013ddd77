"""``~`` and variables in paths, from every place that paths come from."""

import json
import shutil
from pathlib import Path

import pytest

from cellmap_core.cluster.profiles import SITE_VARIABLE, read_site, site_of
from cellmap_core.command_line import parse
from cellmap_core.convert import convert
from cellmap_core.datalist import read_datalist
from cellmap_core.datasplit import read_datasplit
from cellmap_core.datastats.analyzer import DataAnalyzer
from cellmap_core.errors import CellmapError, DatalistError, OptionError, PathError, ProfileError
from cellmap_core.options import MODELS, ConvertOptions, FullOptions
from cellmap_core.paths import Location, Place, expand, expand_path
from cellmap_core.training.entry import parse as parse_training


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder that is not the current one; $DATA is in it, and $NONE is not set."""
    folder, current = tmp_path / "home", tmp_path / "current"
    for new in (folder, current):
        new.mkdir()
    monkeypatch.chdir(current)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("DATA", "~/data")
    monkeypatch.delenv("NONE", raising=False)
    return folder


@pytest.mark.parametrize(
    ("given", "expanded"),
    [
        ("~", "{home}"),
        ("~/a", "{home}/a"),
        ("$DATA/a", "{home}/data/a"),
        ("x/${DATA}", "x/~/data"),
        ("a/~/b", "a/~/b"),
        ("a~", "a~"),
        ("relative/a.csv", "relative/a.csv"),
        ("share$/a$1", "share$/a$1"),
        ("s3://bucket/~/$NONE", "s3://bucket/~/$NONE"),
        ("https:/host/$NONE", "https:/host/$NONE"),
        ("~/*/crop[12]", "{home}/*/crop[12]"),
    ],
)
def test_what_a_path_becomes(given, expanded, home):
    assert expand(given) == expanded.format(home=home)
    assert expand(expand(given)) == expand(given)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("$NONE/a", "$NONE"),
        ("${NONE}", "$NONE"),
        ("a/${x y}/", "$x y"),
        ("~nobody-here/a", "~nobo"),
    ],
)
def test_what_is_not_known_is_refused_by_name(given, named, home):
    with pytest.raises(PathError) as caught:
        expand(given)
    assert named in str(caught.value)
    assert given in str(caught.value)


def test_a_file_whose_own_name_holds_a_dollar_is_meant(home, tmp_path):
    (tmp_path / "crop$NONE.nii").touch()
    assert expand("crop$NONE.nii", tmp_path) == "crop$NONE.nii"
    assert expand(f"{tmp_path}/crop$NONE.nii") == f"{tmp_path}/crop$NONE.nii"
    with pytest.raises(PathError):
        expand("crop$NONE.nii", home)


def test_an_empty_variable_does_not_lead_to_the_root(home, monkeypatch):
    monkeypatch.setenv("NONE", "")
    with pytest.raises(PathError, match=r"\$NONE"):
        expand("$NONE/a")


def test_every_path_of_the_options_is_a_place():
    """A new option that holds a path must be expanded too."""
    for model in MODELS.values():
        for name, field in model.model_fields.items():
            text = str(field.annotation) + str(field.metadata)
            if "Path" in text:
                assert "_expanded" in text, f"{model.__name__}.{name}"
    assert Place.__metadata__
    assert Location.__metadata__


def test_options_from_a_file_and_from_flags(home):
    (home / "options.yaml").write_text(
        "datasplit: ~/s.csv\ndata_root: $DATA/em\noutput_dir: ${DATA}/nifti\n"
        "test_manifest: ~/t.csv\nwork_dir: $HOME/work\ntemplates: ~/templates\n"
    )
    given = parse(FullOptions, ["--config=~/options.yaml", "--datalist=~/d.json"], "full")
    assert given.datasplit == home / "s.csv"
    assert given.data_root == f"{home}/data/em"
    assert given.output_dir == home / "data" / "nifti"
    assert given.test_manifest == home / "t.csv"
    assert given.work_dir == home / "work"
    assert given.templates == home / "templates"
    assert given.datalist == home / "d.json"
    assert ConvertOptions(output_dir=Path("~/a")).output_dir == home / "a"
    assert ConvertOptions(data_root="s3://b/$NONE").data_root == "s3://b/$NONE"


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--output_dir=$NONE/a"], "output_dir: $NONE is not set here, in the path $NONE/a"),
        (["--data_root=$NONE"], "data_root: $NONE is not set here, in the path $NONE"),
        (["--config", "$NONE/c.yaml"], "$NONE is not set here, in the path $NONE/c.yaml"),
    ],
)
def test_an_option_with_an_unset_variable_is_refused(arguments, found, home):
    """It was said to be expected that the variable is not set."""
    with pytest.raises(OptionError) as caught:
        parse(ConvertOptions, arguments, "convert")
    do = "set it where the run is started, or write the path out"
    assert str(caught.value) == f"{found}; {do}"


def test_a_run_writes_where_it_was_told_to(home, phantom):
    """From a datasplit whose rows name places, into a folder of the home folder."""
    shutil.copytree(phantom.parent, home / "data")
    root = home / "data" / "phantom-b"
    datasplit = home / "split.csv"
    rows = [
        line.replace('"phantom-', f'"{start}/phantom-')
        for line, start in zip(
            [r for r in phantom.read_text().splitlines() if "phantom-b" in r],
            ("~/data", "$DATA", "${DATA}"),
            strict=False,
        )
    ]
    datasplit.write_text("\n".join(rows))
    options = parse(
        ConvertOptions, ["--datasplit=~/split.csv", "--output_dir=$DATA/out", "--num_fold=2"], "x"
    )
    result = convert(options)
    assert result.failures == ()
    assert result.datalist == home / "data" / "out" / "datalist.json"
    assert read_datalist(result.datalist).training
    assert root.is_dir()
    assert list(Path().iterdir()) == []


def test_rows_of_csv_files(home, monkeypatch):
    monkeypatch.setenv("SET", "jrc_x")
    labels = "recon-1/labels/groundtruth/crop1"
    path = home / "s.csv"
    path.write_text(
        f'train,"~/$SET.zarr",recon-1/em/a,"~/$SET.zarr","{labels}/[mito]"\n'
        f"train,$NONE/y.zarr,recon-1/em/a,$NONE/y.zarr,{labels}\n"
    )
    found = read_datasplit(path)
    assert [c.dataset for c in found.crops] == ["jrc_x"]
    assert found.crops[0].raw == f"{home}/jrc_x.zarr/recon-1/em/a"
    assert found.crops[0].labels == f"{home}/jrc_x.zarr/{labels}"
    assert [(b.line, "$NONE is not set here" in b.reason) for b in found.bad_rows] == [(2, True)]
    path.write_text(
        f"crop_number,crop_url,em_url\n1,$DATA/z.zarr/{labels},~/data/z.zarr/recon-1/em/a\n"
    )
    crop = read_datasplit(path).crops[0]
    assert (crop.labels, crop.raw) == (
        f"{home}/data/z.zarr/{labels}",
        f"{home}/data/z.zarr/recon-1/em/a",
    )
    (home / "data").mkdir()
    path.write_text(f"train,z.zarr/recon-1/em/a,z.zarr/{labels}\n")
    assert read_datasplit(path, "~/data").crops[0].raw == f"{home}/data/z.zarr/recon-1/em/a"


def test_paths_of_a_datalist(home, converted):
    shutil.copytree(converted.datalist.parent, home / "data")
    document = json.loads((home / "data" / "datalist.json").read_text())
    entry, other = document["training"][:2]
    plain = entry["image"]
    entry["image"], entry["label"] = f"~/data/{plain}", f"$DATA/{entry['label']}"
    moved = home / "moved.json"
    other["image"], other["label"] = f"data/{other['image']}", f"data/{other['label']}"
    document["training"] = [entry, other]
    moved.write_text(json.dumps(document))
    datalist = read_datalist(moved)
    assert datalist.path(datalist.training[0].image) == home / "data" / plain
    assert all(datalist.path(p).is_file() for e in datalist.training for p in (e.image, e.label))
    # MONAI's interface takes the same list.
    analyzer = DataAnalyzer("~/moved.json", home, "~/stats.yaml")
    analyzer.get_all_case_stats()
    assert analyzer.failures == ()
    assert (home / "stats.yaml").is_file()
    # A plain text is a path in a list of cases to predict; elsewhere it is a name or a note.
    document["testing"], document["notes"] = [f"$DATA/{plain}", "~/b.nii"], ["~ $NONE"]
    document["holdout"] = ["$NONE"]
    moved.write_text(json.dumps(document))
    datalist = read_datalist(moved)
    assert [e.image for e in datalist.testing] == [f"{home}/data/{plain}", f"{home}/b.nii"]
    assert datalist.notes == ("~ $NONE",)
    for key in ("testing", "val"):
        moved.write_text(json.dumps({**document, key: ["$NONE/a.nii"]}))
        with pytest.raises(DatalistError, match=rf"moved.json: {key} entry 0: \$NONE is not"):
            read_datalist(moved)
    entry["image"] = "$NONE/a.nii.gz"
    moved.write_text(json.dumps(document))
    with pytest.raises(DatalistError, match=r"moved.json: training entry 0, image: \$NONE is not"):
        read_datalist(moved)


def test_the_site_profile_and_the_variable_that_names_it(home):
    profile = home / "site.yaml"
    profile.write_text(
        "name: mine\nlog_dir: $DATA/logs\nscratch: ~/tmp\npython: ~/env/bin/python\n"
    )
    site = site_of({SITE_VARIABLE: "~/site.yaml"})
    assert site == read_site(profile)
    assert (site.log_dir, site.scratch) == (home / "data" / "logs", home / "tmp")
    assert site.python == f"{home}/env/bin/python"
    with pytest.raises(ProfileError, match=r"\$NONE is not set"):
        site_of({SITE_VARIABLE: "$NONE/site.yaml"})


def test_the_files_of_a_training(home):
    files, _ = parse_training(["run", "--config_file='~/a.yaml,$DATA/b.yaml'"])
    assert files == [home / "a.yaml", home / "data" / "b.yaml"]
    with pytest.raises(CellmapError, match=r"\$NONE"):
        parse_training(["run", "--config_file=$NONE"])


def test_a_flag_of_other_programs_is_refused_in_the_same_way(home):
    with pytest.raises(OptionError, match=r"\$NONE"):
        expand_path("$NONE/x")

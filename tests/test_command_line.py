import pytest

from cellmap_core.command_line import merge, parse
from cellmap_core.errors import OptionError
from cellmap_core.options import ConvertOptions, FullOptions, GenerateOptions


def test_flags_of_the_request():
    words = (
        "--datasplit d.csv --output_dir out --scale s1 --target_spacing 8 8 4 --max_crops 3 "
        "--num_fold 3 --num_epochs 7 --algos segresnet swinunetr --mode convert"
    )
    options = parse(FullOptions, words.split(), "full")
    assert options.target_spacing == (8, 8, 4)
    assert options.algos == ["segresnet", "swinunetr"]
    assert (options.max_crops, options.num_fold, options.num_epochs) == (3, 3, 7)


@pytest.mark.parametrize(
    ("words", "spacing"),
    [("native", "native"), ("16", (16, 16, 16)), ("40 4 4", (40, 4, 4))],
)
def test_spacing_in_its_forms(words, spacing):
    options = parse(ConvertOptions, ["--target_spacing", *words.split()], "convert")
    assert options.target_spacing == spacing


def test_explicit_beats_file_beats_default(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("num_fold: 3\nnum_epochs: 9\noverrides: {init_filters: 8}\n")
    options = parse(GenerateOptions, ["--config", str(file), "--num_fold", "4"], "generate")
    assert (options.num_fold, options.num_epochs) == (4, 9)
    assert options.overrides == {"init_filters": 8}
    assert options.algos == ["segresnet"]


def test_overrides_are_read_as_yaml():
    words = ["--overrides", "blocks_down=[1,2]", "learning_rate=1e-3", "amp=false"]
    found = parse(GenerateOptions, words, "generate").overrides
    assert found == {"blocks_down": [1, 2], "learning_rate": "1e-3", "amp": False}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_flod", "3"], "did you mean --num_fold"),
        (["--num_epochs", "none"], "num_epochs='none'"),
        (["--overrides", "init_filters"], "NAME=VALUE"),
        (["--config", "/no/file.yaml"], "no config file /no/file.yaml"),
        (["--num_epochs"], "expected one argument"),
    ],
)
def test_what_is_wrong_is_named(words, message):
    with pytest.raises(OptionError, match=message):
        parse(GenerateOptions, words, "generate")


def test_an_unknown_name_in_a_file_is_refused(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("num_folds: 3\n")
    with pytest.raises(OptionError, match="did you mean num_fold"):
        merge(GenerateOptions, {}, file)


def test_one_file_may_hold_the_options_of_all_stages(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("num_fold: 3\ndatasplit: d.csv\ndo_ccp: true\n")
    assert merge(GenerateOptions, {}, file).num_fold == 3


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: [", b"", b"- a"])
def test_a_file_that_is_no_yaml_of_options_is_refused(content, tmp_path):
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(OptionError, match=r"c\.yaml"):
        merge(GenerateOptions, {}, tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target_spacing", "abc"], "expected native, one size|greater than 0|valid number"),
        (["--target_spacing", "1", "2"], "expected native, one size in nm, or three"),
        (["--target_spacing", "inf"], "finite"),
        (["--target_spacing", "0"], "expected greater than 0"),
        (["--scale", "best"], "scale='best'; expected s0, s1, … or auto"),
        (["--fold_by", "Crop"], "fold_by='Crop'; expected 'auto', 'dataset' or 'crop'"),
        (["--num_fold", "1"], "num_fold='1'; expected greater than or equal to 2"),
    ],
)
def test_values_are_explained(words, message):
    with pytest.raises(OptionError, match=message):
        parse(ConvertOptions, words, "convert")


def test_a_bad_override_is_one_line():
    with pytest.raises(OptionError, match="a value as YAML has it"):
        parse(GenerateOptions, ["--overrides", "patch_size_vox=[1,"], "generate")

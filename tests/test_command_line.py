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

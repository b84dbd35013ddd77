"""The scale levels of an image: where they lie, which is which, and what is refused."""

import logging

import numpy as np
import pytest
import zarr

from cellmap_core import stores
from cellmap_core.errors import MetadataError
from cellmap_core.lengths import unit_nm
from cellmap_core.multiscale import Levels
from cellmap_core.transformations import read_transformation
from cellmap_core.volume import open_labels, open_volume

FINE = 4.0


def scale(*values):
    return {"type": "scale", "scale": list(values)}


def move(*values):
    return {"type": "translation", "translation": list(values)}


def image(folder, levels, unit="nanometer", outer=None):
    """An image of levels: path → (shape, transformations), in this order in the metadata."""
    group = zarr.create_group(folder, zarr_format=2)
    for path, (shape, _) in levels.items():
        group.create_array(path, shape=shape, dtype="u1", chunks=(16, 16, 16), fill_value=0)
    axes = [{"name": a, "type": "space", "unit": unit} for a in "zyx"]
    datasets = [
        {"path": path, "coordinateTransformations": rows} for path, (_, rows) in levels.items()
    ]
    multiscale = {"version": "0.4", "axes": axes, "datasets": datasets}
    if outer is not None:
        multiscale["coordinateTransformations"] = outer
    group.attrs["multiscales"] = [multiscale]
    return str(folder)


def pyramid(folder, shape=(64, 64, 64), names=("s0", "s1", "s2"), translated=True, down=None):
    """Each level half as fine as the one before; ``down`` rounds what halving leaves."""
    levels = {}
    for n, name in enumerate(names):
        voxel = FINE * 2**n
        rows = [scale(voxel, voxel, voxel)]
        if translated:
            rows.append(move(*[100 + (voxel - FINE) / 2] * 3))
        levels[name] = (shape, rows)
        shape = tuple((down or int)(s / 2) for s in shape)
    return image(folder, levels)


def chosen(location, wanted, target=None):
    return open_volume(location, wanted, target).level.path


BAD_LISTS = [
    ([scale(4, 4, 4), scale(1, 1, 1)], "has 2 scales"),
    ([scale(1, 1, 1), scale(4, 4, 4), move(1, 2, 3)], "has 2 scales"),
    ([scale(4, 4, 4), move(1, 2, 3), move(1, 2, 3)], "has 2 translations"),
    ([move(1, 2, 3), scale(4, 4, 4)], "has a translation before its scale"),
    ([move(1, 2, 3), scale(4, 4, 4), move(1, 2, 3)], "has 2 translations"),
    ([scale(4, 4)], "scale of 2 numbers"),
    ([scale(4, 4, 4), move(1, 2, 3, 4)], "translation of 4 numbers"),
    ([scale(4, float("nan"), 4)], "finite numbers"),
    ([{"type": "scale", "path": "scales/0"}], "keeps its scale in the array scales/0"),
    ([{"type": "scale"}], "unreadable scale"),
    ([scale(4, 4, True)], "unreadable scale; expected three numbers"),
    ([scale(4, 4, 4), move(False, 0, 0)], "unreadable translation"),
    ([scale(4, 4, 4), {"type": "affine", "affine": [[1]]}], "transformation 'affine'"),
    ([{"type": "sequence", "transformations": [scale(4, 4, 4)]}], "transformation 'sequence'"),
    (["scale"], "transformation 'scale'"),
    ({"type": "scale"}, "expected a list"),
]


@pytest.mark.parametrize(("rows", "reason"), BAD_LISTS)
@pytest.mark.parametrize("where", ["level", "all levels"])
def test_transformations_that_ngff_does_not_allow_are_refused(rows, reason, where, tmp_path):
    own, outer = (rows, None) if where == "level" else ([scale(4, 4, 4)], rows)
    location = image(tmp_path / "image", {"s0": ((8, 8, 8), own)}, outer=outer)
    named = f"{location}/s0" if where == "level" else rf"{location} \(all levels\)"
    for opened in (open_labels, lambda place: open_volume(place, "s0", None)):
        with pytest.raises(MetadataError, match=f"{named}.*{reason}"):
            opened(location)


def test_the_list_of_all_levels_is_applied_after_that_of_the_level(tmp_path):
    """A position is outer scale * (scale * index + translation) + outer translation."""
    own = [{"type": "identity"}, scale(2, 3, 4), move(1, 2, 3)]
    outer = [scale(10, 10, 5), move(7, 8, 9)]
    location = image(tmp_path / "image", {"s0": ((8, 8, 8), own)}, outer=outer)
    grid = open_labels(location).level.grid
    assert grid.voxel_nm == (20, 30, 20)
    assert grid.translation_nm == (17, 28, 24)
    with pytest.raises(MetadataError, match="no scale; expected a scale"):
        read_transformation([move(1, 2, 3)], "here")
    assert np.array_equal(read_transformation([], "here", required=False).scale, [1, 1, 1])


UNITS = {
    "nanometer": 1, "Nanometer": 1, "nanometers": 1, "NANOMETRES": 1, "nm": 1, " nm ": 1,
    "micrometer": 1e3, "microns": 1e3, "um": 1e3, "\u00b5m": 1e3, "\u03bcm": 1e3,
    "angstrom": 0.1, "\u00c5": 0.1, "\u212b": 0.1, "A\u030a": 0.1, "\u00c5ngstr\u00f6m": 0.1,
    "pm": 1e-3, "mm": 1e6, "Metre": 1e9,
}  # fmt: skip
NO_UNITS = ["pixel", "", "NM", "Nm", "Mm", "MM", "\u00b5M", "s", "meterss", "inch", 5, ["nm"]]


@pytest.mark.parametrize(("unit", "nm"), UNITS.items())
def test_units_in_any_spelling(unit, nm, tmp_path):
    location = image(tmp_path / "image", {"s0": ((8, 8, 8), [scale(1, 1, 1)])}, unit)
    assert open_labels(location).level.grid.voxel_nm == pytest.approx((nm, nm, nm))


@pytest.mark.parametrize("unit", NO_UNITS)
def test_what_is_no_unit_of_length_is_refused(unit, tmp_path):
    assert unit_nm(unit) is None
    location = image(tmp_path / "image", {"s0": ((8, 8, 8), [scale(1, 1, 1)])}, unit)
    with pytest.raises(MetadataError, match=r"has unit .*; expected one of .*nanometer"):
        open_labels(location)


@pytest.mark.parametrize("names", [("0", "1", "2"), ("full", "half", "quarter"), ("a/x", "b", "c")])
@pytest.mark.parametrize("backwards", [False, True])
def test_a_scale_is_a_rank_whatever_the_levels_are_called(names, backwards, tmp_path):
    location = pyramid(tmp_path / "image", names=names)
    group = zarr.open_group(location)
    multiscales = group.attrs["multiscales"]
    if backwards:
        multiscales[0]["datasets"].reverse()
        group.attrs["multiscales"] = multiscales
    for rank, name in enumerate(names):
        assert chosen(location, f"s{rank}") == name
    assert open_labels(location).level.path == names[0]
    assert chosen(location, "auto", (9.0, 8.0, 8.0)) == names[1]
    offered = ", ".join(rf"s{rank} \(the level {name}\)" for rank, name in enumerate(names))
    with pytest.raises(MetadataError, match=f"no scale level s3; expected one of {offered} or"):
        chosen(location, "s3")


def test_a_name_that_is_another_rank_is_said(tmp_path, caplog):
    """As where the metadata leave out the finest of s0, s1, s2."""
    location = pyramid(tmp_path / "image", names=("s1", "s2"))
    assert chosen(location, "s1") == "s2"
    assert f"{location}: scale s1 is the level s2" in caplog.text
    assert "the level named s1 is scale s0" in caplog.text


@pytest.mark.parametrize("down", [np.floor, np.ceil, np.round])
@pytest.mark.parametrize("shape", [(64, 64, 64), (61, 67, 77), (33, 35, 31)])
def test_levels_of_one_box_are_used_whatever_was_rounded(down, shape, tmp_path, caplog):
    names = tuple(f"s{n}" for n in range(5))
    location = pyramid(tmp_path / "image", shape, names, down=lambda n: int(down(n)))
    for rank, name in enumerate(names):
        assert chosen(location, f"s{rank}") == name
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize("finest_there", [True, False])
def test_levels_without_their_translation_are_reported_and_not_used(finest_there, tmp_path, caplog):
    """All at 0: s1 is half a voxel of the finest off, s2 one and a half."""
    location = pyramid(tmp_path / "image", translated=False)
    if not finest_there:
        (tmp_path / "image/s0/.zarray").unlink()
    assert chosen(location, "auto", (16.0, 16.0, 16.0)) == "s1"
    assert f"{location}/s2 is not used: its low edge lies -6, -6, -6 nm" in caplog.text
    assert "s1 is not used" not in caplog.text
    offer = "s0, s1" if finest_there else "s1"
    with pytest.raises(MetadataError, match=f"s2 cannot be used: .* give scale {offer}$"):
        chosen(location, "s2")


def test_a_level_of_another_size_is_reported_and_not_used(tmp_path, caplog):
    """Its array is four times smaller, its metadata say twice."""
    levels = {
        "s0": ((64, 64, 64), [scale(4, 4, 4), move(0, 0, 0)]),
        "s1": ((16, 32, 32), [scale(8, 8, 8), move(2, 2, 2)]),
    }
    location = image(tmp_path / "image", levels)
    assert chosen(location, "auto", (8.0, 8.0, 8.0)) == "s0"
    assert f"{location}/s1 is not used: its high edge lies -128, +0, +0 nm" in caplog.text


def test_labels_whose_levels_contradict_each_other_are_refused(tmp_path):
    """Nothing tells which level is right; a pyramid without translations says nothing else."""
    assert open_labels(pyramid(tmp_path / "whole")).level.path == "s0"
    assert open_labels(pyramid(tmp_path / "plain", translated=False)).level.path == "s0"
    moved = {
        "s0": ((64, 64, 64), [scale(4, 4, 4), move(40, 0, 0)]),
        "s1": ((32, 32, 32), [scale(8, 8, 8), move(2, 2, 2)]),
    }
    swapped = {
        "s0": ((64, 64, 64), [scale(8, 8, 8), move(0, 0, 0)]),
        "s1": ((32, 32, 32), [scale(4, 4, 4), move(2, 2, 2)]),
    }
    with pytest.raises(MetadataError, match=r"s0 and s1 contradict each other .*-40, "):
        open_labels(image(tmp_path / "moved", moved))
    with pytest.raises(MetadataError, match=r"s1 and s0 contradict each other .*is larger by"):
        open_labels(image(tmp_path / "swapped", swapped))


@pytest.mark.parametrize("written", ["./{}", "{}/", ".//{}/."])
def test_a_path_that_only_looks_different_is_the_level(written, tmp_path):
    location = pyramid(tmp_path / "image")
    group = zarr.open_group(location)
    (multiscale,) = group.attrs["multiscales"]
    for dataset in multiscale["datasets"]:
        dataset["path"] = written.format(dataset["path"])
    group.attrs["multiscales"] = [multiscale]
    assert [chosen(location, f"s{rank}") for rank in range(3)] == ["s0", "s1", "s2"]


@pytest.mark.parametrize("path", ["../s0", "a/../s0", ".", ""])
def test_a_path_that_is_not_below_the_image_is_refused(path, tmp_path):
    location = image(tmp_path / "image", {"s0": ((8, 8, 8), [scale(4, 4, 4)])})
    group = zarr.open_group(location)
    (multiscale,) = group.attrs["multiscales"]
    multiscale["datasets"][0]["path"] = path
    group.attrs["multiscales"] = [multiscale]
    with pytest.raises(MetadataError, match=f"has the dataset path '{path}'; expected the path of"):
        open_labels(location)


@pytest.mark.parametrize("axis", [0, 2])
def test_a_level_of_labels_of_another_size_is_refused(axis, tmp_path):
    """Listed from fine to coarse, with one wrong scale."""
    wrong = [8.0, 8.0, 8.0]
    wrong[axis] = 16.0
    levels = {
        "s0": ((64, 64, 64), [scale(4, 4, 4), move(2, 2, 2)]),
        "s1": ((32, 32, 32), [scale(*wrong), move(*(v / 2 for v in wrong))]),
    }
    with pytest.raises(MetadataError, match="contradict each other"):
        open_labels(image(tmp_path / "labels", levels))


@pytest.mark.parametrize("translated", [True, False])
@pytest.mark.parametrize("down", [np.floor, np.ceil, np.round])
@pytest.mark.parametrize("shape", [(64, 64, 64), (61, 67, 77), (5, 3, 31)])
def test_labels_without_the_translation_of_downsampling_are_read(down, shape, translated, tmp_path):
    """All at one place: s1 is half a voxel of the finest off, s4 seven and a half."""
    names = tuple(f"s{n}" for n in range(5))
    location = pyramid(
        tmp_path / "labels", shape, names, translated, lambda n: max(1, int(down(n)))
    )
    level = open_labels(location).level
    assert (level.path, level.grid.shape_vox) == ("s0", shape)
    (tmp_path / "labels/s1/.zarray").write_text("{")  # A level that is not needed.
    assert open_labels(location).level == level


def test_what_names_no_levels_is_refused(tmp_path):
    location = image(tmp_path / "image", {"s0": ((8, 8, 8), [scale(4, 4, 4)])})
    group = zarr.open_group(location)
    (right,) = group.attrs["multiscales"]
    no_unit = [{"name": a, "type": "space"} for a in "zyx"]
    for change, reason in (
        ({"datasets": right["datasets"] * 2}, "names the level s0 twice"),
        ({"axes": no_unit}, "has an axis without unit; expected one of"),
        ({"coordinateSystems": [{"axes": right["axes"]}]}, "OME-NGFF 0.6; expected OME-NGFF 0.4"),
    ):
        group.attrs["multiscales"] = [{**right, **change}]
        with pytest.raises(MetadataError, match=reason):
            Levels(stores.open_group(location), location)
    zarr.create_group(tmp_path, zarr_format=2)
    with pytest.raises(MetadataError, match=r"no multiscales; .* give one of .*: image"):
        open_labels(str(tmp_path))

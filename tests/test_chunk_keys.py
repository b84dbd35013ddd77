"""Chunk files under other names than the metadata give are never taken for missing chunks."""

import json
import re
import shutil

import numpy as np
import pytest
import zarr

from cellmap_core import stores
from cellmap_core.chunks import ChunkReader
from cellmap_core.errors import ChunkKeyError, MetadataError
from cellmap_core.multiscale import Levels
from tests.test_bad_input import CROP, RAW, edit
from tests.test_convert import own_phantom, rows, run  # noqa: F401
from tests.test_remote import http  # noqa: F401
from tests.test_stores import bucket  # noqa: F401

SHAPE, CHUNK = (24, 16, 16), (8, 8, 8)
KEYS = {
    2: [{"name": "v2", "separator": "."}, {"name": "v2", "separator": "/"}],
    3: [
        {"name": "default", "configuration": {"separator": "/"}},
        {"name": "default", "configuration": {"separator": "."}},
        {"name": "v2", "configuration": {"separator": "."}},
        {"name": "v2", "configuration": {"separator": "/"}},
    ],
}
SHARD = (8, 8, 16)
PAIRS = [
    (version, written, claimed, shards)
    for version, keys in KEYS.items()
    for written in keys
    for claimed in keys
    for shards in (None, SHARD)
    if written != claimed and (version == 3 or not shards)
]
WHOLE = ((0, 0, 0), SHAPE)


def separator(keys):
    return keys.get("separator") or keys["configuration"]["separator"]


def array(folder, version, keys, shards=None):
    """An array with one chunk that is not stored."""
    values = np.ones(SHAPE, np.uint8)
    values[:8, :8, 8:] = 0
    group = zarr.create_group(folder, zarr_format=version)
    made = group.create_array(
        "s0", shape=SHAPE, dtype="u1", chunks=CHUNK, shards=shards, fill_value=0,
        chunk_key_encoding=keys,
    )  # fmt: skip
    made[:] = values
    return folder / "s0"


def claim(place, version, keys):
    """Let the metadata say that the chunks have these names."""
    if version == 2:
        edit(place / ".zarray", dimension_separator=separator(keys))
    else:
        edit(place / "zarr.json", chunk_key_encoding=keys)


def stored(location):
    group = stores.open_group(str(location))
    return ChunkReader(stores.find_array(group, str(location), "s0")).survey(*WHOLE).stored


@pytest.mark.parametrize(("version", "written", "claimed", "shards"), PAIRS)
def test_chunks_under_other_names_are_an_error(version, written, claimed, shards, tmp_path):
    place = array(tmp_path / "group", version, written, shards)
    right = stored(tmp_path / "group")
    assert (right.sum(), right[0, 0, 1]) == (11, False)
    claim(place, version, claimed)
    with pytest.raises(ChunkKeyError, match=r"s0 holds the chunk file .*do not name") as caught:
        stored(tmp_path / "group")
    # What the message says to set is what the chunks were written with.
    setting = json.loads(re.search('set (".*) in its', str(caught.value))[1].join("{}"))
    if version == 2:
        assert setting == {"dimension_separator": separator(written)}
    else:
        assert setting == {"chunk_key_encoding": written}
    claim(place, version, written)
    assert np.array_equal(stored(tmp_path / "group"), right)


@pytest.mark.parametrize("keys", KEYS[2])
def test_a_few_chunks_under_other_names_are_found_too(keys, tmp_path):
    place = array(tmp_path / "group", 2, keys)
    nested = separator(keys) == "/"
    other = place / ("0.0.1" if nested else "0/0/1")
    other.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(place / ("1/0/0" if nested else "1.0.0"), other)
    with pytest.raises(ChunkKeyError, match=f"chunk file {other.relative_to(place)}"):
        stored(tmp_path / "group")


@pytest.mark.parametrize("keys", KEYS[2])
def test_chunks_outside_the_array_are_an_error(keys, tmp_path):
    """As where the shape is given in another order than the chunks have."""
    place = array(tmp_path / "group", 2, keys)
    edit(place / ".zarray", shape=list(reversed(SHAPE)))
    with pytest.raises(ChunkKeyError, match=r"holds the chunk 2.*outside its shape \(16, 16, 24\)"):
        ChunkReader(zarr.open_array(place, mode="r")).survey((0, 0, 0), (16, 16, 24))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("at", [0, -1])
def test_other_files_beside_the_chunks_are_no_chunks(version, at, tmp_path):
    keys = KEYS[version][at]
    place = array(tmp_path / "group", version, keys)
    right = stored(tmp_path / "group")
    for name in (".DS_Store", "0.0.0.part", "notes.txt", ".nfs0001", "0.0.0 (copy)"):
        (place / name).write_text("x")
    (place / "9").mkdir()  # Empty, as some copies leave them.
    assert np.array_equal(stored(tmp_path / "group"), right)


@pytest.mark.parametrize("name", ["0.partial", "chunk.0.0.0", "0_0_0", "0.gz"])
def test_files_of_an_unknown_kind_are_not_taken_for_nothing(name, tmp_path):
    place = array(tmp_path, 2, KEYS[2][0])
    for path in place.glob("[0-9]*"):
        path.unlink()
    reader = ChunkReader(stores.find_array(stores.open_group(str(tmp_path)), "", "s0"))
    (place / ".DS_Store").touch()
    assert not reader.survey(*WHOLE).stored.any()
    (place / name).touch()
    reader = ChunkReader(stores.find_array(stores.open_group(str(tmp_path)), "", "s0"))
    with pytest.raises(ChunkKeyError, match=f"holds {name}, which is no name of a chunk"):
        reader.survey(*WHOLE)


def test_it_is_the_same_in_a_bucket(bucket, tmp_path):  # noqa: F811
    root, fill = bucket
    cases = {"two": (2, None), "three": (3, None), "shards": (3, SHARD)}
    for name, (version, shards) in cases.items():
        place = array(tmp_path / "data" / name, version, KEYS[version][1], shards)
        claim(place, version, KEYS[version][0])
    array(tmp_path / "data" / "right", 2, KEYS[2][1])
    fill(tmp_path / "data")
    for name in cases:
        with pytest.raises(ChunkKeyError, match="which its metadata do not name"):
            stored(f"{root}/{name}")
    assert stored(f"{root}/right").sum() == 11


@pytest.mark.parametrize("part", ["labels", "raw"])
def test_a_crop_with_chunks_under_other_names_fails(part, own_phantom, tmp_path):  # noqa: F811
    """Its class was absent everywhere, and its EM not downloaded."""
    folder = own_phantom.parent / (f"{CROP}/mito" if part == "labels" else RAW)
    for document in folder.rglob(".zarray"):
        content = json.loads(document.read_text())
        del content["dimension_separator"]
        document.write_text(json.dumps(content))
    result = run(own_phantom, tmp_path / "out")
    broken = {"labels": {"phantom-a/crop2"}, "raw": {f"phantom-a/crop{n}" for n in (1, 2, 3)}}
    table = rows(result)
    assert {name for name, row in table.items() if row["status"] != "converted"} == broken[part]
    for name in broken[part]:
        assert table[name]["status"] == "failed"
        assert 'set "dimension_separator": "/" in its .zarray' in table[name]["reason"]


def test_a_level_whose_metadata_are_missing_is_not_a_level_left_out(own_phantom):  # noqa: F811
    location = own_phantom.parent / RAW
    levels = Levels(stores.open_group(str(location)), str(location))
    (location / "s1/.zarray").unlink()
    with pytest.raises(MetadataError, match=r"s1 has chunk files .* but no .zarray; .*download"):
        levels.choose("auto", (16.0, 16.0, 16.0))
    for name in ("0", "1"):
        shutil.rmtree(location / "s1" / name, ignore_errors=True)
    levels = Levels(stores.open_group(str(location)), str(location))
    assert levels.choose("auto", (16.0, 16.0, 16.0))[0].path == "s0"

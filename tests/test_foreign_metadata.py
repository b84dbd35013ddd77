"""Metadata of other writers: what leaves nothing open is read, what else lies there is named."""

import json
import shutil

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from cellmap_core import stores
from cellmap_core.cluster.cases import cases_of_crops
from cellmap_core.convert import plan
from cellmap_core.errors import CellmapError, DatalistError, DatasplitError, MetadataError
from cellmap_core.multiscale import Levels
from cellmap_core.options import ConvertOptions
from cellmap_core.volume import open_volume
from tests.test_bad_input import CROP, NAME, RAW, edit
from tests.test_convert import own_phantom, rows, run  # noqa: F401
from tests.test_crop_lists import TRUTH
from tests.test_remote import http  # noqa: F401
from tests.test_stores import bucket  # noqa: F401

VALUES = np.arange(512, dtype=np.uint8).reshape(8, 8, 8)


def change_v2(compressor=None, without=(), codec=None, **values):
    """A change of ``.zarray``: of its codec (``codec`` sets keys of it) and of its other keys."""

    def change(folder):
        made(folder, 2, compressors=compressor or numcodecs.Blosc("zstd"))
        document = json.loads((folder / "s0/.zarray").read_text())
        document["compressor"] |= codec or {}
        document |= values
        write(folder / "s0/.zarray", {k: v for k, v in document.items() if k not in without})

    return change


def change_v3(compressor=None, without=(), codec=None, shards=None, **values):
    """The same of ``zarr.json``."""

    def change(folder):
        made(folder, 3, compressors=compressor or BloscCodec(), shards=shards)
        document = json.loads((folder / "s0/zarr.json").read_text())
        codecs = document["codecs"]
        if shards:
            codecs = codecs[0]["configuration"]["codecs"]
        codecs[-1]["configuration"] |= codec or {}
        document |= values
        write(folder / "s0/zarr.json", {k: v for k, v in document.items() if k not in without})

    return change


def made(folder, version, **how):
    group = zarr.create_group(folder, zarr_format=version)
    array = group.create_array("s0", shape=(8, 8, 8), dtype="u1", chunks=(4, 4, 4), **how)
    array[:] = VALUES


def write(path, document):
    path.write_text(json.dumps(document))


def bare_codecs(folder):
    made(folder, 3, compressors=GzipCodec())
    edit(folder / "s0/zarr.json", codecs=["bytes", "gzip"])


def consolidated_v2(folder):
    change_v2(codec={"nthreads": 1})(folder)
    metadata = {name: json.loads((folder / name).read_text()) for name in (".zgroup", "s0/.zarray")}
    write(folder / ".zmetadata", {"zarr_consolidated_format": 1, "metadata": metadata})


def consolidated_v3(folder):
    change_v3(codec={"nthreads": 1})(folder)
    metadata = {"s0": json.loads((folder / "s0/zarr.json").read_text())}
    about = {"kind": "inline", "must_understand": False, "metadata": metadata}
    edit(folder / "zarr.json", consolidated_metadata=about)


def a_group_with_more(folder):
    made(folder, 3)
    edit(folder / "zarr.json", zarrs={"must_understand": False, "version": "1"})


READ = {
    "v2 Blosc nthreads": change_v2(codec={"nthreads": 8}),
    "v2 Blosc all of n5-zarr": change_v2(codec={"nthreads": 1, "blocksize": 0, "typesize": 1}),
    "v2 zstd checksum": change_v2(numcodecs.Zstd(checksum=True)),
    "v2 zstd workers": change_v2(numcodecs.Zstd(), codec={"nbWorkers": 0, "level": 22}),
    "v2 gzip": change_v2(numcodecs.GZip(), codec={"level": -1, "useZlib": False}),
    "v2 lz4": change_v2(numcodecs.LZ4(), codec={"acceleration": 1, "blockSize": 65536}),
    "v2 no fill value": change_v2(without=["fill_value", "filters"]),
    "v2 fill value null": change_v2(fill_value=None),
    "v2 separator null": change_v2(dimension_separator=None),
    "v2 byte order of a byte": change_v2(dtype="<u1", codec={"nthreads": 1}),
    "v2 more keys": change_v2(node_type="array", dimension_names=["z", "y", "x"]),
    "v2 consolidated": consolidated_v2,
    "v3 Blosc nthreads": change_v3(codec={"nthreads": 1}),
    "v3 zstd workers": change_v3(ZstdCodec(), codec={"nbWorkers": 0}),
    "v3 gzip": change_v3(GzipCodec(), codec={"level": -1}),
    "v3 in shards": change_v3(codec={"nthreads": 1}, shards=(8, 8, 8)),
    "v3 names alone": bare_codecs,
    "v3 key encoding's name alone": change_v3(chunk_key_encoding="default"),
    "v3 fill value null": change_v3(fill_value=None),
    "v3 transformers": change_v3(storage_transformers=[], codec={"nthreads": 1}),
    "v3 names of axes": change_v3(dimension_names=["z", "y", None], codec={"nthreads": 1}),
    "v3 key not needed": change_v3(zarrs={"must_understand": False}, codec={"nthreads": 1}),
    "v3 consolidated null": change_v3(consolidated_metadata=None),
    "v3 consolidated": consolidated_v3,
    "v3 group with more": a_group_with_more,
}  # fmt: skip


@pytest.mark.parametrize("way", READ)
def test_what_leaves_nothing_open_is_read(way, tmp_path):
    READ[way](tmp_path / "image")
    group = stores.open_group(str(tmp_path / "image"))
    array = stores.find_array(group, "here", "s0")
    assert np.array_equal(stores.read(array, (0, 0, 0), (8, 8, 8)), VALUES)


REFUSED = {
    "no order in its .zarray": change_v2(without=["order"]),
    "UnknownCodecError.*blosc2": change_v2(codec={"id": "blosc2"}),
    "no codecs in its zarr.json": change_v3(without=["codecs"]),
    "no chunk_grid in its zarr.json": change_v3(without=["chunk_grid"]),
    "disallowed extra fields:..offsets": change_v3(offsets=[1, 2, 3]),
    "Expected .* separator": change_v2(dimension_separator="-"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_leaves_something_open_is_refused(reason, tmp_path):
    """A level with metadata that lack a key was taken for one that is not there."""
    REFUSED[reason](tmp_path / "image")
    group = stores.open_group(str(tmp_path / "image"))
    with pytest.raises(MetadataError, match=f"here/s0 has bad metadata.*{reason}"):
        stores.find_array(group, "here", "s0")


def test_a_group_key_that_must_be_understood_is_refused(tmp_path):
    made(tmp_path / "image", 3)
    edit(tmp_path / "image/zarr.json", offset=5)
    with pytest.raises(MetadataError, match=r"is no zarr group .*offset"):
        stores.open_group(str(tmp_path / "image"))


def test_so_it_is_in_a_bucket(bucket, tmp_path):  # noqa: F811
    root, fill = bucket
    for name in ("v2 Blosc nthreads", "v3 consolidated"):
        READ[name](tmp_path / "data" / name[:2])
    write_n5(tmp_path / "data/n5")
    made(tmp_path / "data/bare", 2)
    (tmp_path / "data/bare/.zgroup").unlink()
    fill(tmp_path / "data")
    for name in ("v2", "v3"):
        array = stores.find_array(stores.open_group(f"{root}/{name}"), "here", "s0")
        assert np.array_equal(stores.read(array, (0, 0, 0), (8, 8, 8)), VALUES)
        with pytest.raises(MetadataError, match=f"{root}/{name}/s0 is a zarr array.*{root}/{name}"):
            stores.open_group(f"{root}/{name}/s0")
    with pytest.raises(MetadataError, match=f"{root}/n5 is N5"):
        stores.open_group(f"{root}/n5")
    with pytest.raises(MetadataError, match=f"{root}/bare has no .zgroup"):
        stores.open_group(f"{root}/bare")
    with pytest.raises(CellmapError, match=f"no zarr group at {root}/nothing"):
        stores.open_group(f"{root}/nothing")


def write_n5(folder):
    (folder / "s0/0/0").mkdir(parents=True)
    write(folder / "attributes.json", {"n5": "4.0.0", "scales": [[1, 1, 1]]})
    write(folder / "s0/attributes.json", {"dimensions": [8, 8, 8], "dataType": "uint8"})
    (folder / "s0/0/0/0").write_bytes(b"\0")


def n5(folder):
    shutil.rmtree(folder)
    write_n5(folder)
    return "is N5 .*; expected OME-Zarr, as zarr v2 or v3; convert it"


def inside_n5(folder):
    n5(folder.parent)
    folder.mkdir(exist_ok=True)
    return "is N5"


def a_level_of_n5(folder):
    (folder / "s0/.zarray").unlink()
    write(folder / "s0/attributes.json", {"dimensions": [8, 8, 8]})
    return "s0 is N5"


def without_zgroup(folder):
    (folder / ".zgroup").unlink()
    return 'has no .zgroup.*; download its .zgroup, or write {"zarr_format": 2} into that file'


def without_group_metadata(folder):
    for name in (".zgroup", ".zattrs"):
        (folder / name).unlink()
    return "has no .zgroup"


def without_zarr_json(folder):
    shutil.rmtree(folder)
    made(folder, 3)
    (folder / "zarr.json").unlink()
    return "has no zarr.json, though s0 in it has"


def an_array(folder):
    shutil.rmtree(folder)
    zarr.create_array(folder, shape=(8, 8, 8), chunks=(4, 4, 4), dtype="u1", zarr_format=2)
    return "is a zarr array; expected a zarr group.*; give the group that holds it"


def an_array_of_v3(folder):
    shutil.rmtree(folder)
    zarr.create_array(folder, shape=(8, 8, 8), chunks=(4, 4, 4), dtype="u1")
    return "is a zarr array"


def a_file(folder):
    shutil.rmtree(folder)
    folder.write_bytes(b"PK")
    return "is a file"


def in_a_file(folder):
    shutil.rmtree(folder.parent)
    folder.parent.write_bytes(b"PK")
    return f"is a file, so {folder} cannot lie in it; expected a folder .*; unpack it"


def a_level_of_another_format(folder):
    shutil.rmtree(folder / "s0")
    zarr.create_array(folder / "s0", shape=(8, 8, 8), chunks=(4, 4, 4), dtype="u1")
    return "s0 has zarr.json, while its group is of zarr v2"


DAMAGES = [
    n5, inside_n5, a_level_of_n5, without_zgroup, without_group_metadata, without_zarr_json,
    an_array, an_array_of_v3, a_file, in_a_file, a_level_of_another_format,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("part", [RAW, f"{CROP}/mito"])
def test_what_is_no_zarr_group_is_named(damage, part, own_phantom):  # noqa: F811
    location = str(own_phantom.parent / part)
    reason = damage(own_phantom.parent / part)
    with pytest.raises(
        MetadataError, match=reason if damage is in_a_file else f"{location}.*{reason}"
    ):
        Levels(stores.open_group(location), location).finest()


@pytest.mark.parametrize("version", [2, 3])
def test_a_folder_of_images_given_as_image_names_them(version, tmp_path):
    """It was told to write a .zgroup, which makes the folder no image."""
    axes = [{"name": a, "type": "space", "unit": "nanometer"} for a in "zyx"]
    multiscales = [{"axes": axes, "datasets": []}]
    for name in ("fibsem-uint8", "fibsem-int16"):
        made(tmp_path / "em" / name, version)
        attributes = {"multiscales": multiscales}
        attributes = {"ome": attributes} if version == 3 else attributes
        zarr.open_group(tmp_path / "em" / name).attrs.update(attributes)
    location = str(tmp_path / "em")
    with pytest.raises(MetadataError, match=r"is no image, .*images fibsem-int16, fibsem-uint8"):
        open_volume(location, "auto", None)
    zarr.create_group(location, zarr_format=version)
    with pytest.raises(MetadataError, match=r"no multiscales; .* one of .*: fibsem-int16, fib"):
        open_volume(location, "auto", None)


def test_a_crop_without_zgroup_and_a_class_folder_as_crop_fail_by_name(own_phantom, tmp_path):  # noqa: F811
    lines = own_phantom.read_text()
    own_phantom.write_text(lines.replace("crop1/[cell,nuc,nucleo,mito]", "crop1/mito/[mito]", 1))
    (own_phantom.parent / CROP / ".zgroup").unlink()
    table = rows(run(own_phantom, tmp_path / "out"))
    failed = {name: row["reason"] for name, row in table.items() if row["status"] == "failed"}
    assert set(failed) == {"phantom-a/mito", NAME}
    assert "crop1/mito is one image with its scale levels, no crop" in failed["phantom-a/mito"]
    assert "crop1, and mito as its class" in failed["phantom-a/mito"]
    assert "crop2 has no .zgroup" in failed[NAME]


def test_class_folders_as_crops_give_no_classes(own_phantom):  # noqa: F811
    """Their scale levels would be taken for classes."""
    crops = own_phantom.parent / f"*/*.zarr/{TRUTH}/crop[12]"
    options = ConvertOptions(datasplit=crops / "*")
    with pytest.raises(DatasplitError, match=r"no class is listed.*is one image with its scale"):
        plan(options)
    with pytest.raises(DatalistError, match="is one image with its scale levels, no crop"):
        cases_of_crops(ConvertOptions(datasplit=crops / "mito", classes=["mito"]), 2, "auto")


def test_a_class_without_zgroup_is_there_on_a_server_that_lists_nothing(http, phantom, tmp_path):  # noqa: F811
    """It was taken for a class that the crop does not have."""
    root, trouble = http
    trouble["crop2/mito/.zgroup"] = [404]
    location = f"{root}/{CROP}"
    assert stores.children(stores.open_group(location), ("cell", "mito", "nuc")) == ("cell", "mito")
    with pytest.raises(MetadataError, match=r"mito has no .zgroup"):
        stores.open_group(f"{location}/mito")

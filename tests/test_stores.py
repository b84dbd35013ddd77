"""The phantom stored in every way that is read: each gives the files of the untouched one."""

import gzip
import json
import re
import shutil

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, ShardingCodec

from cellmap_core import remote, stores
from cellmap_core.datalist import read_datalist
from cellmap_core.errors import StoreError
from cellmap_core.label_table import UNKNOWN
from cellmap_core.nifti import read_volume
from cellmap_core.stores import open_group
from tests.conftest import s3_bucket
from tests.test_convert import rows, run
from tests.test_remote import elsewhere, outputs

RAW = "recon-1/em/fibsem-uint8"
CHUNK, SHARD = (32, 32, 32), (64, 64, 64)
SLASHES = {"name": "v2", "separator": "/"}
BUCKET = "cellmap-shards"


@pytest.fixture(scope="module")
def three(phantom, tmp_path_factory):
    """Three crops of the phantom, one of them with an unknown region; read only."""
    folder = tmp_path_factory.mktemp("three") / "data"
    left = shutil.ignore_patterns("crop1", "crop3", "crop6", "s1", "s2")
    shutil.copytree(phantom.parent, folder, ignore=left)
    datasplit = folder / phantom.name
    kept = [line for line in phantom.read_text().splitlines() if re.search("crop[245]/", line)]
    datasplit.write_text("\n".join(kept))
    return datasplit


@pytest.fixture(scope="module")
def plain(three, tmp_path_factory):
    """What they convert to; read only."""
    return run(three, tmp_path_factory.mktemp("plain"))


def rewritten(phantom, folder, version=2, attributes=dict, values=np.asarray, raw=None, **how):
    """A copy of the phantom with each group and array written anew.

    ``attributes`` and ``values`` change those of every group and array, ``raw`` the values of
    the EM alone; ``how`` goes to zarr.
    """
    datasplit = folder / phantom.name
    datasplit.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(phantom, datasplit)
    for marker in sorted(phantom.parent.rglob(".zgroup")):
        source = zarr.open_group(marker.parent, mode="r")
        place = folder / marker.parent.relative_to(phantom.parent)
        group = zarr.create_group(place, zarr_format=version)
        group.attrs.update(attributes(dict(source.attrs)))
        for name, array in source.arrays():
            data = values(array[:])
            if raw and place.name == "fibsem-uint8":
                data = raw(data)
            new = group.create_array(
                name,
                shape=data.shape,
                dtype=data.dtype,
                fill_value=0,
                **{"chunks": CHUNK, "chunk_key_encoding": SLASHES if version == 2 else None, **how},
            )
            new[:] = data
            new.attrs.update(dict(array.attrs))
    return datasplit


@pytest.mark.parametrize("fill", [255, float("nan"), float("inf")])
@pytest.mark.parametrize("version", [2, 3])
def test_a_missing_chunk_of_em_is_black_whatever_its_fill_value(three, tmp_path, fill, version):
    kind = np.uint8 if fill == 255 else np.float32
    values = {}
    for name, filler in (("black", 0), ("filled", fill)):
        datasplit = rewritten(three, tmp_path / name, version, raw=lambda a: a.astype(kind))
        folder = datasplit.parent / "phantom-a/phantom-a.zarr" / RAW / "s0"
        about = folder / (".zarray" if version == 2 else "zarr.json")
        document = json.loads(about.read_text())
        # The words that zarr has for what JSON has no number for.
        written = {"nan": "NaN", "inf": "Infinity"}.get(str(filler), filler)
        about.write_text(json.dumps({**document, "fill_value": written}))
        shutil.rmtree(folder / ("2/2" if version == 2 else "c/2/2"))
        result = run(datasplit, tmp_path / name / "out", min_coverage=0)
        images = (result.datalist.parent / "images").iterdir()
        values[name] = {path.name: read_volume(path) for path in images}
    assert set(values["black"]) == set(values["filled"])
    assert any((volume == 0).any() for volume in values["black"].values())
    for name, volume in values["black"].items():
        assert np.array_equal(volume, values["filled"][name]), name


def test_what_is_plainly_v2_is_opened_as_zarr_opens_it(three, tmp_path):
    stale = tmp_path / "stale"
    shutil.copytree(three.parent, stale)
    group = next(stale.rglob(RAW))
    document = json.loads((group / "s0/.zarray").read_text())
    consolidated = {
        ".zgroup": {"zarr_format": 2},
        ".zattrs": json.loads((group / ".zattrs").read_text()),
        "s0/.zarray": document,
    }
    about = {"zarr_consolidated_format": 1, "metadata": consolidated}
    (group / ".zmetadata").write_text(json.dumps(about))
    # Who trusts the consolidated metadata never sees this.
    (group / "s0/.zarray").write_text(json.dumps({**document, "shape": [1, 1, 1]}))
    opened = stores.open_group(str(group))
    assert stores.find_array(opened, "here", "s0").shape == tuple(document["shape"])
    for folder in sorted(p.parent for p in three.parent.rglob(".zgroup")):
        ours = stores.open_group(str(folder))
        theirs = zarr.open_group(folder, mode="r")
        assert dict(ours.attrs) == dict(theirs.attrs)
        for name, array in theirs.arrays():
            found = stores.find_array(ours, "here", name)
            assert found.metadata == array.metadata
            assert str(found.store_path) == str(array.store_path)


def by_multiscale(change):
    """Attributes with their multiscale, where they have one, changed."""

    def attributes(document):
        for multiscale in document.get("multiscales", ()):
            change(multiscale)
        return document

    return attributes


def transformations(multiscale):
    return [t for d in multiscale["datasets"] for t in d["coordinateTransformations"]]


def in_micrometers(multiscale):
    for axis in multiscale["axes"]:
        axis["unit"] = "micrometer"
    for row in transformations(multiscale):
        row[row["type"]] = [v / 1000 for v in row[row["type"]]]


def in_order(*order):
    """Axes of a multiscale in another order (indices of z, y, x)."""

    def change(multiscale):
        multiscale["axes"] = [multiscale["axes"][i] for i in order]
        for row in transformations(multiscale):
            row[row["type"]] = [row[row["type"]][i] for i in order]

    return change


def partly_for_all_levels(multiscale):
    """Half the scale, and a part of the translation, said once for all levels."""
    for dataset in multiscale["datasets"]:
        scale, translation = dataset["coordinateTransformations"]
        scale["scale"] = [v / 2 for v in scale["scale"]]
        translation["translation"] = [(t - 10) / 2 for t in translation["translation"]]
    multiscale["coordinateTransformations"] = [
        {"type": "scale", "scale": [2, 2, 2]},
        {"type": "translation", "translation": [10, 10, 10]},
    ]


def under_ome(document):
    """As OME-NGFF 0.5 has it."""
    if "multiscales" not in document:
        return document
    multiscales = document.pop("multiscales")
    for multiscale in multiscales:
        del multiscale["version"]
    return {**document, "ome": {"version": "0.5", "multiscales": multiscales}}


WAYS = {
    "v2, keys with dots": {"chunk_key_encoding": {"name": "v2", "separator": "."}},
    "v2, Fortran order": {"order": "F"},
    "v2, Fortran order, not compressed": {"order": "F", "compressors": None},
    "v2, Blosc": {"compressors": numcodecs.Blosc("zstd", shuffle=numcodecs.Blosc.BITSHUFFLE)},
    "v2, gzip": {"compressors": numcodecs.GZip()},
    "v2, not compressed": {"compressors": None},
    "v2, filtered": {"filters": [numcodecs.Delta(dtype="|u1")]},
    "v2, chunks that do not divide": {"chunks": (13, 50, 17)},
    "v2, empty chunks stored": {"config": {"write_empty_chunks": True}},
    "v3": {"version": 3},
    "v3, keys as in v2": {"version": 3, "chunk_key_encoding": SLASHES},
    "v3, shards": {"version": 3, "shards": SHARD},
    "v3, one shard": {"version": 3, "shards": (96, 96, 128)},
    "v3, metadata as in 0.5": {"version": 3, "attributes": under_ome},
    "x, y, z": {"values": np.transpose, "attributes": by_multiscale(in_order(2, 1, 0))},
    "x, z, y": {
        "values": lambda a: np.transpose(a, (2, 0, 1)),
        "attributes": by_multiscale(in_order(2, 0, 1)),
        "chunks": (16, 32, 24),
    },
    "x, z, y in v3 shards": {
        "version": 3,
        "values": lambda a: np.transpose(a, (2, 0, 1)),
        "attributes": by_multiscale(in_order(2, 0, 1)),
        "chunks": (16, 32, 24),
        "shards": (32, 32, 48),
    },
    "micrometers": {"attributes": by_multiscale(in_micrometers)},
    "scale and translation of the multiscale": {"attributes": by_multiscale(partly_for_all_levels)},
}


@pytest.mark.parametrize("way", WAYS)
def test_however_it_is_stored_the_files_are_the_same(way, three, plain, tmp_path):
    result = run(rewritten(three, tmp_path / "data", **WAYS[way]), tmp_path / "out")
    assert (result.done, result.failures, result.excluded) == (3, (), ())
    assert outputs(result) == outputs(plain)


@pytest.mark.parametrize(("old", "new"), [("recon-1", "recon-2"), ("fibsem-uint8", "em-aligned")])
def test_another_reconstruction_and_another_image(old, new, three, plain, tmp_path):
    shutil.copytree(three.parent, tmp_path / "data")
    datasplit = tmp_path / "data" / three.name
    datasplit.write_text(datasplit.read_text().replace(old, new))
    for folder in list(datasplit.parent.rglob(old)):
        folder.rename(folder.with_name(new))
    assert outputs(run(datasplit, tmp_path / "out")) == outputs(plain)


@pytest.mark.parametrize("dtype", [">u2", ">f4", "<f4", "i2"])
def test_raw_of_another_type_keeps_its_values(dtype, three, plain, tmp_path):
    """Values that no byte holds, so that bytes read for words would show."""

    def wider(values):
        return (values.astype(np.int64) * 100 - 7).astype(dtype)

    result = run(rewritten(three, tmp_path / "data", raw=wider), tmp_path / "out")
    assert result.failures == ()
    found, expected = outputs(result), outputs(plain)
    images = [name for name in expected if name.parent.name == "images"]
    assert len(images) == 3
    for name in images:
        image = read_volume(result.datalist.parent / name)
        assert image.dtype == np.dtype(dtype).newbyteorder("<")
        assert np.array_equal(image, wider(read_volume(plain.datalist.parent / name)))
    assert all(found[name] == expected[name] for name in expected if name not in images)


@pytest.mark.parametrize("dtype", [">u2", "u8"])
def test_labels_of_another_type_are_the_same(dtype, three, plain, tmp_path):
    path = rewritten(
        three, tmp_path / "data",
        values=lambda a: a.astype(dtype), raw=lambda a: a.astype(np.uint8),
    )  # fmt: skip
    assert outputs(run(path, tmp_path / "out")) == outputs(plain)


@pytest.mark.parametrize("target", [(8, 12, 20), "native"])
@pytest.mark.parametrize("way", ["x, z, y", "v3, shards"])
def test_so_it_is_when_resampled(way, target, three, tmp_path):
    plain = run(three, tmp_path / "plain", target_spacing=target)
    path = rewritten(three, tmp_path / "data", **WAYS[way])
    result = run(path, tmp_path / "out", target_spacing=target)
    assert result.failures == ()
    assert unpacked(result) == unpacked(plain)


def unpacked(result):
    """What is in the files: other chunks pass through the compression in other pieces."""
    return {
        name: gzip.decompress(content) if name.suffix == ".gz" else content
        for name, content in outputs(result).items()
    }


def with_a_hole(values):
    """The EM with one chunk of zeros, which zarr then does not store."""
    values = values.copy()
    values[:32, 32:64, 32:64] = 0
    return values


# That chunk's part of crop4, which starts at 16, 32, 24.
HOLE = 16 * 32 * 32 / (40 * 40 * 48)


@pytest.fixture(scope="module")
def with_hole(three, tmp_path_factory):
    """The three crops with one chunk of EM missing, converted."""
    folder = tmp_path_factory.mktemp("with_hole")
    datasplit = rewritten(three, folder / "data", raw=with_a_hole)
    assert not (folder / f"data/phantom-b/phantom-b.zarr/{RAW}/s0/0/1/1").exists()
    return run(datasplit, folder / "out")


def in_shards(three, folder, where="end"):
    """The same in shards: the missing chunk's shard is there, with other chunks in it."""
    serializer = ShardingCodec(chunk_shape=CHUNK, index_location=where)
    datasplit = rewritten(
        three, folder, version=3, raw=with_a_hole,
        chunks=SHARD, serializer=serializer, compressors=None,
    )  # fmt: skip
    assert (folder / f"phantom-b/phantom-b.zarr/{RAW}/s0/c/0/0/0").is_file()
    return datasplit


def check_hole(result):
    """The missing chunk is told, and what it covers is unknown and nothing else."""
    assert float(rows(result)["phantom-b/crop4"]["coverage"]) == pytest.approx(1 - HOLE, abs=1e-3)
    assert float(rows(result)["phantom-a/crop2"]["coverage"]) == 1
    label = read_volume(result.datalist.parent / "labels" / "phantom-b_crop4.nii.gz")
    states = read_datalist(result.datalist).table.states()[label]
    assert (states[:16, :32, 8:40] == UNKNOWN).all()
    assert (states[:, 32:] != UNKNOWN).all()
    assert (states[16:, 10:] != UNKNOWN).all()


@pytest.mark.parametrize("where", ["end", "start"])
def test_an_inner_chunk_that_its_shard_does_not_hold_is_missing(where, three, with_hole, tmp_path):
    result = run(in_shards(three, tmp_path / "data", where), tmp_path / "out")
    check_hole(result)
    assert outputs(result) == outputs(with_hole)


# A shard of voxels 0 to 64, 64 to 128 and 0 to 64, which holds a part of crop4 alone.
BESIDE = f"phantom-b/phantom-b.zarr/{RAW}/s0/c/0/1/0"


def test_a_shard_that_is_not_there_is_missing_whole(three, tmp_path):
    datasplit = rewritten(three, tmp_path / "data", version=3, shards=SHARD)
    (datasplit.parent / BESIDE).unlink()
    table = rows(run(datasplit, tmp_path / "out"))
    missing = 40 * 8 * 40 / (40 * 40 * 48)
    assert float(table["phantom-b/crop4"]["coverage"]) == pytest.approx(1 - missing, abs=1e-3)
    assert float(table["phantom-b/crop5"]["coverage"]) == 1


@pytest.mark.parametrize("left", [-50, 7, 0])
def test_a_truncated_shard_fails_its_crop_alone(left, three, tmp_path):
    datasplit = rewritten(three, tmp_path / "data", version=3, shards=SHARD)
    shard = datasplit.parent / BESIDE
    shard.write_bytes(shard.read_bytes()[:left])
    result = run(datasplit, tmp_path / "out")
    assert [f.item for f in result.failures] == ["phantom-b/crop4"]
    assert "fibsem-uint8/s0 cannot be" in result.failures[0].reason
    assert result.done == 2


def test_a_truncated_chunk_of_v3_fails_its_crop_alone(three, tmp_path):
    """Blosc would decode it with what lies behind it in memory."""
    datasplit = rewritten(three, tmp_path / "data", version=3, compressors=BloscCodec())
    chunk = datasplit.parent / f"phantom-b/phantom-b.zarr/{RAW}/s0/c/0/2/1"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    result = run(datasplit, tmp_path / "out")
    assert [f.item for f in result.failures] == ["phantom-b/crop4"]
    assert re.search("c/0/2/1 cannot be read .*bytes of", result.failures[0].reason)


@pytest.fixture
def bucket(monkeypatch):
    """An empty bucket of a real S3 API server: where it is, and a way to fill it."""
    with s3_bucket(BUCKET) as (url, fill):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        remote._open.cache_clear()
        yield f"s3://{BUCKET}", fill
    remote._open.cache_clear()


def test_so_it_is_in_a_bucket(bucket, three, with_hole, tmp_path):
    root, fill = bucket
    datasplit = in_shards(three, tmp_path / "data")
    fill(datasplit.parent)
    result = run(elsewhere(datasplit, root, tmp_path), tmp_path / "out")
    check_hole(result)
    assert outputs(result) == outputs(with_hole)


def test_a_message_counts_the_entries_that_it_does_not_name(tmp_path):
    for number in range(15):
        (tmp_path / f"crop{number:02}").mkdir()
    with pytest.raises(StoreError, match=r"crop10, crop11 and 3 more$"):
        open_group(str(tmp_path / "crop99"))

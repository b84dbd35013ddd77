"""Crops broken in every way met: each is named with what was found, the rest converts."""

import csv
import ctypes
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr

from cellmap_core import patience, remote
from cellmap_core.datalist import read_datalist
from cellmap_core.models import ConvertResult
from cellmap_core.nifti import read_grid, read_volume
from tests.conftest import ROOT, skip
from tests.test_convert import own_phantom, rows, run  # noqa: F401
from tests.test_remote import Quiet, Server, outputs

RAW = "phantom-a/phantom-a.zarr/recon-1/em/fibsem-uint8"
CROP = "phantom-a/phantom-a.zarr/recon-1/labels/groundtruth/crop2"
NAME = "phantom-a/crop2"
# Touched by crop2 alone, of all the phantom's crops.
RAW_CHUNK = f"{RAW}/s0/2/2/2"
LABEL_CHUNK = f"{CROP}/mito/s0/1/1/1"


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def stored_again(folder, **how):
    """One array written anew, at its old place."""
    array = zarr.open_array(folder, mode="r")
    values, attributes = array[:], dict(array.attrs)
    shutil.rmtree(folder)
    values = how.pop("values", lambda a: a)(values)
    new = zarr.create_array(
        folder, shape=values.shape, dtype=values.dtype, chunks=(32, 32, 32), fill_value=0,
        **{"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}, **how},
    )  # fmt: skip
    new[:] = values
    new.attrs.update(attributes)


def unknown_codec(folder):
    edit(folder / CROP / "mito/s0/.zarray", compressor={"id": "lzma-of-tomorrow"})
    return "mito/s0 has bad metadata .*lzma-of-tomorrow"


def unknown_codec_of_raw(folder):
    edit(folder / RAW / "s0/.zarray", compressor={"id": "lzma-of-tomorrow"})
    return "fibsem-uint8/s0 has bad metadata .*lzma-of-tomorrow"


def labels_of_floats(folder):
    stored_again(folder / CROP / "mito/s0", values=lambda a: a.astype("f4"))
    return "mito holds float32; expected an integer label array"


def a_value_without_meaning(folder):
    zarr.open_array(folder / CROP / "mito/s0")[40, 40, 40] = 7
    return "mito holds the value 7; expected absent 0, present 1 or unknown 255"


def a_chunk_full_of_a_value_without_meaning(folder):
    zarr.open_array(folder / CROP / "mito/s0")[32:64, 32:64, 32:64] = 7
    return "mito holds the value 7; expected absent 0, present 1 or unknown 255"


def only_coarser_raw_on_disk(folder):
    shutil.rmtree(folder / RAW / "s0")
    return "fibsem-uint8 has no scale level s0; expected one of s1, s2 or auto"


def no_finest_labels(folder):
    for level in ("s0", "s1"):
        shutil.rmtree(folder / CROP / "mito" / level)
    return "mito has no s0, the finest level its metadata name; expected labels at their finest"


def truncated_raw(folder):
    chunk = folder / RAW_CHUNK
    chunk.write_bytes(chunk.read_bytes()[:-100])
    return "fibsem-uint8/s0/2/2/2 cannot be read .*bytes of .*; expected a whole chunk"


def empty_raw(folder):
    (folder / RAW_CHUNK).write_bytes(b"")
    return "fibsem-uint8/s0/2/2/2 cannot be read"


def corrupt_raw(folder):
    random = np.random.default_rng(0)
    (folder / RAW_CHUNK).write_bytes(random.bytes((folder / RAW_CHUNK).stat().st_size))
    return "fibsem-uint8/s0/2/2/2 cannot be read"


def almost_whole_raw(folder):
    """Which Blosc would decode with what lies behind it in memory."""
    chunk = folder / RAW_CHUNK
    chunk.write_bytes(chunk.read_bytes()[:-1])
    return "fibsem-uint8/s0/2/2/2 cannot be read .*bytes of"


def truncated_fortran_order(folder):
    stored_again(folder / CROP / "mito/s0", order="F", compressors=numcodecs.Blosc())
    chunk = folder / LABEL_CHUNK
    chunk.write_bytes(chunk.read_bytes()[:-1])
    return "mito/s0/1/1/1 cannot be read .*bytes of"


def truncated_zstd(folder):
    stored_again(folder / CROP / "mito/s0", compressors=numcodecs.Zstd())
    chunk = folder / LABEL_CHUNK
    chunk.write_bytes(chunk.read_bytes()[:-1])
    return "mito/s0, chunk 1/1/1 cannot be read"


def corrupt_zstd(folder):
    stored_again(folder / CROP / "mito/s0", compressors=numcodecs.Zstd())
    (folder / LABEL_CHUNK).write_bytes(np.random.default_rng(1).bytes(500))
    return "mito/s0, chunk 1/1/1 cannot be read"


def a_chunk_of_another_size(folder):
    (folder / LABEL_CHUNK).write_bytes(numcodecs.Blosc("lz4").encode(np.zeros(1000, "u1")))
    return "mito/s0, chunk 1/1/1 cannot be read"


def truncated_uncompressed(folder):
    stored_again(folder / CROP / "mito/s0", compressors=None)
    chunk = folder / LABEL_CHUNK
    chunk.write_bytes(chunk.read_bytes()[:-1])
    return "mito/s0, chunk 1/1/1 cannot be read"


def corrupt_gzip(folder):
    """Whose error is one of the system's by its type, but does not pass."""
    stored_again(folder / CROP / "mito/s0", compressors=numcodecs.GZip())
    (folder / LABEL_CHUNK).write_bytes(b"no gzip at all")
    return "mito/s0, chunk 1/1/1 cannot be read .*BadGzipFile"


def corrupt_gzip_in_fortran_order(folder):
    stored_again(folder / CROP / "mito/s0", compressors=numcodecs.GZip(), order="F")
    (folder / LABEL_CHUNK).write_bytes(b"no gzip at all")
    return "mito/s0 cannot be read at .*BadGzipFile"


def a_folder_for_a_chunk(folder):
    (folder / LABEL_CHUNK).unlink()
    (folder / LABEL_CHUNK).mkdir()
    return "mito/s0 cannot be listed .*Is a directory"


def no_scale(folder):
    attributes = json.loads((folder / CROP / "mito/.zattrs").read_text())
    del attributes["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]
    (folder / CROP / "mito/.zattrs").write_text(json.dumps(attributes))
    return "mito/s0 has no scale; expected a scale transformation"


def lengths_of_no_unit(folder):
    attributes = json.loads((folder / CROP / "mito/.zattrs").read_text())
    attributes["multiscales"][0]["axes"][1]["unit"] = "pixel"
    (folder / CROP / "mito/.zattrs").write_text(json.dumps(attributes))
    return "mito has unit pixel; expected one of .*nanometer"


def voxels_of_no_size(folder):
    text = (folder / CROP / "mito/.zattrs").read_text()
    (folder / CROP / "mito/.zattrs").write_text(re.sub(r'("scale": \[\s*)4.0', r"\g<1>-4.0", text))
    return "mito/s0 has voxels of .*-4.0.*; expected sizes above 0"


def a_place_beyond_all_volumes(folder):
    path = folder / CROP / "mito/.zattrs"
    attributes = json.loads(path.read_text())
    for dataset in attributes["multiscales"][0]["datasets"]:
        dataset["coordinateTransformations"][1]["translation"] = [1e300, 0, 0]
    path.write_text(json.dumps(attributes))
    return r"mito/s0 has voxels of .* at \[1e\+300.*below a metre"


def two_places(folder):
    path = folder / CROP / "mito/.zattrs"
    attributes = json.loads(path.read_text())
    for dataset in attributes["multiscales"][0]["datasets"]:
        dataset["coordinateTransformations"] += dataset["coordinateTransformations"][-1:]
    path.write_text(json.dumps(attributes))
    return "mito/s0 has 2 translations; expected one"


def attributes_that_are_a_list(folder):
    (folder / CROP / "mito/s0/.zattrs").write_text("[1]")
    return r"mito has attributes \[1\]; expected a JSON object"


def chunks_of_no_voxel(folder):
    edit(folder / RAW / "s0/.zarray", chunks=[0, 32, 32])
    return r"fibsem-uint8/s0 has shape .* and chunks \(0, 32, 32\); expected at least 1 each"


def axes_that_are_numbers(folder):
    edit(folder / CROP / "mito/.zattrs", multiscales=[{"axes": 5, "datasets": 7}])
    return "mito has malformed multiscales .*; expected OME-NGFF"


def an_encoding_of_another_kind(folder):
    path = folder / CROP / "mito/s0/.zattrs"
    attributes = json.loads(path.read_text())
    attributes["cellmap"]["annotation"]["annotation_type"]["encoding"] = [0, 1, 255]
    path.write_text(json.dumps(attributes))
    return r"mito has encoding \[0, 1, 255\]; expected integers absent, present and unknown"


def an_encoding_of_booleans(folder):
    path = folder / CROP / "mito/s0/.zattrs"
    attributes = json.loads(path.read_text())
    kind = attributes["cellmap"]["annotation"]["annotation_type"]
    kind["encoding"] = {"absent": False, "present": True}
    path.write_text(json.dumps(attributes))
    return "mito has encoding .*; expected integers absent, present and unknown"


def attributes_of_another_kind(folder):
    edit(folder / CROP / "mito/.zattrs", cellmap="yes")
    (folder / CROP / "mito/s0/.zattrs").write_text("{}")
    return "mito has no annotation encoding"


BROKEN = [
    unknown_codec, unknown_codec_of_raw, labels_of_floats, a_value_without_meaning,
    a_chunk_full_of_a_value_without_meaning, no_finest_labels,
    only_coarser_raw_on_disk, truncated_raw, empty_raw, corrupt_raw, almost_whole_raw,
    truncated_fortran_order, truncated_zstd, corrupt_zstd, a_chunk_of_another_size,
    truncated_uncompressed, corrupt_gzip, corrupt_gzip_in_fortran_order, a_folder_for_a_chunk,
    no_scale, lengths_of_no_unit, voxels_of_no_size, axes_that_are_numbers,
    an_encoding_of_another_kind, an_encoding_of_booleans,
    attributes_of_another_kind, a_place_beyond_all_volumes,
    two_places, attributes_that_are_a_list, chunks_of_no_voxel,
]  # fmt: skip


def check(result, reason, broken=(NAME,), crops=6):
    """The broken crops are named with the reason, no file is theirs, the rest is converted."""
    table = rows(result)
    assert {name for name, row in table.items() if row["status"] == "failed"} == set(broken)
    assert {f.item for f in result.failures} == set(broken)
    for failure in result.failures:
        assert re.search(reason, failure.reason), failure.reason
        assert "unexpected" not in failure.reason
        assert table[failure.item]["reason"] == failure.reason
        left = result.datalist.parent.rglob(f"*{failure.item.replace('/', '_')}*")
        assert list(left) == []
    assert len(outputs(result)) == 2 * (crops - len(broken)) + 1


@pytest.fixture
def unhurried(monkeypatch):
    """What may pass is tried again at once."""
    monkeypatch.setattr(patience, "_PAUSES_SECONDS", (0, 0))


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("damage", BROKEN)
def test_a_broken_crop_is_named_with_what_was_found(damage, own_phantom, tmp_path):  # noqa: F811
    # So that only this crop reads the specimen whose raw is broken.
    lines = [row for row in own_phantom.read_text().splitlines() if not re.search("crop[13]/", row)]
    own_phantom.write_text("\n".join(lines))
    reason = damage(own_phantom.parent)
    check(run(own_phantom, tmp_path / "out"), reason, crops=4)


@pytest.mark.parametrize(
    "attributes", [{}, {"cellmap": "yes", "ome": 5}, {"cellmap": {"annotation": [1]}}]
)
def test_a_crop_needs_no_attributes_of_its_own(attributes, own_phantom, tmp_path, converted):  # noqa: F811
    """Its classes are listed in the datasplit."""
    (own_phantom.parent / CROP / ".zattrs").write_text(json.dumps(attributes))
    assert outputs(run(own_phantom, tmp_path / "out")) == outputs(converted)


def test_boolean_labels_are_labels(own_phantom, tmp_path, converted):  # noqa: F811
    for array in (own_phantom.parent / CROP).glob("*/s0"):
        stored_again(array, values=lambda a: a.astype(bool))
    assert outputs(run(own_phantom, tmp_path / "out")) == outputs(converted)


def test_levels_left_out_of_a_download_are_no_choice(own_phantom, tmp_path, converted):  # noqa: F811
    """By ``auto`` the coarsest that is there and fine enough, else the finest."""
    shutil.rmtree(own_phantom.parent / RAW / "s1")
    result = run(own_phantom, tmp_path / "out", scale="auto", target_spacing=(16, 16, 16))
    levels = {row["dataset"]: row["raw_level"] for row in rows(result).values()}
    assert levels == {"phantom-a": "s0", "phantom-b": "s1"}


# Reading it at its start is an input/output error, as a failing disk gives.
FAILING = Path("/proc/self/mem")


@pytest.fixture
def failing_disk():
    try:
        FAILING.read_bytes()
    except OSError as error:
        if error.errno == errno.EIO:
            return
    skip("/proc/self/mem does not fail as a disk does")


def failing(path):
    """Let a file fail to be read; the function given back puts it right."""
    kept = path.with_name(path.name + "-kept")
    path.rename(kept)
    path.symlink_to(FAILING)
    return partial(kept.replace, path)


PARTS = {
    "raw": RAW_CHUNK,
    "label": LABEL_CHUNK,
    "array metadata": f"{CROP}/mito/s0/.zarray",
    "class metadata": f"{CROP}/mito/.zattrs",
    "crop metadata": f"{CROP}/.zattrs",
}


@pytest.mark.usefixtures("failing_disk")
@pytest.mark.parametrize(("part", "order"), [*((part, "C") for part in PARTS), ("label", "F")])
def test_what_fails_once_is_read_again(part, order, own_phantom, converted, tmp_path, monkeypatch):  # noqa: F811
    stored_again(own_phantom.parent / CROP / "mito/s0", order=order)
    repair = failing(own_phantom.parent / PARTS[part])
    pauses = []

    def pause(seconds):
        if not pauses:
            repair()
        pauses.append(seconds)

    monkeypatch.setattr(patience.time, "sleep", pause)
    result = run(own_phantom, tmp_path / "out")
    assert result.failures == ()
    assert len(pauses) == 1
    assert outputs(result) == outputs(converted)


@pytest.mark.usefixtures("failing_disk", "unhurried")
@pytest.mark.parametrize("part", PARTS)
def test_what_fails_always_is_that_crops_failure_alone(part, own_phantom, tmp_path):  # noqa: F811
    lines = [row for row in own_phantom.read_text().splitlines() if not re.search("crop[13]/", row)]
    own_phantom.write_text("\n".join(lines))
    failing(own_phantom.parent / PARTS[part])
    check(run(own_phantom, tmp_path / "out"), "Input/output error", crops=4)


PROGRAM = """
import sys
from pathlib import Path
from cellmap_core.convert import convert
from cellmap_core.options import ConvertOptions
options = ConvertOptions(datasplit=Path(sys.argv[1]), output_dir=Path(sys.argv[2]), num_fold=2)
print(convert(options).model_dump_json())
"""
DROP_FROM_BOUNDING_SET, DAC_OVERRIDE, DAC_READ_SEARCH = 24, 1, 2


def like_anybody():
    """Root as well is then refused what the modes of its files refuse."""
    for capability in (DAC_OVERRIDE, DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(DROP_FROM_BOUNDING_SET, capability, 0, 0, 0)


def test_what_may_not_be_read_is_not_taken_for_missing(own_phantom, tmp_path):  # noqa: F811
    """A folder of chunks that may not be entered looked like one that was never written."""
    crops = {
        "phantom-a/crop1": "mito/s0/1/1/1",
        "phantom-a/crop2": "mito/s0/1",
        "phantom-b/crop4": "mito/s0/.zarray",
        "phantom-b/crop5": "mito",
    }
    for name, part in crops.items():
        dataset, crop = name.split("/")
        labels = f"{dataset}/{dataset}.zarr/recon-1/labels/groundtruth"
        (own_phantom.parent / labels / crop / part).chmod(0)
    unlisted = own_phantom.parent / "phantom-b/phantom-b.zarr/recon-1/labels/groundtruth/crop6"
    unlisted.chmod(0o300)
    readable = subprocess.run(
        ["cat", own_phantom.parent / CROP / "mito/s0/1/1/1"],
        preexec_fn=like_anybody, capture_output=True, check=False,
    )  # fmt: skip
    if readable.returncode == 0:
        skip("this process may read whatever it likes")
    outcome = subprocess.run(
        [sys.executable, "-c", PROGRAM, own_phantom, tmp_path / "out"],
        preexec_fn=like_anybody, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr
    result = ConvertResult.model_validate_json(outcome.stdout)
    check(result, "may not be read|Permission denied", (*crops, "phantom-b/crop6"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system that some of the crops fit on."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder]
    if shutil.which("mount") is None or subprocess.run(mounting, check=False).returncode:
        skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_fails_the_crops_that_do_not_fit(phantom, small_disk, tmp_path):
    output = small_disk / "nifti_data"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    options = ["--datasplit", phantom, "--output_dir", output, "--num_fold", "2"]
    outcome = subprocess.run(
        [sys.executable, ROOT / "flows" / "convert.py", *options],
        env={**environment, "PREFECT_HOME": str(tmp_path / "prefect")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert outcome.returncode == 1, outcome.stderr
    table = {row["crop"]: row for row in read_table(output / "crops.csv")}
    fit = [name for name, row in table.items() if row["status"] == "converted"]
    failed = {name: row for name, row in table.items() if row["status"] == "failed"}
    assert fit
    assert len(failed) == 6 - len(fit) > 0
    assert all("No space left" in row["reason"] for row in failed.values())
    assert all(name in outcome.stdout + outcome.stderr for name in failed)
    for name, row in table.items():
        stem = f"{row['dataset']}_{name}.nii.gz"
        for kind in ("images", "labels"):
            path = output / kind / stem
            assert path.exists() == (name in fit)
            if name in fit:
                assert read_volume(path).shape == read_grid(path).shape_vox
    assert not [path for path in output.rglob("*") if ".partial." in path.name]
    entries = read_datalist(output / "datalist.json")
    assert {e.cellmap.crop for e in (*entries.training, *entries.testing)} == set(fit)


def read_table(path):
    with path.open() as source:
        return list(csv.DictReader(source))


def test_a_bucket_that_may_not_be_listed_is_said_so(phantom, tmp_path, monkeypatch):
    trouble = {"list-type": [403]}
    handler = type("Handler", (Quiet,), {"trouble": trouble})
    server = Server(("127.0.0.1", 0), partial(handler, directory=str(phantom.parent.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    remote._open.cache_clear()
    folder = phantom.parent
    far = phantom.read_text().replace('"phantom-', f'"s3://{folder.name}/phantom-').splitlines()
    near = phantom.read_text().replace('"phantom-', f'"{folder}/phantom-').splitlines()
    datasplit = tmp_path / "datasplit.csv"
    datasplit.write_text("\n".join([near[0], far[1], *near[2:]]))
    try:
        result = run(datasplit, tmp_path / "out")
    finally:
        server.shutdown()
        server.server_close()
        remote._open.cache_clear()
    check(result, "groundtruth/crop2 cannot be listed .*[Pp]ermission")

"""A conversion ended at any moment goes on, and ends as if nothing had happened."""

import random
import subprocess
import sys
import time

import pytest

from cellmap_core.convert import convert
from cellmap_core.options import ConvertOptions
from cellmap_core.provenance import sweep

PROGRAM = """
import sys
from pathlib import Path
from cellmap_core.convert import convert
from cellmap_core.options import ConvertOptions
options = ConvertOptions(datasplit=Path(sys.argv[1]), output_dir=Path(sys.argv[2]), num_fold=2)
print("ready", flush=True)
convert(options)
"""
KILLS = 10


def start(datasplit, output):
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(datasplit), str(output)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert child.stdout.readline() == "ready\n"
    return child


def content(folder):
    paths = [p for p in folder.rglob("*") if p.is_file()]
    return {p.relative_to(folder): p.read_bytes() for p in paths if p.suffix != ".json"}


def test_killed_ten_times_at_random_the_files_are_those_of_an_undisturbed_run(phantom, tmp_path):
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    begun = time.monotonic()
    assert start(phantom, undisturbed).wait() == 0
    whole = time.monotonic() - begun
    rng = random.Random(3)
    killed = 0
    while killed < KILLS:
        child = start(phantom, disturbed)
        time.sleep(rng.uniform(0, whole / KILLS))
        if child.poll() is not None:
            # It came to its end: all done, so that there is something to kill again.
            for folder in ("images", "labels", ".cache"):
                for path in (disturbed / folder).glob("phantom-a*"):
                    path.unlink()
            continue
        child.kill()
        child.wait()
        killed += 1
        for path in [p for d in ("images", "labels") for p in disturbed.glob(f"{d}/[!.]*")]:
            assert path.read_bytes() == (undisturbed / path.relative_to(disturbed)).read_bytes()
    assert start(phantom, disturbed).wait() == 0
    assert content(disturbed) == content(undisturbed)
    name = "datalist.json"
    assert (disturbed / name).read_bytes() == (undisturbed / name).read_bytes()


@pytest.mark.parametrize(("process", "left"), [("1", True), ("999999999", False)])
def test_only_what_a_dead_writer_left_is_swept(process, left, tmp_path):
    from cellmap_core import provenance

    path = tmp_path / f".{provenance._WRITER}-{process}.partial.a.nii.gz"
    path.write_bytes(b"half")
    foreign = tmp_path / f".elsewhere-{process}.partial.a.nii.gz"
    foreign.write_bytes(b"half")
    sweep(tmp_path)
    assert path.exists() == left
    assert foreign.exists()


def test_a_second_run_takes_up_what_is_there(phantom, tmp_path):
    options = ConvertOptions(datasplit=phantom, output_dir=tmp_path, num_fold=2)
    first = convert(options)
    assert (first.done, convert(options).done) == (6, 0)

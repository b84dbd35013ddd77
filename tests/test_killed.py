"""A conversion ended at any moment goes on, and ends as if nothing had happened."""

import os
import random
import re
import socket
import subprocess
import sys
import time

import pytest

from cellmap_core import provenance
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


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize(("process", "left"), [("1", True), ("999999999", False)])
def test_only_what_a_dead_writer_left_is_swept(process, left, folder, tmp_path):
    def leave(writer):
        path = tmp_path / f".{writer}-{process}.partial.a.zarr"
        if folder:
            (path / "mito").mkdir(parents=True)
        half = path / "mito" / "0" if folder else path
        half.write_bytes(b"half")
        return path, half

    ours, _ = leave(provenance._WRITER)
    fresh, _ = leave("elsewhere")
    abandoned, half = leave("with-a-dash")
    for path in {abandoned, half, half.parent} - {tmp_path}:
        os.utime(path, (0, 0))
    working, _ = leave("busy")
    # A folder is as old as the newest file in it, however deep.
    os.utime(working, (0, 0) if folder else None)
    sweep(tmp_path)
    assert ours.exists() == left
    assert fresh.exists()
    assert working.exists()
    assert not abandoned.exists()


def test_a_temporary_name_tells_its_host(tmp_path):
    with provenance.scratch_folder(tmp_path / "a.zarr") as folder:
        assert re.sub("[^A-Za-z0-9]", "", socket.gethostname()) in folder.name


def test_the_first_write_to_a_folder_removes_what_killed_writers_left(tmp_path):
    left = tmp_path / f".{provenance._WRITER}-999999999.partial.b.json"
    left.write_text("half")
    provenance.write_text(tmp_path / "a.json", "{}")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


KILLED_RENAME = """
import os, signal, sys
from pathlib import Path
from cellmap_core.provenance import replace_folder
rename = Path.rename
def deadly(self, target):
    if self.name == "new":
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.rename = deadly
replace_folder(Path(sys.argv[1]) / "new", Path(sys.argv[1]) / "a.zarr")
"""


def make_folders(root, *names):
    for name in names:
        (root / name).mkdir()
        (root / name / "content").write_text(name)


def test_a_folder_is_never_lost_between_two_renames(tmp_path):
    make_folders(tmp_path, "new", "a.zarr")
    target = tmp_path / "a.zarr"
    assert subprocess.run([sys.executable, "-c", KILLED_RENAME, tmp_path], check=False).returncode
    assert not target.exists()
    sweep(tmp_path)
    assert (target / "content").read_text() == "a.zarr"
    provenance.replace_folder(tmp_path / "new", target)
    assert (target / "content").read_text() == "new"
    with pytest.raises(FileNotFoundError):
        provenance.replace_folder(tmp_path / "gone", target)
    assert (target / "content").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_a_second_run_takes_up_what_is_there(phantom, tmp_path):
    options = ConvertOptions(datasplit=phantom, output_dir=tmp_path, num_fold=2)
    first = convert(options)
    assert (first.done, convert(options).done) == (6, 0)

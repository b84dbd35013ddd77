"""`make bench`: conversion against what people write today, its memory, scaling and overhead.

Every figure is a ratio or a sum within this one run; nothing is asserted. Each timing is one
process pinned to one core, its imports not counted; ours and the peer's alternate, and the
least of the rounds counts, which is what the machine can do when nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.bench.crops import TYPICAL, BenchCrop, write_crops, write_giant

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 3
GIANT, CUBE = (1796, 1500, 2400), (400, 400, 400)
SMALL_CROPS = 289


def main() -> None:
    """Run the parts asked for (all of them by default) and print their tables."""
    run({"speed": speed, "memory": memory, "scaling": scaling, "overhead": overhead}, __doc__)


def run(parts: dict[str, Callable[[Path], None]], about: str) -> None:
    """Run the parts that the command line names, each in a folder of its own."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("parts", nargs="*", default=list(parts), help=f"of {', '.join(parts)}")
    chosen = parser.parse_args().parts
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for name in chosen:
            (Path(folder) / name).mkdir()
            parts[name](Path(folder) / name)


def speed(folder: Path) -> None:
    """Mvoxel/s per core against zarr-python, scipy's zoom and nibabel, the same crops."""
    write_crops(folder, TYPICAL)
    rows, sums = [], [0.0, 0.0]
    for crop in TYPICAL:
        split = folder / crop.name / "datasplit.csv"
        times: dict[str, list[float]] = {"ours": [], "peer": []}
        for _ in range(ROUNDS):
            for who, seconds in times.items():
                seconds.append(worker(who, split, folder / "out", core=0)["seconds"])
        ours, peer = min(times["ours"]), min(times["peer"])
        sums = [sums[0] + ours, sums[1] + peer]
        rows.append([crop.name, describe(crop), f"{peer:.2f}", f"{ours:.2f}", f"{peer / ours:.1f}"])
    rows.append(["all", "", f"{sums[1]:.2f}", f"{sums[0]:.2f}", f"{sums[1] / sums[0]:.1f}"])
    table("Conversion on one core", ["crop", "what", "peer s", "ours s", "times faster"], rows)


def memory(folder: Path) -> None:
    """Peak RSS over that after the imports, for a small and a very large crop."""
    rows = []
    for shape, spacing in ((CUBE, "8"), (CUBE, "native"), (GIANT, "8"), (GIANT, "native")):
        data = folder / f"{shape[0]}"
        split = data / "datasplit.csv"
        if not split.exists():
            data.mkdir()
            write_giant(data, shape, label_nm=4.0, raw_nm=8.0)
        told = worker("ours", split, folder / "out", core=0, spacing=spacing)
        size = "×".join(map(str, shape))
        rows.append([size, spacing, f"{told['over_import_mb']:.0f}", f"{told['seconds']:.0f}"])
    table("Peak memory", ["labels (4 nm)", "target nm", "MB over imports", "s"], rows)


def scaling(folder: Path) -> None:
    """The same crops on one worker and on one a core."""
    crop = TYPICAL[0]._replace(filled=6, shape_vox=(256, 256, 256))
    cores = len(os.sched_getaffinity(0))
    crops = tuple(crop._replace(name=f"crop-{i}") for i in range(6 * cores))
    split = write_crops(folder, crops)
    times = {n: worker("spread", split, folder / "out", workers=n)["seconds"] for n in (1, cores)}
    rows = [[n, f"{s:.2f}", f"{times[1] / s / n:.2f}"] for n, s in times.items()]
    table(f"Scaling, {len(crops)} crops", ["workers", "s", "of ideal"], rows)


def overhead(folder: Path) -> None:
    """The flow on 289 small crops against the same work called without Prefect."""
    shape = (48, 48, 48)
    small = BenchCrop("", shape, (4.0,) * 3, (8.0,) * 3, 2, 2)
    split = write_crops(folder, tuple(small._replace(name=f"c{i}") for i in range(SMALL_CROPS)))
    cores = len(os.sched_getaffinity(0))
    plain = worker("spread", split, folder / "plain", workers=cores)["seconds"]
    flow = worker("flow", split, folder / "flow", workers=cores)["seconds"]
    rows = [[f"{plain:.1f}", f"{flow:.1f}", f"{flow - plain:.1f}"]]
    table(f"Orchestration, {SMALL_CROPS} crops", ["without Prefect s", "flow s", "added s"], rows)


def worker(
    who: str,
    datasplit: Path,
    output: Path,
    *,
    core: int | None = None,
    spacing: str = "8",
    workers: int = 1,
) -> dict[str, float]:
    """What one measured process of the conversion tells."""
    words = (who, datasplit, output, spacing, workers)
    return told_by("tests.bench.worker", *words, core=core)


def told_by(module: str, *words: object, core: int | None = None) -> dict[str, float]:
    """What one measured process tells: seconds, and peak memory over its imports."""
    command = [sys.executable, "-m", module, *words]
    if core is not None:
        command[:0] = ["taskset", "-c", str(core)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PREFECT_LOGGING_LEVEL": "WARNING"}
    told = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, check=False
    )
    if told.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{told.stderr.decode()[-2000:]}")
    answer: dict[str, float] = json.loads(told.stdout.splitlines()[-1])
    return answer


def describe(crop: BenchCrop) -> str:
    """The crop in a few words."""
    label, raw = crop.label_nm, crop.raw_nm
    size = "×".join(map(str, crop.shape_vox))
    return (
        f"{size} at {label[0]:g}×{label[2]:g} nm, EM {raw[0]:g}×{raw[2]:g}, {crop.listed} classes"
    )


def table(title: str, columns: list[str], rows: list[list[object]]) -> None:
    """Print a markdown table."""
    print(f"\n### {title}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""`make bench`: the training data path, its memory, the trainer's overhead, and Dice on real EM.

The peers are what MONAI's own transforms do with the same files, in the same run. Nothing is
asserted. Each figure is of a process of its own, pinned to one core where a core is named.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import numpy as np

from cellmap_core import nifti
from cellmap_core.convert import convert
from cellmap_core.grid import Grid
from cellmap_core.options import ConvertOptions
from tests.bench.cases import write_cases
from tests.bench.convert import ROOT, run, table, told_by

CASES, EDGE, PATCHES = 8, 200, 200
PEER_PATCHES = 16
GIANT_EDGE, TILE_EDGE = 800, 200
REAL_EM = ROOT.parent / "shared" / "data" / "real_em"
REAL_STEPS, REAL_SEEDS = 500, (0, 1)


def main() -> None:
    """Run the parts asked for (all of them by default) and print their tables."""
    run({"patches": patches, "giant": giant, "overhead": overhead, "dice": dice}, __doc__)


def patches(folder: Path) -> None:
    """Patches a second into the model, and the memory of the process that cuts them."""
    write_cases(folder, (EDGE,) * 3, CASES)
    named(folder / "datalist.json")
    peer = told("monai", folder, PEER_PATCHES)
    cached = told("monai-cached", folder, PATCHES)
    rows = []
    for who, what in (
        ("monai", "MONAI, LoadImaged → RandCropByLabelClassesd → one-hot"),
        ("monai-cached", "MONAI with CacheDataset and ClassesToIndicesd"),
        ("cut", "ours, cut for a GPU (8 bits, ids)"),
        ("ours", "ours, normalised and expanded on this core"),
        ("augmented", "ours, and augmented"),
    ):
        answer = {"monai": peer, "monai-cached": cached}.get(who) or told(who, folder, PATCHES)
        rows.append(
            [
                what,
                f"{answer['rate']:.2f}",
                f"{answer['rate'] / peer['rate']:.0f}",
                f"{answer['over_import_mb']:.0f}",
                f"{peer['over_import_mb'] / answer['over_import_mb']:.1f}",
                f"{answer['start_s']:.1f}",
            ]
        )
    columns = ["path", "patches/s", "times faster", "MB over imports", "times smaller", "start s"]
    title = f"Patches of 96³ from {CASES} × {EDGE}³ .nii.gz, {15} labels, one core"
    table(title, columns, rows)


def giant(folder: Path) -> None:
    """Peak memory of training on a crop of 800³ with 14 classes, validated on one of 200³."""
    write_cases(folder, (TILE_EDGE,) * 3, 2)
    grid = Grid(shape_vox=(GIANT_EDGE,) * 3, voxel_nm=(8.0,) * 3, translation_nm=(0.0,) * 3)
    for kind in ("image", "label"):
        tile = np.asarray(nifti.read_volume(folder / f"{kind}0.nii.gz"))
        nifti.write_volume(folder / f"{kind}0.nii.gz", grid, np.tile(tile, (4, 4, 4)))
    named(folder / "datalist.json", folds=(1, 0))
    answer = told("train", folder, 6, core=None)
    row = [f"{GIANT_EDGE}³", f"{answer['over_import_mb']:.0f}", f"{answer['seconds']:.0f}"]
    table("Training of 6 steps", ["crop, 14 classes", "MB over imports", "s"], [row])


def overhead(folder: Path) -> None:
    """Time of a training's epochs outside forward, loss, backward and optimizer."""
    write_cases(folder, (EDGE,) * 3, 2)
    named(folder / "datalist.json", folds=(1, 0))
    answer = told("timed", folder, 20, core=None)
    columns = ["part", "s", "% of the epochs"]
    whole = answer["epochs"]
    rows = [[k, f"{v:.2f}", f"{100 * v / whole:.1f}"] for k, v in answer["parts"].items()]
    table("Overhead of the trainer, 8 filters, 14 classes, 2 × 96³ a step", columns, rows)


def dice(folder: Path) -> None:
    """Dice of ours and of a plain MONAI loop after the same CPU time, on real EM."""
    if not REAL_EM.is_dir():
        print(f"no real EM in {REAL_EM}: the Dice is not measured")
        return
    output = folder / "nifti_data"
    split = ConvertOptions(
        datasplit=REAL_EM / "datasplit.csv", output_dir=output, num_fold=2,
        target_spacing=(16.0,) * 3,
    )  # fmt: skip
    convert(split)
    rows, gains = [], []
    for fold in (0, 1):
        for seed in REAL_SEEDS:
            ours = told("real-ours", output, REAL_STEPS, fold, seed)
            peer = told("real-monai", output, ours["cpu_s"], fold, seed)
            gains.append(ours["mean_dice"] - peer["mean_dice"])
            rows.append(
                [fold, seed, f"{ours['cpu_s']:.0f}", f"{peer['cpu_s']:.0f}", peer["steps"],
                 f"{ours['mean_dice']:.3f}", f"{peer['mean_dice']:.3f}", f"{gains[-1]:+.3f}"]
            )  # fmt: skip
    rows.append(["", "median", "", "", "", "", "", f"{median(gains):+.3f}"])
    columns = ["fold", "seed", "ours CPU s", "MONAI CPU s", "MONAI steps", "ours", "MONAI", "gain"]
    table(f"Mean Dice on real EM, ours after {REAL_STEPS} steps", columns, rows)


def named(datalist: Path, folds: tuple[int, ...] = (0, 1)) -> None:
    """Give a plain datalist its 14 classes and folds."""
    listed = json.loads(datalist.read_text())
    listed["class_names"] = [f"class{i}" for i in range(1, 15)]
    for number, row in enumerate(listed["training"]):
        row["fold"] = folds[number % len(folds)]
    datalist.write_text(json.dumps(listed))


def told(who: str, folder: Path, *arguments: object, core: int | None = 0) -> dict:
    """What one measured process tells."""
    return told_by("tests.bench.train_worker", who, folder, *arguments, core=core)


if __name__ == "__main__":
    main()

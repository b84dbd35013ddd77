"""A tiny project on disk: crops of bright and dark balls, a datalist, datastats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import yaml

from cellmap_core.bundles.generate import generate
from cellmap_core.datalist import CaseInfo, Datalist, Entry, write_datalist
from cellmap_core.grid import Grid
from cellmap_core.label_table import LabelTable
from cellmap_core.models import BundleRef
from cellmap_core.nifti import write_volume
from cellmap_core.options import GenerateOptions
from cellmap_core.training.algorithms import build_network
from cellmap_core.training.checkpoint import Model, save
from cellmap_core.training.config_files import read_bundle_config, with_training_params
from cellmap_core.training.history import write_progress
from cellmap_core.training.result import best_checkpoint

CLASSES = ("mito", "er")
# Background, each alone, both, and er with mito unknown: ids 0 to 4.
TABLE = LabelTable.of(CLASSES, [(1, 1), (2, 1)])
GRID = Grid(shape_vox=(36, 40, 44), voxel_nm=(8.0, 8.0, 8.0), translation_nm=(104.0, 52.0, 26.0))
TINY = {
    "init_filters": 8,
    "blocks_down": [1, 1, 1],
    "patch_size_vox": [32, 32, 32],
    "num_steps_per_epoch": 4,
    "batch_size": 2,
    "learning_rate": 1e-2,
    "overlap": 0.25,
}


def make_crop(seed: int, grid: Grid = GRID) -> tuple[np.ndarray, np.ndarray]:
    """Image and label ids: bright balls are mito, dark ones er, a corner is unknown."""
    rng = np.random.default_rng(seed)
    image = rng.normal(128, 8, grid.shape_vox)
    label = np.zeros(grid.shape_vox, dtype=np.uint8)
    axes = np.ogrid[tuple(slice(n) for n in grid.shape_vox)]
    for klass, change in ((1, 60), (2, -60), (1, 60), (2, -60)):
        centre = [rng.integers(8, n - 8) for n in grid.shape_vox]
        ball = sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) < 7**2
        image[ball] = 128 + change + rng.normal(0, 8, int(ball.sum()))
        label[ball] = klass
    label[:4, :4, :4] = 4
    return np.clip(image, 0, 255).astype(np.uint8), label


def make_project(root: Path, crops: int = 4, folds: int = 2, testing: int = 1) -> Path:
    """Write images, labels and ``datalist.json``; half of the files are compressed."""
    entries = []
    for number in range(crops + testing):
        suffix = ".nii" if number % 2 else ".nii.gz"
        image, label = make_crop(number)
        paths = [f"images/crop{number}{suffix}", f"labels/crop{number}{suffix}"]
        for path, volume in zip(paths, (image, label), strict=True):
            write_volume(root / path, GRID, volume)
        entries.append(
            Entry(
                image=paths[0],
                label=paths[1],
                fold=number % folds if number < crops else None,
                annotated_classes=(1, 2),
                cellmap=CaseInfo(
                    dataset="jrc_tiny",
                    crop=f"crop{number}",
                    voxel_nm=GRID.voxel_nm,
                    translation_nm=GRID.translation_nm,
                ),
            )
        )
    datalist = Datalist(
        folder=root, table=TABLE, training=tuple(entries[:crops]), testing=tuple(entries[crops:])
    )
    write_datalist(root / "datalist.json", datalist)
    return root / "datalist.json"


def make_datastats(path: Path, **intensity: float) -> Path:
    """What the rules read of Auto3DSeg's report; axes x, y, z."""
    found = {
        "min": 0.0, "max": 255.0, "mean": 128.0, "stdev": 20.0, "median": 128.0,
        "percentile_00_5": 50.0, "percentile_99_5": 210.0,
    }  # fmt: skip
    stats = {
        "shape": {"median": [44.0, 40.0, 36.0]},
        "spacing": {"median": [8.0, 8.0, 8.0]},
        "intensity": found | intensity,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"stats_summary": {"image_stats": stats}}))
    return path


def make_bundles(root: Path, num_epochs: int = 2, **overrides: object) -> tuple[BundleRef, ...]:
    """A project of two folds with generated bundles, in folders with spaces."""
    options = GenerateOptions(num_fold=2, num_epochs=num_epochs, overrides={**TINY, **overrides})
    datalist = make_project(root / "nifti data")
    datastats = make_datastats(root / "work dir" / "datastats.yaml")
    return generate(datalist, datastats, root / "work dir", options).bundles


def pretend_training(
    bundle: BundleRef, seed: int, learnt: tuple[str, ...] = CLASSES, **params: object
) -> None:
    """Give a bundle random weights as its best model, without the time a training takes."""
    config = with_training_params(read_bundle_config(bundle.folder), params)
    torch.manual_seed(seed)
    model = Model(
        config_digest=config.digest,
        classes=list(config.classes),
        trained_classes=list(learnt),
        epoch=1,
        dice=dict.fromkeys(CLASSES, 0.5),
        model=build_network(config).state_dict(),
        training_params=config.training_params,
    )
    save(best_checkpoint(bundle.folder), model)
    score = 0.5 + seed / 100
    record = {"epoch": 1, "dice": {"mito": score}, "mean_dice": score}
    write_progress(best_checkpoint(bundle.folder).parent, [record])

"""Synthetic cases for the benchmark of the analysis: EM-like images, organelle-like labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from scipy import ndimage

from cellmap_core import nifti
from cellmap_core.grid import Grid, Shape

LABELS = 15


def write_cases(folder: Path, shape: Shape, count: int) -> Path:
    """Write ``count`` cases of 15 labels (background and 14 classes) and a plain datalist."""
    rows = []
    for number in range(count):
        random = np.random.default_rng(number)
        grid = Grid(shape_vox=shape, voxel_nm=(8.0,) * 3, translation_nm=(0.0,) * 3)
        row = {"image": f"image{number}.nii.gz", "label": f"label{number}.nii.gz", "fold": 0}
        nifti.write_volume(folder / row["image"], grid, _image(random, shape))
        nifti.write_volume(folder / row["label"], grid, _labels(random, shape))
        rows.append(row)
    path = folder / "datalist.json"
    path.write_text(json.dumps({"training": rows}))
    return path


def _image(random: np.random.Generator, shape: Shape) -> np.ndarray:
    """Texture that compresses as EM does."""
    noise = random.normal(size=shape).astype(np.float32)
    smooth = ndimage.gaussian_filter(noise, 2)
    return np.clip(130 + 25 * smooth / smooth.std() + 8 * noise, 1, 254).astype(np.uint8)


def _labels(random: np.random.Generator, shape: Shape) -> np.ndarray:
    """Blobs some 20 voxels wide, each of one class."""
    coarse = tuple(max(2, n // 20) for n in shape)
    fields = random.normal(size=(LABELS, *coarse)).astype(np.float32)
    factors = [n / c for n, c in zip(shape, coarse, strict=True)]
    best, label = np.full(shape, -np.inf, np.float32), np.zeros(shape, np.uint8)
    for number, field in enumerate(fields):
        here = ndimage.zoom(field, factors, order=1)[tuple(slice(n) for n in shape)]
        label[here > best] = number
        best = np.maximum(best, here)
    return label

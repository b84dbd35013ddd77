"""Synthetic crops for the benchmarks: EM-like texture and organelle-like labels, on disk.

The texture compresses as EM does (about three quarters of its bytes), each class is a smooth
blob pattern of a chosen volume fraction, and the EM is dark along its faces as along a
membrane; chunks without a label are not written, as in CellMap's own files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray
from scipy import ndimage

from cellmap_core.classes import CHALLENGE48
from cellmap_core.grid import Grid, Shape, Triple

RAW_CHUNKS, LABEL_CHUNKS = (64, 128, 128), (64, 64, 64)
#: Volume fractions of the classes that have voxels, as organelles have them: few are large.
FRACTIONS = (0.4, 0.2, 0.08, 0.05, 0.03, 0.02, 0.02, 0.01, 0.01, 0.005, 0.005, 0.002, 0.002, 0.001)
_TILE, _BLOB_TILE = 96, 240


class BenchCrop(NamedTuple):
    """One crop to time: its name, its labels' grid, the raw voxel size, its classes."""

    name: str
    shape_vox: Shape
    label_nm: Triple
    raw_nm: Triple
    listed: int
    filled: int


#: The common shapes of the challenge's 289 training crops.
TYPICAL = (
    BenchCrop("labels-2x-finer", (400, 400, 400), (4.0,) * 3, (8.0,) * 3, 48, 14),
    BenchCrop("few-classes", (400, 400, 400), (4.0,) * 3, (8.0,) * 3, 6, 6),
    BenchCrop("anisotropic", (306, 400, 400), (2.62, 2.0, 2.0), (5.24, 4.0, 4.0), 48, 14),
    BenchCrop("same-grid", (200, 200, 200), (8.0,) * 3, (8.0,) * 3, 48, 14),
)


def write_crops(root: Path, crops: tuple[BenchCrop, ...]) -> Path:
    """Write the crops, each a dataset with a datasplit of its own; return that of all."""
    lines = []
    for number, crop in enumerate(crops):
        store = root / crop.name / f"{crop.name}.zarr" / "recon-1"
        classes = CHALLENGE48[: crop.listed]
        start = tuple(3 * n for n in RAW_CHUNKS)
        labels = Grid(
            shape_vox=crop.shape_vox,
            voxel_nm=crop.label_nm,
            translation_nm=_triple(
                s * r - r / 2 + v / 2
                for s, r, v in zip(start, crop.raw_nm, crop.label_nm, strict=True)
            ),
        )
        raw = labels.resampled(crop.raw_nm)
        texture = {
            name: (fraction, seed)
            for seed, (name, fraction) in enumerate(zip(classes, FRACTIONS, strict=False))
            if seed < crop.filled
        }
        em = _with_membranes(em_tile(number), texture, labels, raw)
        _write_raw(store / "em/fibsem-uint8", raw, start, em)
        _write_labels(store / "labels/groundtruth/crop1", classes, texture, labels)
        labels_of = f"{store}/labels/groundtruth/crop1/[{','.join(classes)}]"
        lines.append(f'"train","{store}/em/fibsem-uint8","{labels_of}"')
        (root / crop.name / "datasplit.csv").write_text(lines[-1] + "\n")
    path = root / "datasplit.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def write_giant(root: Path, shape: Shape, label_nm: float, raw_nm: float) -> Path:
    """Write a crop of any size within seconds: every chunk is the same file, linked.

    To a reader it is as large and as full as its metadata say. Return the datasplit.
    """
    store = root / "giant" / "giant.zarr" / "recon-1"
    labels = Grid(
        shape_vox=shape, voxel_nm=(label_nm,) * 3, translation_nm=((label_nm - raw_nm) / 2,) * 3
    )
    raw = labels.resampled((raw_nm,) * 3)
    array = _array(
        store / "em/fibsem-uint8", raw.shape_vox, RAW_CHUNKS, raw.voxel_nm, raw.translation_nm, {}
    )
    _fill_linked(store / "em/fibsem-uint8/s0", array, _repeat(em_tile(0), RAW_CHUNKS))
    classes = CHALLENGE48[:3]
    _write_labels(store / "labels/groundtruth/crop1", classes, {}, labels)
    for seed, name in enumerate(classes):
        folder = store / "labels/groundtruth/crop1" / name / "s0"
        _fill_linked(folder, zarr.open_array(folder), _blob_tile(0.1, seed)[:64, :64, :64])
    path = root / "datasplit.csv"
    crop = f"{store}/labels/groundtruth/crop1/[{','.join(classes)}]"
    path.write_text(f'"train","{store}/em/fibsem-uint8","{crop}"\n')
    return path


def _fill_linked(folder: Path, array: Any, chunk: NDArray[np.uint8]) -> None:
    array[tuple(slice(0, n) for n in chunk.shape)] = chunk
    first = folder / "0/0/0"
    counts = [-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True)]
    for z, y in np.ndindex(counts[0], counts[1]):
        row = folder / f"{z}/{y}"
        row.mkdir(parents=True, exist_ok=True)
        for x in range(counts[2]):
            if not (row / str(x)).exists():
                os.link(first, row / str(x))


def _triple(values: Any) -> Triple:
    z, y, x = values
    return z, y, x


def _with_membranes(
    tile: NDArray[np.uint8], texture: Mapping[str, tuple[float, int]], labels: Grid, raw: Grid
) -> NDArray[np.uint8]:
    """The EM of a crop: texture, and dark where a class begins, as organelles have it."""
    em = _repeat(tile, raw.shape_vox)
    near = [
        np.minimum((np.arange(n) + 0.5) * r / v, m - 1).astype(int)
        for n, r, v, m in zip(
            raw.shape_vox, raw.voxel_nm, labels.voxel_nm, labels.shape_vox, strict=True
        )
    ]
    for fraction, seed in texture.values():
        inside = blobs(labels.shape_vox, fraction, seed)[np.ix_(*near)].astype(bool)
        em[inside & ~ndimage.binary_erosion(inside)] //= 2
    return em


def _write_raw(folder: Path, part: Grid, start: Shape, em: NDArray[np.uint8]) -> None:
    """A large sparse volume with EM only around the crop, as a download leaves it."""
    shape = tuple(s + n + 64 for s, n in zip(start, part.shape_vox, strict=True))
    array = _array(folder, shape, RAW_CHUNKS, part.voxel_nm, (0.0, 0.0, 0.0), {})
    array[tuple(slice(s, s + n) for s, n in zip(start, part.shape_vox, strict=True))] = em


def _write_labels(
    folder: Path, classes: tuple[str, ...], texture: Mapping[str, tuple[float, int]], grid: Grid
) -> None:
    group = zarr.create_group(folder, zarr_format=2, overwrite=True)
    group.attrs["cellmap"] = {"annotation": {"class_names": list(classes)}}
    encoding = {"absent": 0, "present": 1, "unknown": 255}
    for name in classes:
        kind = {"type": "semantic_segmentation", "encoding": encoding}
        note = {"cellmap": {"annotation": {"class_name": name, "annotation_type": kind}}}
        array = _array(
            folder / name, grid.shape_vox, LABEL_CHUNKS, grid.voxel_nm, grid.translation_nm, note
        )
        if name in texture:
            array[:] = blobs(grid.shape_vox, *texture[name])


def em_tile(seed: int) -> NDArray[np.uint8]:
    """A cube of EM-like texture."""
    random = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(random.normal(0, 1, (_TILE,) * 3), 1.5, mode="wrap")
    grey = 128 + 40 * smooth / smooth.std() + random.normal(0, 6, smooth.shape)
    return np.clip(grey, 1, 255).astype(np.uint8)


def blobs(shape: Shape, fraction: float, seed: int) -> NDArray[np.uint8]:
    """Smooth blobs that fill a fraction of the volume; repeated, since drawing them is slow."""
    return _repeat(_blob_tile(fraction, seed), shape)


@lru_cache
def _blob_tile(fraction: float, seed: int) -> NDArray[np.uint8]:
    random = np.random.default_rng(1000 + seed)
    coarse = ndimage.gaussian_filter(random.normal(0, 1, (_BLOB_TILE // 8,) * 3), 2.0, mode="wrap")
    smooth = ndimage.zoom(coarse, 8, order=1, mode="grid-wrap", grid_mode=True)
    return (smooth > np.quantile(smooth, 1 - fraction)).astype(np.uint8)


def _array(
    folder: Path, shape: Any, chunks: Any, voxel: Triple, translation: Triple, note: dict[str, Any]
) -> Any:
    group = zarr.create_group(folder, zarr_format=2, overwrite=True)
    array = group.create_array(
        "s0",
        shape=shape,
        chunks=chunks,
        dtype="u1",
        compressors=numcodecs.Zstd(3),
        fill_value=0,
        chunk_key_encoding={"name": "v2", "separator": "/"},
        config={"write_empty_chunks": False},
    )
    transforms = [
        {"type": "scale", "scale": list(voxel)},
        {"type": "translation", "translation": list(translation)},
    ]
    axes = [{"name": a, "type": "space", "unit": "nanometer"} for a in "zyx"]
    datasets = [{"path": "s0", "coordinateTransformations": transforms}]
    multiscale: Any = {"version": "0.4", "axes": axes, "datasets": datasets}
    group.attrs.update({**note, "multiscales": [multiscale]})
    array.attrs.update(note)
    return array


def _repeat(tile: NDArray[Any], shape: Shape) -> NDArray[Any]:
    times = [-(-n // t) for n, t in zip(shape, tile.shape, strict=True)]
    z, y, x = shape
    return np.tile(tile, times)[:z, :y, :x]

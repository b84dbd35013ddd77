"""A small synthetic CellMap data set: nested organelles in two made-up specimens.

Everything is drawn from one function of the physical position, so raw at 8 nm and labels at
4 nm agree wherever they are read right, and disagree visibly where they are not. Annotation
is partial, as in the real data: some crops list some classes, one has an unknown region.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from scipy import ndimage

from cellmap_core.grid import Grid, Shape, Triple
from cellmap_core.models import Frozen
from cellmap_core.provenance import atomic_path

#: Classes of the phantom, outermost first; each lies inside the one before it but ``mito``.
CLASSES = ("cell", "nuc", "nucleo", "mito")

_RAW_NM, _LABEL_NM = 8.0, 4.0
_LEVELS = 3
_CHUNK = 32
# Grey value of each tissue and of what lies around the cell.
_GREY = {"ecs": 200, "cell": 160, "nuc": 120, "nucleo": 80, "mito": 55}
_UNKNOWN = 255


class PhantomCrop(Frozen):
    """One crop of the phantom: its place in raw voxels and the classes annotated in it."""

    name: str
    split: str
    start_vox: Shape
    size_vox: Shape
    classes: tuple[str, ...] = CLASSES
    unknown_region: bool = False


class Specimen(Frozen):
    """One data set: its name, contrast and crops."""

    name: str
    seed: int
    contrast: float
    crops: tuple[PhantomCrop, ...]


#: Raw size of each specimen in voxels of 8 nm.
RAW_SHAPE: Shape = (80, 96, 112)

_S = 40
SPECIMENS = (
    Specimen(
        name="phantom-a",
        seed=1,
        contrast=1.0,
        crops=(
            PhantomCrop(name="crop1", split="train", start_vox=(8, 8, 8), size_vox=(_S, _S, _S)),
            PhantomCrop(
                name="crop2", split="train", start_vox=(32, 40, 56), size_vox=(_S, _S, _S),
                classes=("cell", "mito"),
            ),
            PhantomCrop(
                name="crop3", split="validate", start_vox=(16, 48, 16), size_vox=(_S, _S, _S)
            ),
        ),
    ),
    Specimen(
        name="phantom-b",
        seed=2,
        contrast=0.8,
        crops=(
            PhantomCrop(
                name="crop4", split="train", start_vox=(16, 32, 24), size_vox=(_S, _S, 48),
                unknown_region=True,
            ),
            PhantomCrop(
                name="crop5", split="train", start_vox=(36, 8, 60), size_vox=(_S, _S, _S),
                classes=("mito", "nuc"),
            ),
            PhantomCrop(
                name="crop6", split="validate", start_vox=(24, 24, 40), size_vox=(_S, _S, _S)
            ),
        ),
    ),
)  # fmt: skip


def write_phantom(
    folder: Path, specimens: Sequence[Specimen] = SPECIMENS, relative: bool = True
) -> Path:
    """Write the data set and its datasplit.

    Parameters
    ----------
    folder : Path
        Where ``<specimen>/<specimen>.zarr`` and ``datasplit.csv`` go.
    specimens : sequence of Specimen
        What to write.
    relative : bool
        Whether the datasplit's paths are relative to its folder.

    Returns
    -------
    Path
        The datasplit, written last.
    """
    rows = []
    for specimen in specimens:
        store = folder / specimen.name / f"{specimen.name}.zarr"
        raw = raw_grid()
        _write_raw(store, specimen, raw)
        for crop in specimen.crops:
            _write_crop(store, specimen, crop, raw)
            shown = store.relative_to(folder) if relative else store
            classes = ",".join(crop.classes)
            labels = f"recon-1/labels/groundtruth/{crop.name}/[{classes}]"
            rows.append([crop.split, shown, "recon-1/em/fibsem-uint8", shown, labels])
    datasplit = folder / "datasplit.csv"
    with atomic_path(datasplit) as temporary, temporary.open("w", newline="") as sink:
        csv.writer(sink, quoting=csv.QUOTE_ALL).writerows(rows)
    return datasplit


def raw_grid() -> Grid:
    """Grid of every specimen's raw s0: 8 nm, first voxel centre at 0."""
    return Grid(shape_vox=RAW_SHAPE, voxel_nm=(_RAW_NM,) * 3, translation_nm=(0.0, 0.0, 0.0))


def label_grid(crop: PhantomCrop) -> Grid:
    """Grid of a crop's labels s0: 4 nm over the same edges as its raw voxels."""
    stop = tuple(a + n for a, n in zip(crop.start_vox, crop.size_vox, strict=True))
    part = raw_grid().cut(crop.start_vox, (stop[0], stop[1], stop[2]))
    return part.resampled((_LABEL_NM,) * 3)


def tissue(specimen: Specimen, grid: Grid) -> dict[str, NDArray[np.bool_]]:
    """Where each class is, at the centres of a grid's voxels (z, y, x)."""
    z, y, x = (
        t + v * np.arange(n)
        for t, v, n in zip(grid.translation_nm, grid.voxel_nm, grid.shape_vox, strict=True)
    )
    position = np.meshgrid(z, y, x, indexing="ij", sparse=True)
    extent = np.array(raw_grid().box.size_nm)
    middle = extent / 2
    random = np.random.default_rng(specimen.seed)
    cell = _ellipsoid(position, middle, extent * 0.46)
    off_centre = middle - np.array([0, 0, 0.06 * extent[2]])
    nuc = _ellipsoid(position, off_centre, extent * (0.26, 0.22, 0.2))
    nucleo = _ellipsoid(position, middle - np.array([0, 0, 0.1 * extent[2]]), extent * 0.09)
    mito = np.zeros(grid.shape_vox, bool)
    for _ in range(90):
        centre = middle + random.uniform(-0.42, 0.42, 3) * extent
        mito |= _ellipsoid(position, centre, random.uniform(36, 72, 3))
    mito &= cell & ~_ellipsoid(position, off_centre, extent * 0.29)
    return {"cell": cell, "nuc": nuc & cell, "nucleo": nucleo & nuc & cell, "mito": mito}


def _ellipsoid(position: Sequence[Any], centre: Any, radius: Any) -> NDArray[np.bool_]:
    distance = sum(((p - c) / r) ** 2 for p, c, r in zip(position, centre, radius, strict=True))
    inside: NDArray[np.bool_] = np.asarray(distance) <= 1
    return inside


def _write_raw(store: Path, specimen: Specimen, grid: Grid) -> None:
    # Drawn at the labels' voxel size and averaged, as a detector would see it.
    fine = tissue(specimen, grid.resampled((_LABEL_NM,) * 3))
    grey = np.full(fine["cell"].shape, _GREY["ecs"], np.float32)
    for name in CLASSES:
        grey[fine[name]] = _GREY[name]
    grey = _halve(grey)
    random = np.random.default_rng(specimen.seed + 100)
    grey = 128 + (ndimage.gaussian_filter(grey, 0.6) - 128) * specimen.contrast
    raw = np.clip(grey + random.normal(0, 8, grey.shape), 1, 255).astype(np.uint8)
    attributes: dict[str, Any] = {}
    _write_pyramid(store / "recon-1/em/fibsem-uint8", raw, grid, attributes, downscale=_halve)


def _write_crop(store: Path, specimen: Specimen, crop: PhantomCrop, raw: Grid) -> None:
    grid = label_grid(crop)
    truth = tissue(specimen, grid)
    folder = store / "recon-1/labels/groundtruth" / crop.name
    group = zarr.create_group(folder, zarr_format=2, overwrite=True)
    annotation = {"version": "0.1.1", "name": crop.name, "class_names": list(crop.classes)}
    group.attrs["cellmap"] = {"annotation": annotation}
    for name in crop.classes:
        values = truth[name].astype(np.uint8)
        if crop.unknown_region:
            values[:, : grid.shape_vox[1] // 4] = _UNKNOWN
        _write_pyramid(folder / name, values, grid, _annotation(name), downscale=_every_second)


def _annotation(name: str) -> dict[str, Any]:
    encoding = {"absent": 0, "present": 1, "unknown": _UNKNOWN}
    kind = {"type": "semantic_segmentation", "encoding": encoding}
    return {"cellmap": {"annotation": {"class_name": name, "annotation_type": kind}}}


def _write_pyramid(
    folder: Path, values: NDArray[np.uint8], grid: Grid, attributes: dict[str, Any], downscale: Any
) -> None:
    group = zarr.create_group(folder, zarr_format=2, overwrite=True)
    datasets = []
    for level in range(_LEVELS):
        array = group.create_array(
            f"s{level}",
            shape=values.shape,
            chunks=(_CHUNK,) * 3,
            dtype=values.dtype,
            fill_value=0,
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )
        array[:] = values
        array.attrs.update(attributes)
        datasets.append(_dataset(f"s{level}", grid.voxel_nm, grid.translation_nm))
        doubled = grid.resampled(_doubled(grid.voxel_nm))
        values, grid = downscale(values), doubled
    axes = [{"name": a, "type": "space", "unit": "nanometer"} for a in "zyx"]
    multiscale: Any = {"version": "0.4", "name": folder.name, "axes": axes, "datasets": datasets}
    group.attrs.update({**attributes, "multiscales": [multiscale]})


def _dataset(path: str, voxel: Triple, translation: Triple) -> dict[str, Any]:
    return {
        "path": path,
        "coordinateTransformations": [
            {"type": "scale", "scale": list(voxel)},
            {"type": "translation", "translation": list(translation)},
        ],
    }


def _doubled(voxel: Triple) -> Triple:
    return voxel[0] * 2, voxel[1] * 2, voxel[2] * 2


def _halve(values: NDArray[Any]) -> NDArray[Any]:
    """Average of 2³ blocks (sizes are even), in the type given."""
    z, y, x = (n // 2 for n in values.shape)
    blocks = values[: z * 2, : y * 2, : x * 2].reshape(z, 2, y, 2, x, 2)
    return np.asarray(blocks.mean(axis=(1, 3, 5)), dtype=values.dtype)


def _every_second(values: NDArray[Any]) -> NDArray[Any]:
    return values[::2, ::2, ::2]

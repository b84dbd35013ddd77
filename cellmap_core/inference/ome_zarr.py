"""Predictions as OME-Zarr 0.4: one group a class, one array ``s0``, in nm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray

from cellmap_core.grid import Grid

LEVEL = "s0"
_CHUNK_VOX = 64


def create_masks(
    folder: Path, grid: Grid, classes: Sequence[str], attributes: Mapping[str, Any]
) -> dict[str, zarr.Array[Any]]:
    """Create a zarr v2 group with an empty mask for each class.

    Parameters
    ----------
    folder : Path
        The store, ``<case>.zarr``.
    grid : Grid
        Shape, voxel size and translation (of the first voxel's centre) in nm.
    classes : sequence of str
        A group ``<class>`` with an array ``s0`` of uint8 for each.
    attributes : mapping
        Attributes of the root group.

    Returns
    -------
    dict
        Class → array to fill (z, y, x): 1 where the class is. Chunks of zeros are not written.
    """
    root = zarr.open_group(folder, mode="w", zarr_format=2, attributes=dict(attributes))
    arrays = {}
    for name in classes:
        group = root.create_group(name, attributes={"multiscales": [multiscale(name, grid)]})
        arrays[name] = group.create_array(
            LEVEL,
            shape=grid.shape_vox,
            chunks=tuple(min(_CHUNK_VOX, n) for n in grid.shape_vox),
            dtype=np.uint8,
            fill_value=0,
            compressors=numcodecs.Zstd(level=3),
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )
    return arrays


def multiscale(name: str, grid: Grid) -> dict[str, Any]:
    """OME-NGFF 0.4 metadata of one level on a grid."""
    return {
        "version": "0.4",
        "name": name,
        "axes": [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"],
        "datasets": [
            {
                "path": LEVEL,
                "coordinateTransformations": [
                    {"type": "scale", "scale": list(grid.voxel_nm)},
                    {"type": "translation", "translation": list(grid.translation_nm)},
                ],
            }
        ],
        "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0, 1.0]}],
    }


def read_mask(folder: Path, name: str) -> NDArray[np.uint8]:
    """The mask (z, y, x) of one class of a written prediction."""
    array = zarr.open_array(folder / name / LEVEL, mode="r")
    return np.asarray(array[:], dtype=np.uint8)

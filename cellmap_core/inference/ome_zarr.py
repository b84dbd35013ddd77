"""Predictions as OME-Zarr 0.4: one group a class, one array ``s0``, in nm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray

from cellmap_core.image_geometry import ArrayOrder, ImageGeometry

LEVEL = "s0"
_CHUNK_VOX = 64


def create_masks(
    folder: Path, geometry: ImageGeometry, classes: Sequence[str], attributes: Mapping[str, Any]
) -> dict[str, zarr.Array[Any]]:
    """Create a zarr v2 group with an empty mask for each class.

    OME-Zarr 0.4 has no rotation. Arrays are in ascending world axes z, y, x (see
    `ImageGeometry.order`); those of an oblique image are in the axes of its file, with their
    scale and without a translation. The root's attribute ``image`` has the full affine.

    Parameters
    ----------
    folder : Path
        The store, ``<case>.zarr``.
    geometry : ImageGeometry
        Of the image.
    classes : sequence of str
        A group ``<class>`` with an array ``s0`` of uint8 for each.
    attributes : mapping
        Attributes of the root group.

    Returns
    -------
    dict
        Class → array to fill (z, y, x): 1 where the class is. Chunks of zeros are not written.
    """
    order = geometry.order()
    about = {**attributes, "image": _placement(geometry)}
    root = zarr.open_group(folder, mode="w", zarr_format=2, attributes=about)
    arrays = {}
    for name in classes:
        group = root.create_group(name, attributes={"multiscales": [multiscale(name, order)]})
        arrays[name] = group.create_array(
            LEVEL,
            shape=order.grid.shape_vox,
            chunks=tuple(min(_CHUNK_VOX, n) for n in order.grid.shape_vox),
            dtype=np.uint8,
            fill_value=0,
            compressors=numcodecs.Zstd(level=3),
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )
    return arrays


def multiscale(name: str, order: ArrayOrder) -> dict[str, Any]:
    """OME-NGFF 0.4 metadata of one level; without a translation where the image is oblique."""
    steps: list[dict[str, Any]] = [{"type": "scale", "scale": list(order.grid.voxel_nm)}]
    if not order.oblique:
        steps.append({"type": "translation", "translation": list(order.grid.translation_nm)})
    return {
        "version": "0.4",
        "name": name,
        "axes": [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"],
        "datasets": [
            {"path": LEVEL, "coordinateTransformations": steps},
        ],
        "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0, 1.0]}],
    }


def _placement(geometry: ImageGeometry) -> dict[str, Any]:
    """Return the affine of the image, and how its axes were reordered for the store."""
    order = geometry.order()
    return {
        "affine_nm": geometry.matrix_nm.tolist(),
        "affine_maps": "index (i, j, k) of the image file to world x, y, z of NIfTI (RAS+) in nm",
        "shape_ijk": list(geometry.shape_vox[::-1]),
        "directions": geometry.directions,
        "oblique": order.oblique,
        "arrays": "axes k, j, i of the image file" if order.oblique else "world axes z, y, x",
    }


def read_mask(folder: Path, name: str) -> NDArray[np.uint8]:
    """The mask (z, y, x) of one class of a written prediction."""
    array = zarr.open_array(folder / name / LEVEL, mode="r")
    return np.asarray(array[:], dtype=np.uint8)

"""What people write to convert a crop: zarr-python, scipy's zoom and nibabel.

Image and labels are paired in nanometres, as they must be; else the peer would do less work.
Each class is read whole, zoomed to the target by nearest neighbour and burnt into one volume.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import zarr
from scipy import ndimage

from cellmap_core.datasplit import CropRef


def convert_crop(ref: CropRef, target_nm: float, output: Path) -> int:
    """Convert one crop; return the number of output voxels."""
    first = zarr.open_group(f"{ref.labels}/{ref.classes[0]}", mode="r")
    voxel, origin = _scale_and_translation(first)
    raw_group = zarr.open_group(ref.raw, mode="r")
    raw_voxel, raw_origin = _scale_and_translation(raw_group)
    extent = voxel * first["s0"].shape
    start = np.rint((origin - voxel / 2 - raw_origin + raw_voxel / 2) / raw_voxel).astype(int)
    stop = start + np.rint(extent / raw_voxel).astype(int)
    part = raw_group["s0"][tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    shape = np.rint(extent / target_nm).astype(int)
    image = part if part.shape == tuple(shape) else ndimage.zoom(part, shape / part.shape, order=1)
    label = np.zeros(shape, np.uint8)
    for number, name in enumerate(ref.classes, start=1):
        values = zarr.open_group(f"{ref.labels}/{name}", mode="r")["s0"][:]
        if values.shape != tuple(shape):
            values = ndimage.zoom(values, shape / values.shape, order=0)
        label[values == 1] = number
    affine = np.diag([target_nm, target_nm, target_nm, 1.0])
    for folder, volume in (("images", image), ("labels", label)):
        (output / folder).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(volume.T, affine), output / folder / f"{ref.stem}.nii.gz")
    return int(image.size)


def _scale_and_translation(group: zarr.Group) -> tuple[np.ndarray, np.ndarray]:
    transforms = group.attrs["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    return np.array(transforms[0]["scale"]), np.array(transforms[1]["translation"])

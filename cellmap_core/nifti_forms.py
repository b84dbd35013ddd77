"""Which affine of a NIfTI header counts: sform, qform or pixdim.

The order is that of nibabel and of the NIfTI standard:

1. the sform, where its code is above 0 and its matrix has an inverse;
2. else the qform, where its code is above 0 and its quaternion and pixdim are valid;
3. else pixdim along the axes, with the first voxel at 0 (the standard's method 1).

Where a form that counts less says something else by more than a tenth of a voxel at a corner,
the file is named in a warning. Where both forms are set and one mirrors the other, or their
voxel sizes differ by more than half, the file is refused: nothing tells which one is wrong.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from cellmap_core.errors import NiftiError
from cellmap_core.grid import Shape
from cellmap_core.image_geometry import (
    CORNER_TOLERANCE_VOX,
    ImageGeometry,
    as_affine,
    is_usable,
)

logger = logging.getLogger(__name__)

#: Header fields that place the voxels; they have the same names in NIfTI-1 and NIfTI-2.
PLACING_FIELDS = (
    "qform_code",
    "sform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "srow_x",
    "srow_y",
    "srow_z",
    "xyzt_units",
)
# Forms whose voxel sizes differ by more than this factor do not describe the same image.
_MAX_SIZE_RATIO = 1.5
# By NIfTI's codes of metres and micrometres. Millimetres count as the unit of the project, nm:
# most tools write that code, whatever the numbers mean.
_UNITS_NM = {1: 1e9, 3: 1e3}


def geometry_of(header: Any, shape_vox: Shape, path: Path) -> ImageGeometry:
    """Return shape and affine of a NIfTI header, by the rule of this module.

    Parameters
    ----------
    header : Nifti1Header or Nifti2Header
        As read.
    shape_vox : tuple of int
        Shape of the array (k, j, i).
    path : Path
        The file, for messages.

    Raises
    ------
    NiftiError
        There is no voxel size, or sform and qform exclude each other.
    """
    unit = _UNITS_NM.get(int(header["xyzt_units"]) & 7, 1.0)

    def made(matrix: NDArray[np.float64]) -> ImageGeometry:
        return ImageGeometry(shape_vox=shape_vox, affine=as_affine(matrix), unit_nm=unit)

    sform, qform = _form(header, "sform", path), _form(header, "qform", path)
    if sform is not None:
        counts = made(sform)
        if qform is not None:
            _compare_forms(counts, made(qform), path)
        else:
            _compare_sizes(counts, header, path)
        return counts
    if qform is not None:
        return made(qform)
    size = np.array(header["pixdim"][1:4], dtype=np.float64)
    if not (np.isfinite(size).all() and (size > 0).all()):
        raise NiftiError(
            f"{path} has no usable sform or qform, and the voxel size {size.tolist()} in pixdim",
            "an affine with an inverse, or voxel sizes above 0",
            "correct the header",
        )
    _warn(path, "has no usable sform or qform; pixdim counts, with the first voxel at 0")
    return made(np.diag([*size, 1.0]))


def _form(header: Any, name: str, path: Path) -> NDArray[np.float64] | None:
    """One form of a header; None where it is not set or cannot be used."""
    if int(header[f"{name}_code"]) <= 0:
        return None
    header = header.copy()
    if header["pixdim"][0] not in (-1, 1):
        # The standard's rule for a missing handedness of the quaternion.
        header["pixdim"][0] = 1
    try:
        matrix = getattr(header, f"get_{name}")()
    except (nib.spatialimages.HeaderDataError, ValueError):
        matrix = None
    if matrix is None or not is_usable(np.asarray(matrix, dtype=np.float64)):
        _warn(path, f"has the {name} code {int(header[f'{name}_code'])}, but its {name} is invalid")
        return None
    return np.asarray(matrix, dtype=np.float64)


def _compare_forms(sform: ImageGeometry, qform: ImageGeometry, path: Path) -> None:
    """Name a file whose two forms differ; refuse it where they cannot both be meant."""
    mirrored = np.linalg.det(sform.matrix[:3, :3]) * np.linalg.det(qform.matrix[:3, :3]) < 0
    ratios = np.array(sform.voxel_nm) / np.array(qform.voxel_nm)
    if mirrored or max(ratios.max(), 1 / ratios.min()) > _MAX_SIZE_RATIO:
        how = "one mirrors the other" if mirrored else "their voxel sizes differ"
        raise NiftiError(
            f"{path} has an sform and a qform that exclude each other ({how}); sform: {sform}; "
            f"qform: {qform}",
            "one position for each voxel",
            "write the right one into both, or set the code of the wrong one to 0",
        )
    if (apart := qform.apart_vox(sform)) > CORNER_TOLERANCE_VOX:
        _warn(path, f"has an sform and a qform that lie {apart:.3g} voxels apart; the sform counts")


def _compare_sizes(sform: ImageGeometry, header: Any, path: Path) -> None:
    size = np.array(header["pixdim"][1:4], dtype=np.float64)
    own = np.linalg.norm(sform.matrix[:3, :3], axis=0)
    if (np.abs(size - own) * sform.shape_vox[::-1] > CORNER_TOLERANCE_VOX * own).any():
        _warn(
            path,
            f"has the voxel size {own.round(6).tolist()} by its sform and {size.tolist()} by "
            "pixdim; the sform counts",
        )


# A header is read many times in a run; a process says once what is odd about a file.
@lru_cache(maxsize=4096)
def _warn(path: Path, what: str) -> None:
    logger.warning("%s %s", path, what)

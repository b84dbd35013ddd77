"""NIfTI files, written and read slab by slab.

Arrays are z, y, x in memory and x, y, z in the file; NIfTI stores x fastest, so a C-ordered
z, y, x slab is the file's own byte order and a volume streams along z in flat memory. In files
of ours the affine holds the voxel size and the centre of the first voxel in nm, with axes along
x, y and z. NIfTI has no code for nanometres: the unit field says unknown and ``descrip`` says nm.
Files of others may have any affine; their arrays are in the axis order of the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import nibabel as nib
import numpy as np
from isal import igzip
from numpy.typing import NDArray

from cellmap_core.errors import NiftiError
from cellmap_core.grid import Grid
from cellmap_core.image_geometry import ImageGeometry, check_one_grid
from cellmap_core.nifti_forms import PLACING_FIELDS
from cellmap_core.nifti_header import read_header
from cellmap_core.provenance import atomic_path

DESCRIPTION = b"lengths in nm; first voxel centre in the affine"

# NIfTI-1 counts voxels along an axis in 16 bits with a sign.
_NIFTI1_LONGEST = 32767
# igzip level 1 is within 5 % of its level 2 in size on EM and a third faster.
_DEFLATE_LEVEL = 1
# Streaming a volume in slabs of about this many bytes keeps memory flat.
_SLAB_BYTES = 32 << 20


def storable(dtype: np.dtype[Any], name: str) -> np.dtype[Any]:
    """The type in which NIfTI holds voxels of ``dtype`` without loss.

    Raises
    ------
    NiftiError
        It has none.
    """
    if dtype == np.float16:
        return np.dtype(np.float32)
    if dtype.kind not in "uif" or dtype.itemsize > 8:
        raise NiftiError(f"{name} holds {dtype}", "integers or floats of up to 64 bits")
    return dtype.newbyteorder("=")


def suffix(compression: str) -> str:
    """File name suffix of ``gzip`` or ``none``."""
    return ".nii.gz" if compression == "gzip" else ".nii"


def write_slabs(
    path: Path,
    grid: Grid | ImageGeometry,
    dtype: np.dtype[Any],
    slabs: Iterable[NDArray[Any]],
    like: Path | None = None,
) -> None:
    """Write a volume from consecutive z slabs, whole or not at all.

    NIfTI-1 holds up to 32,767 voxels on an axis; a longer volume is written as NIfTI-2.

    Parameters
    ----------
    path : Path
        ``.nii`` or ``.nii.gz``.
    grid : Grid or ImageGeometry
        Shape and place.
    dtype : numpy.dtype
        Type in the file; slabs are cast to it.
    slabs : iterable of ndarray
        Shape (n, y, x) each, together ``grid.shape_vox``, in the order of z.
    like : Path, optional
        Whose sform, qform, pixdim, unit and NIfTI version the header takes over, so that every
        program places both files alike.

    Raises
    ------
    NiftiError
        The slabs are not together what the grid says.
    """
    geometry = ImageGeometry.of_grid(grid) if isinstance(grid, Grid) else grid
    with atomic_path(path) as temporary, _writer(temporary) as sink:
        header = _new_header(geometry, dtype, like)
        sink.write(header.binaryblock + b"\0\0\0\0")
        depth = 0
        for slab in slabs:
            if slab.shape[1:] != grid.shape_vox[1:]:
                raise NiftiError(
                    f"{path}: a slab of shape {slab.shape}", f"(n, y, x) of {grid.shape_vox}"
                )
            depth += slab.shape[0]
            sink.write(np.ascontiguousarray(slab, dtype=dtype.newbyteorder("<")).data)
        if depth != grid.shape_vox[0]:
            raise NiftiError(f"{path}: {depth} sections written", f"{grid.shape_vox[0]}")


def write_volume(path: Path, grid: Grid, volume: NDArray[Any]) -> None:
    """Write a volume held in memory (z, y, x)."""
    write_slabs(path, grid, volume.dtype, [volume])


def read_geometry(path: Path) -> ImageGeometry:
    """Return shape of a channel and affine, from a file's header alone."""
    return read_header(path).geometry


def read_grid(path: Path) -> Grid:
    """Return shape, voxel size and translation in nm of a file whose axes are x, y, z.

    Raises
    ------
    NiftiError
        The axes point elsewhere: such a file has no translation that its array starts at.
    """
    geometry = read_geometry(path)
    order = geometry.order()
    if order.oblique or order.axes != (0, 1, 2) or any(order.flipped):
        raise NiftiError(
            f"{path} has {geometry}", "axes along x, y and z, as this project writes them"
        )
    return order.grid


def common_geometry(image: Path, label: Path | None) -> ImageGeometry:
    """Return the geometry of an image, after a check that its label, if any, has the same one.

    Raises
    ------
    GeometryError
        They are not one grid; see `check_one_grid`.
    NiftiError
        A header cannot be read.
    """
    ours = read_geometry(image)
    if label is not None:
        check_one_grid(ours, read_geometry(label), str(image), str(label))
    return ours


def read_dtype(path: Path) -> np.dtype[Any]:
    """Type of the voxels as they are read, from a file's header alone."""
    return read_header(path).dtype


def read_channels(path: Path) -> int:
    """Number of channels of a file, from its header alone: 1 of a plain volume."""
    return read_header(path).channels


def iter_slabs(
    path: Path, slab_bytes: int = _SLAB_BYTES, channel: int | None = None
) -> Iterator[NDArray[Any]]:
    """Read a volume in z slabs (n, y, x), without ever holding it whole.

    Parameters
    ----------
    path : Path
        Any file that `read_header` reads.
    slab_bytes : int
        A slab has about this many.
    channel : int or None
        Which channel of a file of several (NIfTI's fourth axis, the slowest in the file).

    Raises
    ------
    NiftiError
        The file is missing, truncated, of another format, or has several channels of which
        none is chosen.
    """
    voxels = read_header(path)
    z, y, x = voxels.shape(channel)
    section = y * x * voxels.stored.itemsize
    thickness = max(1, slab_bytes // section)
    with voxels.opened() as source:
        source.seek(voxels.offset + (channel or 0) * z * section)
        for start in range(0, z, thickness):
            n = min(thickness, z - start)
            data = source.read(n * section)
            if len(data) != n * section:
                raise NiftiError(
                    f"{path} ends after {start} of {z} sections", "a whole file", "convert it again"
                )
            yield voxels.scaled(np.frombuffer(data, dtype=voxels.stored).reshape(n, y, x))


def read_volume(path: Path) -> NDArray[Any]:
    """The volume (z, y, x): mapped from disk where it is stored plainly, else in memory."""
    voxels = read_header(path)
    shape = voxels.shape()
    if not voxels.mappable:
        volume = np.empty(shape, dtype=voxels.dtype)
        fill(volume, path)
        return volume
    try:
        return np.memmap(
            voxels.data, dtype=voxels.stored, mode="r", offset=voxels.offset, shape=shape
        )
    except ValueError as error:
        raise NiftiError(
            f"{path} ends too early ({error})", f"voxels of shape {shape}", "convert the crop again"
        ) from error


def fill(volume: NDArray[Any], path: Path) -> None:
    """Read the voxels of a file into an array (z, y, x), slab by slab."""
    start = 0
    for slab in iter_slabs(path):
        volume[start : start + len(slab)] = slab
        start += len(slab)


def _new_header(geometry: ImageGeometry, dtype: np.dtype[Any], like: Path | None) -> Any:
    """A header for voxels on a grid, or with the placing fields of another file."""
    source = None if like is None else read_header(like).header
    long = max(geometry.shape_vox) > _NIFTI1_LONGEST or isinstance(source, nib.Nifti2Header)
    header = nib.Nifti2Header() if long else nib.Nifti1Header()
    header.set_data_shape(geometry.shape_vox[::-1])
    header.set_data_dtype(dtype)
    header["vox_offset"] = header.single_vox_offset
    if isinstance(source, nib.Nifti1Header):
        for field in PLACING_FIELDS:
            header[field] = source[field]
        header["pixdim"][:4] = source["pixdim"][:4]
        header["descrip"] = source["descrip"]
        return header
    header.set_sform(geometry.matrix, code=1)
    header.set_qform(geometry.matrix, code=1)
    header["xyzt_units"] = 0
    header["descrip"] = DESCRIPTION
    return header


@contextmanager
def _writer(path: Path) -> Iterator[IO[bytes]]:
    with path.open("wb") as raw:
        if path.suffix != ".gz":
            yield raw
            return
        # No name and no time in the gzip header: the same crop gives the same bytes.
        with igzip.IGzipFile("", "wb", _DEFLATE_LEVEL, raw, 0) as packed:
            yield cast("IO[bytes]", packed)

"""NIfTI-1 files, written and read slab by slab.

Arrays are z, y, x in memory and x, y, z in the file; NIfTI stores x fastest, so a C-ordered
z, y, x slab is the file's own byte order and a volume streams along z in flat memory. The
affine holds the voxel size and the centre of the first voxel in nm. NIfTI has no code for
nanometres: the unit field says unknown and ``descrip`` says nm.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from numpy.typing import NDArray

from cellmap_core.errors import NiftiError
from cellmap_core.grid import Grid
from cellmap_core.provenance import atomic_path

DESCRIPTION = b"lengths in nm; first voxel centre in the affine"

_HEADER_BYTES = 352
# igzip level 1 is within 5 % of its level 2 in size on EM and a third faster.
_DEFLATE_LEVEL = 1
# isal ships no types for its error class.
_DEFLATE_ERROR = cast("type[Exception]", isal_zlib.error)
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
    path: Path, grid: Grid, dtype: np.dtype[Any], slabs: Iterable[NDArray[Any]]
) -> None:
    """Write a volume from consecutive z slabs, whole or not at all.

    Parameters
    ----------
    path : Path
        ``.nii`` or ``.nii.gz``.
    grid : Grid
        Shape, voxel size and translation in nm.
    dtype : numpy.dtype
        Type in the file; slabs are cast to it.
    slabs : iterable of ndarray
        Shape (n, y, x) each, together ``grid.shape_vox``, in the order of z.

    Raises
    ------
    NiftiError
        The slabs are not together what the grid says.
    """
    with atomic_path(path) as temporary, _writer(temporary) as sink:
        header = _header(grid, dtype)
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


def read_grid(path: Path) -> Grid:
    """Shape of a channel, voxel size and translation in nm, from a file's header alone."""
    header, affine, proxy = _load_header(path)
    shape = _voxels(path, header, affine, proxy).shape(channel=0)
    voxel = np.abs(np.linalg.norm(affine[:3, :3], axis=0))
    return Grid(
        shape_vox=shape,
        voxel_nm=(float(voxel[2]), float(voxel[1]), float(voxel[0])),
        translation_nm=(float(affine[2, 3]), float(affine[1, 3]), float(affine[0, 3])),
    )


def read_dtype(path: Path) -> np.dtype[Any]:
    """Type of the voxels as they are read, from a file's header alone."""
    return _voxels(path, *_load_header(path)).dtype


def read_directions(path: Path) -> str:
    """Where the axes x, y, z of the file point to, as three letters (``RAS``)."""
    return "".join(map(str, nib.aff2axcodes(_load_header(path)[1])))


def read_channels(path: Path) -> int:
    """Number of channels of a file, from its header alone: 1 of a plain volume."""
    return _voxels(path, *_load_header(path)).channels


def iter_slabs(
    path: Path, slab_bytes: int = _SLAB_BYTES, channel: int | None = None
) -> Iterator[NDArray[Any]]:
    """Read a volume in z slabs (n, y, x), without ever holding it whole.

    Parameters
    ----------
    path : Path
        ``.nii`` or ``.nii.gz``.
    slab_bytes : int
        A slab has about this many.
    channel : int or None
        Which channel of a file of several (NIfTI's fourth axis, the slowest in the file).

    Raises
    ------
    NiftiError
        The file is missing, truncated, not a NIfTI-1 volume, or has several channels of which
        none is chosen.
    """
    voxels = _voxels(path, *_load_header(path))
    z, y, x = voxels.shape(channel)
    section = y * x * voxels.stored.itemsize
    thickness = max(1, slab_bytes // section)
    with _reader(path) as source:
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
    voxels = _voxels(path, *_load_header(path))
    shape = voxels.shape()
    if path.suffix == ".gz" or voxels.scale is not None:
        volume = np.empty(shape, dtype=voxels.dtype)
        start = 0
        for slab in iter_slabs(path):
            volume[start : start + len(slab)] = slab
            start += len(slab)
        return volume
    try:
        return np.memmap(path, dtype=voxels.stored, mode="r", offset=voxels.offset, shape=shape)
    except ValueError as error:
        raise NiftiError(
            f"{path} ends too early ({error})", f"voxels of shape {shape}", "convert the crop again"
        ) from error


def _header(grid: Grid, dtype: np.dtype[Any]) -> Any:
    header = nib.Nifti1Header()
    z, y, x = grid.shape_vox
    header.set_data_shape((x, y, z))
    header.set_data_dtype(dtype)
    affine = np.diag([*grid.voxel_nm[::-1], 1.0])
    affine[:3, 3] = grid.translation_nm[::-1]
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1)
    header["xyzt_units"] = 0
    header["descrip"] = DESCRIPTION
    header["vox_offset"] = _HEADER_BYTES
    header["magic"] = b"n+1"
    return header


def _load_header(path: Path) -> tuple[Any, NDArray[np.float64], Any]:
    """Header, affine and what nibabel knows of the voxels."""
    if not path.is_file():
        raise NiftiError(f"no file {path}", "a .nii or .nii.gz file", "convert the crop again")
    try:
        image = cast("Any", nib.load(path))
    except (
        nib.filebasedimages.ImageFileError,
        nib.spatialimages.HeaderDataError,
        OSError,
        EOFError,
        zlib.error,
    ) as error:
        raise NiftiError(
            f"{path} is not readable NIfTI ({error})", "a whole NIfTI-1 file"
        ) from error
    return image.header, image.affine, image.dataobj


@dataclass(frozen=True)
class _Voxels:
    """How the voxels of a file are stored.

    Attributes
    ----------
    path : Path
        The file.
    axes : tuple of int
        Voxels along x, y, z and what is behind them.
    stored : numpy.dtype
        Type in the file.
    scale : tuple of float or None
        Slope and intercept that the stored numbers are to be taken by, where there are any.
    offset : int
        Of the first voxel in bytes.
    """

    path: Path
    axes: tuple[int, ...]
    stored: np.dtype[Any]
    scale: tuple[float, float] | None
    offset: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels as they are read."""
        return self.stored if self.scale is None else np.dtype(np.float32)

    @property
    def channels(self) -> int:
        """What is behind x, y and z: a time axis of 1, the channels."""
        return math.prod(self.axes[3:])

    def shape(self, channel: int | None = None) -> tuple[int, int, int]:
        """Shape (z, y, x) of a channel; a file of several needs one chosen."""
        if len(self.axes) < 3 or (channel is None and self.channels != 1):
            raise NiftiError(f"{self.path} has shape {self.axes}", "three axes x, y, z")
        return self.axes[2], self.axes[1], self.axes[0]

    def scaled(self, values: NDArray[Any]) -> NDArray[Any]:
        """Stored numbers as voxels."""
        if self.scale is None:
            return values
        slope, intercept = self.scale
        return (values.astype(np.float64) * slope + intercept).astype(np.float32)


def _voxels(path: Path, header: Any, _affine: Any, proxy: Any) -> _Voxels:
    stored = header.get_data_dtype()
    if stored.kind not in "uif":
        raise NiftiError(f"{path} holds {stored}", "integers or floats")
    scale = (float(proxy.slope), float(proxy.inter))
    axes = tuple(int(n) for n in header.get_data_shape())
    return _Voxels(path, axes, stored, None if scale == (1, 0) else scale, int(proxy.offset))


@contextmanager
def _writer(path: Path) -> Iterator[IO[bytes]]:
    with path.open("wb") as raw:
        if path.suffix != ".gz":
            yield raw
            return
        # No name and no time in the gzip header: the same crop gives the same bytes.
        with igzip.IGzipFile("", "wb", _DEFLATE_LEVEL, raw, 0) as packed:
            yield cast("IO[bytes]", packed)


@contextmanager
def _reader(path: Path) -> Iterator[IO[bytes]]:
    try:
        with path.open("rb") as raw:
            if path.suffix != ".gz":
                yield raw
                return
            with igzip.IGzipFile(fileobj=raw, mode="rb") as packed:
                yield cast("IO[bytes]", packed)
    except (igzip.BadGzipFile, _DEFLATE_ERROR, EOFError) as error:
        raise NiftiError(
            f"{path} is damaged ({error})", "a whole .nii.gz file", "convert it again"
        ) from error

"""What a volume file is, by its content: compression, format, header and voxels.

Names of files say little: Windows tools write ``.NII.GZ``, and plain files are called
``.nii.gz``. Single NIfTI-1 and NIfTI-2 files, pairs of ``.hdr`` and ``.img``, and FreeSurfer's
MGH files are read, each plain, by gzip or by bzip2. Everything else is refused by its name.
"""

from __future__ import annotations

import bz2
import io
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, cast

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.freesurfer.mghformat import MGHHeader
from numpy.typing import NDArray

from cellmap_core.errors import NiftiError, may_pass
from cellmap_core.image_geometry import ImageGeometry, as_affine
from cellmap_core.nifti_forms import geometry_of
from cellmap_core.nifti_names import header_and_voxels

# isal ships no types for its error class.
_DEFLATE_ERROR = cast("type[Exception]", isal_zlib.error)
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2"}
# Formats that users take for NIfTI; a magic number at an offset tells them.
_OTHER_FORMATS = (
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\xfd7zXZ\0", "an xz file"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file"),
    (0, b"II*\0", "a TIFF file"),
    (0, b"MM\0*", "a TIFF file"),
    (0, b"NRRD", "an NRRD file"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"ObjectType", "a MetaImage file"),
    (128, b"DICM", "a DICOM file"),
)
_WANTED = "NIfTI (.nii, .nii.gz, .hdr with .img) or MGH (.mgz)"
_NIFTI1_BYTES, _NIFTI2_BYTES = 348, 540


@dataclass(frozen=True)
class Stored:
    """How the voxels of a file are stored.

    Attributes
    ----------
    path, data : Path
        The file as it is named, and the file that holds the voxels (of a pair, the ``.img``).
    header : object
        nibabel's header.
    axes : tuple of int
        Voxels along the file's axes i, j, k and further ones.
    stored : numpy.dtype
        Type in the file.
    scale : tuple of float or None
        Slope and intercept that stored numbers are multiplied by and added to, where not 1 and 0.
    offset : int
        Position of the first voxel in bytes, after decompression.
    compression : str or None
        ``gzip``, ``bzip2`` or None.
    """

    path: Path
    data: Path
    header: Any
    axes: tuple[int, ...]
    stored: np.dtype[Any]
    scale: tuple[float, float] | None
    offset: int
    compression: str | None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels as they are read."""
        return self.stored if self.scale is None else np.dtype(np.float32)

    @property
    def channels(self) -> int:
        """Number of volumes along the axes behind the third: times and channels."""
        return math.prod(self.axes[3:])

    @property
    def mappable(self) -> bool:
        """Whether the bytes of the file are the voxels as they are read."""
        return self.compression is None and self.scale is None

    @cached_property
    def geometry(self) -> ImageGeometry:
        """Shape of a channel and affine."""
        shape = self.shape(channel=0)
        if isinstance(self.header, MGHHeader):
            affine = as_affine(self.header.get_affine())
            return ImageGeometry(shape_vox=shape, affine=affine)
        return geometry_of(self.header, shape, self.path)

    def shape(self, channel: int | None = None) -> tuple[int, int, int]:
        """Shape (z, y, x) of a channel; a file of several needs one chosen."""
        if len(self.axes) < 3 or min(self.axes) < 1 or (channel is None and self.channels != 1):
            raise NiftiError(f"{self.path} has shape {self.axes}", "three axes x, y, z")
        return self.axes[2], self.axes[1], self.axes[0]

    def scaled(self, values: NDArray[Any]) -> NDArray[Any]:
        """Stored numbers as voxels."""
        if self.scale is None:
            return values
        slope, intercept = self.scale
        return (values.astype(np.float64) * slope + intercept).astype(np.float32)

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """Yield the file of the voxels, decompressed as it is read."""
        with _opened(self.data, self.compression) as source:
            yield source


def read_header(path: Path) -> Stored:
    """Read what a file says of its voxels, without the voxels.

    Raises
    ------
    NiftiError
        The file is missing, of another format, or its header cannot be used.
    """
    if not path.is_file():
        raise NiftiError(f"no file {path}", "a .nii or .nii.gz file", "convert the crop again")
    first, data = header_and_voxels(path)
    try:
        compression = _compression(first)
        with _opened(first, compression) as source:
            start = source.read(_NIFTI2_BYTES)
        header = _parse(start, path)
        if data != first:
            compression = _compression_of_voxels(data, header)
        return _stored(path, data, header, compression)
    except OSError as error:
        if may_pass(error):
            raise
        raise NiftiError(f"{path} cannot be read ({error})", "a file that may be read") from error


def _compression(path: Path) -> str | None:
    with path.open("rb") as source:
        start = source.read(4)
    return next((name for magic, name in _COMPRESSIONS.items() if start.startswith(magic)), None)


def _compression_of_voxels(data: Path, header: Any) -> str | None:
    """How an ``.img`` is compressed; its voxels may begin with any bytes."""
    whole = _offset(header, data) + header.get_data_dtype().itemsize * math.prod(
        header.get_data_shape()
    )
    return None if data.stat().st_size == whole else _compression(data)


def _parse(start: bytes, path: Path) -> Any:
    """The header that a file begins with."""
    kind = _header_class(start, path)
    size = _NIFTI2_BYTES if issubclass(kind, nib.Nifti2Header) else _NIFTI1_BYTES
    try:
        if kind is MGHHeader:
            return MGHHeader.from_fileobj(io.BytesIO(start))
        if len(start) < size:
            raise NiftiError(f"{path} ends inside its header", "a whole file", "convert it again")
        # nibabel's own check replaces what it finds wrong (a voxel size of 0 by 1).
        return kind(start[:size], check=False)
    except (nib.spatialimages.HeaderDataError, ValueError, TypeError) as error:
        # numpy raises a TypeError for a header that is cut off.
        raise NiftiError(f"{path} has a damaged header ({error})", _WANTED) from error


def _header_class(start: bytes, path: Path) -> type[Any]:
    sizes = {struct.unpack(f"{order}i", start[:4])[0] for order in "<>" if len(start) >= 4}
    if _NIFTI1_BYTES in sizes:
        if len(start) < _NIFTI1_BYTES:
            raise NiftiError(f"{path} ends inside its header", "a whole file", "copy it again")
        magic = start[344:348]
        if magic not in (b"n+1\0", b"ni1\0"):
            raise NiftiError(
                f"{path} has an Analyze 7.5 header, which does not say where its axes point to",
                _WANTED,
                "save it as .nii with the program that wrote it",
            )
        return nib.Nifti1Header if magic == b"n+1\0" else nib.nifti1.Nifti1PairHeader
    if _NIFTI2_BYTES in sizes:
        return nib.Nifti2Header if start[4:7] == b"n+2" else nib.nifti2.Nifti2PairHeader
    # An MGH file begins with its version, 1, and has no other mark; its type is 0 to 4.
    if start[:4] == b"\0\0\0\1" and start[20:23] == b"\0\0\0" and start[23:24] <= b"\4":
        return MGHHeader
    what = next((n for at, magic, n in _OTHER_FORMATS if start[at:].startswith(magic)), "no NIfTI")
    raise NiftiError(f"{path} is {what}", _WANTED, "convert the file, or correct the datalist")


def _stored(path: Path, data: Path, header: Any, compression: str | None) -> Stored:
    try:
        stored = header.get_data_dtype()
    except (KeyError, nib.spatialimages.HeaderDataError) as error:
        raise NiftiError(f"{path} has a damaged header ({error})", _WANTED) from error
    if stored.kind not in "uif":
        raise NiftiError(f"{path} holds {stored}", "integers or floats")
    return Stored(
        path=path,
        data=data,
        header=header,
        axes=tuple(int(n) for n in header.get_data_shape()),
        stored=stored,
        scale=_scale(header, path),
        offset=_offset(header, path),
        compression=compression,
    )


def _offset(header: Any, path: Path) -> int:
    """Position of the first voxel in bytes."""
    if isinstance(header, MGHHeader):
        return int(header.get_data_offset())
    least = header.single_vox_offset if header.is_single else 0
    offset = float(header["vox_offset"])
    if offset == 0:
        return int(least)
    if not (math.isfinite(offset) and offset >= least):
        raise NiftiError(f"{path} has voxels from byte {offset:g} on", f"{least} or more")
    return int(offset)


def _scale(header: Any, path: Path) -> tuple[float, float] | None:
    """Slope and intercept of a header; None where there are none, or they change nothing."""
    if isinstance(header, MGHHeader):
        return None
    try:
        slope, intercept = header.get_slope_inter()
    except nib.spatialimages.HeaderDataError as error:
        raise NiftiError(f"{path} has a damaged header ({error})", _WANTED) from error
    if slope is None or (slope, intercept) == (1, 0):
        return None
    return float(slope), float(intercept)


@contextmanager
def _opened(path: Path, compression: str | None) -> Iterator[IO[bytes]]:
    """Yield a file, decompressed as it is read."""
    try:
        with path.open("rb") as raw:
            if compression == "gzip":
                with igzip.IGzipFile(fileobj=raw, mode="rb") as unpacked:
                    yield cast("IO[bytes]", unpacked)
            elif compression == "bzip2":
                with bz2.BZ2File(raw) as unpacked:
                    yield unpacked
            else:
                yield raw
    except (OSError, EOFError, zlib.error, _DEFLATE_ERROR) as error:
        # The decompressors raise OSError too, without the number that the system's have.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise NiftiError(
            f"{path} is damaged ({error})", f"a whole {compression} file", "convert it again"
        ) from error

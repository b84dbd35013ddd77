"""Volumes mapped from disk, of which a bounded number is open at a time.

A map holds a file descriptor for as long as it is open, and a training may have thousands of
cases. A volume is mapped when voxels of it are read, and those read longest ago are unmapped
where the process would have too many.
"""

from __future__ import annotations

import math
import mmap
import os
import threading
import weakref
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

from cellmap_core.errors import NiftiError
from cellmap_core.machine import raise_file_limit

_LEAST_MAPS = 16


class MappedVolume(NDArrayOperatorsMixin):
    """The voxels of a file, read as an array (z, y, x) is indexed.

    Operators and NumPy's functions read all voxels, as they do with a mapped array.

    Parameters
    ----------
    path : Path
        The file.
    dtype : numpy.dtype
        Type of its voxels.
    shape : tuple of int
        Shape (z, y, x).
    offset : int
        Position of the first voxel in bytes.

    Raises
    ------
    NiftiError
        The file is shorter than that.
    """

    def __init__(
        self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int = 0
    ) -> None:
        self.path, self.dtype, self.shape, self._offset = path, dtype, shape, offset
        self._file = _identity(path)
        self._map: NDArray[Any] | None = None
        if (size := path.stat().st_size) < offset + self.size * dtype.itemsize:
            raise NiftiError(
                f"{path} ends too early, after {size} bytes",
                f"{offset + self.size * dtype.itemsize} for voxels of shape {shape}",
                "convert the crop again",
            )

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    def __getitem__(self, where: Any) -> NDArray[Any]:
        """Return a part of the voxels; they are read from disk when they are used."""
        return _maps().of(self)[where]  # type: ignore[no-any-return]

    def __array__(
        self, dtype: np.dtype[Any] | None = None, copy: bool | None = None
    ) -> NDArray[Any]:
        """Return all voxels."""
        return np.array(self[...], dtype=dtype, copy=copy)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """Apply a function of NumPy to all voxels."""
        arrays = [np.asarray(i) if isinstance(i, MappedVolume) else i for i in inputs]
        return getattr(ufunc, method)(*arrays, **options)

    def let_go(self) -> None:
        """Take the pages that were read out of this process's memory.

        They stay in the system's page cache as long as there is room, but no longer count as
        the process's own, for which a job has a limit.
        """
        mapped = getattr(self._map, "_mmap", None)
        if mapped is not None:
            mapped.madvise(mmap.MADV_DONTNEED)

    def open_map(self) -> NDArray[Any]:
        """Return the mapped file, mapped now where it is not.

        Raises
        ------
        NiftiError
            The file is another one than when the volume was made.
        """
        if self._map is None:
            if _identity(self.path) != self._file:
                raise NiftiError(
                    f"{self.path} was changed while it was in use", "the same file", "start again"
                )
            self._map = np.memmap(
                self.path, dtype=self.dtype, mode="r", offset=self._offset, shape=self.shape
            )
        return self._map

    def close_map(self) -> None:
        """Unmap the file; parts in use keep their voxels."""
        self._map = None


#: What holds voxels (z, y, x): an array in memory, or a file that is mapped as it is read.
Volume = NDArray[Any] | MappedVolume


class Maps:
    """The volumes of a process that are mapped, at most ``limit``.

    Parameters
    ----------
    limit : int
        Above this the volume read longest ago is unmapped.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[int, weakref.ref[MappedVolume]] = OrderedDict()

    def of(self, volume: MappedVolume) -> NDArray[Any]:
        """Return the map of a volume, and unmap another where there are too many."""
        with self._lock:
            # An id may come again for another volume, once the first is gone; the new entry
            # takes the place of the old one, whose map went with it.
            self._open[id(volume)] = weakref.ref(volume)
            self._open.move_to_end(id(volume))
            while len(self._open) > self._limit:
                oldest = self._open.popitem(last=False)[1]()
                if oldest is not None:
                    oldest.close_map()
            return volume.open_map()


@lru_cache(maxsize=1)
def _maps() -> Maps:
    """The maps of this process; half of the files it may open are left for everything else."""
    return Maps(max(_LEAST_MAPS, raise_file_limit() // 2))


def _identity(path: Path) -> tuple[int, int, int]:
    status = os.stat(path)  # noqa: PTH116 - called for every map, and many times faster
    return status.st_ino, status.st_size, status.st_mtime_ns

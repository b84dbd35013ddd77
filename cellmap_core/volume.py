"""One scale level of an image or of a class, and what of it is stored around a crop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from cellmap_core import resample, stores
from cellmap_core.chunks import ChunkReader, Chunks, Piece
from cellmap_core.errors import MetadataError
from cellmap_core.grid import Grid, Shape, Triple
from cellmap_core.multiscale import Level, Levels
from cellmap_core.provenance import key_of


@dataclass(frozen=True)
class Volume:
    """One scale level of one multiscale image, around one crop.

    Attributes
    ----------
    location : str
        The multiscale group, for messages.
    level : Level
        The level that is read.
    reader : ChunkReader
        Its array.
    finest : Grid
        Grid of the finest level.
    attributes : dict
        Of the multiscale group.
    chunks : Chunks or None
        What is stored around the crop; set by :meth:`around`.
    """

    location: str
    level: Level
    reader: ChunkReader
    finest: Grid
    attributes: dict[str, Any] = field(default_factory=dict)
    chunks: Chunks | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels."""
        return self.reader.dtype

    def around(self, target: Grid, kind: resample.Kind) -> Volume:
        """The volume with its chunks surveyed where resampling onto ``target`` reads."""
        how = resample.plan(self.level.grid, target, kind)
        start, stop = self.level.to_array(how.start), self.level.to_array(how.stop)
        return replace(self, chunks=self.reader.survey(start, stop))

    def stored(self, start: Shape, stop: Shape) -> bool:
        """Whether anything of the block (z, y, x) from ``start`` to ``stop`` is stored."""
        to_array = self.level.to_array
        return bool(self._surveyed().under(to_array(start), to_array(stop)))

    def complete(self, start: Shape, stop: Shape) -> bool:
        """Whether all of the block (z, y, x) from ``start`` to ``stop`` is stored."""
        to_array = self.level.to_array
        return self._surveyed().complete(to_array(start), to_array(stop))

    def pieces(self, start: Shape, stop: Shape) -> Iterator[Piece]:
        """What is stored of the block (z, y, x) from ``start`` to ``stop``."""
        to_array = self.level.to_array
        low, high = to_array(start), to_array(stop)
        for offset, values in self.reader.pieces(self._surveyed(), low, high):
            yield Piece(self._zyx(offset), np.transpose(values, self.level.axes))

    def block(self, start: Shape, stop: Shape) -> NDArray[Any]:
        """The block (z, y, x) from ``start`` to ``stop``, the fill value where none is stored."""
        size = tuple(b - a for a, b in zip(start, stop, strict=True))
        values: NDArray[Any] | None = None
        for piece in self.pieces(start, stop):
            if piece.values.shape == size:
                return piece.values
            if values is None:
                values = np.full(size, self.reader.fill, self.dtype)
            values[_place(piece.offset, piece.values.shape)] = piece.values
        return np.full(size, self.reader.fill, self.dtype) if values is None else values

    def image(self, target: Grid) -> NDArray[Any]:
        """The image on ``target`` (z, y, x); zero where it does not reach."""
        if not self.level.grid.box.intersects(target.box):
            return np.zeros(target.shape_vox, self.dtype)
        how = resample.plan(self.level.grid, target, "image")
        return resample.image(self._without_fill(how.start, how.stop), how)

    def _without_fill(self, start: Shape, stop: Shape) -> NDArray[Any]:
        """A block with zero where nothing is stored: there is no EM, whatever the fill value."""
        values = self.block(start, stop)
        if self.reader.fill == 0 or self.complete(start, stop):
            return values
        values = values.copy()
        for low, high in self._surveyed().missing():
            hole = zip(self._zyx(low), self._zyx(high), start, stop, strict=True)
            values[tuple(slice(max(a - s, 0), max(min(b, e) - s, 0)) for a, b, s, e in hole)] = 0
        return values

    @property
    def chunk_shape(self) -> Shape:
        """Voxels of a chunk (z, y, x)."""
        return self._zyx(self.reader.chunk_shape)

    @cached_property
    def holes(self) -> tuple[Grid, ...]:
        """Grids of the chunks around the crop that are not stored."""
        z, y, x = self.level.grid.shape_vox
        holes = []
        for start, stop in self._surveyed().missing():
            # A chunk at the end of an array reaches beyond it.
            high = self._zyx(stop)
            inside = (min(high[0], z), min(high[1], y), min(high[2], x))
            holes.append(self.level.grid.cut(self._zyx(start), inside))
        return tuple(holes)

    def digest(self) -> str:
        """Digest of the metadata and of all that is stored around the crop."""
        metadata = repr(self.reader.array.metadata.to_dict())
        chunks = self._surveyed()
        stored = [
            [*index, chunks.marks[tuple(index)]] for index in np.argwhere(chunks.stored).tolist()
        ]
        return key_of(self.level.model_dump(mode="json"), metadata, stored)

    def _surveyed(self) -> Chunks:
        if self.chunks is None:
            raise RuntimeError(f"{self.location} is surveyed before it is read")
        return self.chunks

    def _zyx(self, index: Shape) -> Shape:
        z, y, x = (index[axis] for axis in self.level.axes)
        return z, y, x


def open_crop_group(location: str) -> zarr.Group:
    """Open a crop's group, which holds a group for each class.

    Raises
    ------
    StoreError, MetadataError
        It is missing, cannot be read, or is the image of one class.
    """
    group = stores.open_group(location)
    attributes = stores.attributes(group, location)
    nested = attributes.get("ome")
    if "multiscales" in attributes or (isinstance(nested, dict) and "multiscales" in nested):
        parent, _, name = location.rstrip("/").rpartition("/")
        raise MetadataError(
            f"{location} is one image with its scale levels, no crop",
            "the group that holds a group for each class",
            f"give {parent}, and {name} as its class",
        )
    return group


def open_labels(location: str) -> Volume:
    """Open the labels of a class at their finest level.

    Coarser ones are often decimated, and a majority taken of those loses thin structures.

    Raises
    ------
    StoreError, MetadataError
        They are missing or cannot be read.
    """
    group = stores.open_group(location)
    level, array = Levels(group, location).first()
    return Volume(
        location, level, ChunkReader(array), level.grid, stores.attributes(group, location)
    )


def open_volume(location: str, scale: str, target: Triple | None) -> Volume:
    """Open the level of a multiscale image that ``scale`` names, or that suits the target.

    Raises
    ------
    StoreError, MetadataError
        It is missing or cannot be read.
    """
    group = stores.open_group(location)
    levels = Levels(group, location)
    level, array = levels.choose(scale, target)
    finest, _ = levels.finest()
    return Volume(
        location, level, ChunkReader(array), finest.grid, stores.attributes(group, location)
    )


def _place(offset: Shape, shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))

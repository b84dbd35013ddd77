"""One crop, opened: its raw level, its class arrays and the grid all are brought to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray

from cellmap_core import annotation, resample, stores
from cellmap_core.annotation import Encoding, States
from cellmap_core.classes import UNIONS, suggest
from cellmap_core.datasplit import CropRef
from cellmap_core.errors import AnnotationError, CropExcluded
from cellmap_core.grid import Box, Grid, Shape, Triple
from cellmap_core.label_table import ABSENT, UNKNOWN
from cellmap_core.multiscale import Level, choose_level, read_levels
from cellmap_core.options import ConvertOptions
from cellmap_core.provenance import key_of


class Survey(NamedTuple):
    """What is stored under a block: grids of the missing chunks, digest of what is there."""

    holes: tuple[Grid, ...]
    digest: str


@dataclass(frozen=True)
class Volume:
    """One scale level of one multiscale image, ready to read blocks of."""

    location: str
    level: Level
    array: stores.Array
    finest: Grid

    def read(self, start: Shape, stop: Shape) -> NDArray[Any]:
        """The block (z, y, x) from ``start`` to ``stop``."""
        to_array = self.level.to_array
        values = stores.read(self.array, to_array(start), to_array(stop))
        return np.transpose(values, self.level.axes)

    def around(self, target: Grid) -> tuple[NDArray[Any], Grid]:
        """The block that resampling onto ``target`` needs, and its grid."""
        start, stop = resample.needed(self.level.grid, target)
        return self.read(start, stop), self.level.grid.cut(start, stop)

    def survey(self, target: Grid) -> Survey:
        """What is stored of the block that resampling onto ``target`` needs."""
        start, stop = resample.needed(self.level.grid, target)
        chunks = stores.survey(self.array, self.level.to_array(start), self.level.to_array(stop))
        holes = tuple(
            self.level.grid.cut(self._zyx(chunk.low), self._zyx(chunk.high))
            for chunk in chunks
            if chunk.mark is None
        )
        metadata = repr(self.array.metadata.to_dict())
        marks = [chunk.mark for chunk in chunks]
        return Survey(holes, key_of(self.level.model_dump(mode="json"), metadata, marks))

    def _zyx(self, index: Shape) -> Shape:
        z, y, x = (index[axis] for axis in self.level.axes)
        return z, y, x


@dataclass(frozen=True)
class ClassSource:
    """Where the states of one class come from: its own array, or its parts' arrays."""

    name: str
    arrays: tuple[tuple[Volume, Encoding], ...]

    def states(self, target: Grid) -> States:
        """States of the class on ``target`` (z, y, x), by majority."""
        parts = []
        for volume, encoding in self.arrays:
            values, grid = volume.around(target)
            parts.append(resample.states(encoding.states(values, volume.location), grid, target))
        return parts[0] if len(parts) == 1 else annotation.union(parts)


@dataclass(frozen=True)
class Crop:
    """An opened crop.

    Attributes
    ----------
    ref : CropRef
        Which crop.
    raw : Volume
        The raw level that is read.
    label_grid : Grid
        The grid of the finest labels, whose extent the crop has.
    grid : Grid
        The output grid.
    sources : dict
        Class name → source, for the classes annotated in this crop.
    survey : Survey
        What is stored of the raw under the crop.
    """

    ref: CropRef
    raw: Volume
    label_grid: Grid
    grid: Grid
    sources: dict[str, ClassSource]
    survey: Survey

    def image(self, target: Grid) -> NDArray[Any]:
        """The raw on a part of the output grid; zero where the raw does not reach."""
        if not self.raw.level.grid.box.intersects(target.box):
            return np.zeros(target.shape_vox, self.raw.array.dtype)
        values, grid = self.raw.around(target)
        return resample.image(values, grid, target)

    def states(self, target: Grid, name: str) -> States:
        """States of a class on a part of the output grid.

        Unknown where the class is not annotated, where its labels do not reach, and wherever
        there is no raw to learn from (outside the volume, or a chunk that was not downloaded).
        """
        source = self.sources.get(name)
        if source is None:
            return np.full(target.shape_vox, ABSENT, np.uint8)  # Masked by annotated_classes.
        states = source.states(target)
        covered = np.zeros(target.shape_vox, bool)
        covered[resample.inside(self.raw.level.grid, target)] = True
        for hole in self.survey.holes:
            covered[_touched(hole, target)] = False
        states[~covered] = UNKNOWN
        return states

    def coverage(self) -> float:
        """Part of the crop's volume that has raw: inside the volume and downloaded."""
        total = float(np.prod(self.grid.box.size_nm))
        covered = _shared(self.raw.level.grid.box, self.grid.box)
        covered -= sum(_shared(hole.box, self.grid.box) for hole in self.survey.holes)
        return max(0.0, min(1.0, covered / total))

    def raw_start_vox(self) -> Triple:
        """The crop's low edge as an index on the finest raw level."""
        return self.raw.finest.edge_index(self.label_grid.box.low_nm)

    def digest(self) -> str:
        """Digest of all stored content the crop is made from."""
        sources = [
            [name, [[v.survey(self.grid).digest, e.model_dump()] for v, e in source.arrays]]
            for name, source in sorted(self.sources.items())
        ]
        return key_of(self.grid.model_dump(mode="json"), self.survey.digest, sources)


def open_crop(ref: CropRef, classes: Sequence[str], options: ConvertOptions) -> Crop:
    """Open a crop: choose levels, find the annotated classes, lay the output grid.

    Raises
    ------
    StoreError, MetadataError, AnnotationError
        Something is missing or cannot be read; the message names it.
    CropExcluded
        The crop lies outside the raw, or none of the classes is annotated in it.
    """
    target = None if options.target_spacing == "native" else options.target_spacing
    arrays = _class_arrays(ref, classes, options, target) if ref.labels else {}
    if ref.labels and not arrays:
        raise CropExcluded("none of the classes asked for is annotated in this crop")
    label_grid = ref.grid or _common_grid(
        [volume.finest for source in arrays.values() for volume, _ in source.arrays]
    )
    grid = label_grid.resampled(target or label_grid.voxel_nm)
    raw = _open_volume(ref.raw, options.scale, target or label_grid.voxel_nm)
    if not raw.finest.box.intersects(grid.box):
        raise CropExcluded(
            f"the crop ({_text(grid.box)}) lies outside the raw ({_text(raw.finest.box)})"
        )
    return Crop(
        ref=ref,
        raw=raw,
        label_grid=label_grid,
        grid=grid,
        sources=arrays,
        survey=raw.survey(grid),
    )


def _class_arrays(
    ref: CropRef, classes: Sequence[str], options: ConvertOptions, target: Triple | None
) -> dict[str, ClassSource]:
    group = stores.open_group(ref.labels)
    wanted = {part for name in (*classes, *ref.classes) for part in (name, *UNIONS.get(name, ()))}
    stored = tuple(n for n in stores.children(group, sorted(wanted)) if n != "all")
    named = _named_classes(group)
    for name in ref.classes:
        if name not in stored and not _parts(name, stored):
            raise AnnotationError(
                f"{ref.name} has no class {name}", "a class of this crop", suggest(name, stored)
            )
    sources = {}
    for name in classes:
        listed = name in ref.classes or not ref.classes
        parts = (name,) if name in stored else _parts(name, stored)
        if not listed or not parts:
            continue
        opened = tuple(_open_class(f"{ref.labels}/{part}", options, target) for part in parts)
        trusted = options.empty_class == "absent" and (name in named or name in ref.classes)
        if trusted or all(_has_chunks(volume) for volume, _ in opened):
            sources[name] = ClassSource(name=name, arrays=opened)
    return sources


def _parts(name: str, stored: Sequence[str]) -> tuple[str, ...]:
    """The parts a union can be derived from: all of them stored, else none."""
    parts = UNIONS.get(name, ())
    return parts if parts and set(parts) <= set(stored) else ()


def _named_classes(group: zarr.Group) -> tuple[str, ...]:
    document: dict[str, Any] = dict(group.attrs)
    names = ((document.get("cellmap") or {}).get("annotation") or {}).get("class_names") or ()
    return tuple(str(n) for n in names)


def _open_class(
    location: str, options: ConvertOptions, target: Triple | None
) -> tuple[Volume, Encoding]:
    volume = _open_volume(location, options.scale, target)
    group = stores.open_group(location)
    encoding = annotation.read_encoding(
        dict(volume.array.attrs), dict(group.attrs), location=location
    )
    return volume, encoding


def _open_volume(location: str, scale: str, target: Triple | None) -> Volume:
    group = stores.open_group(location)
    levels = read_levels(group, location)
    level = choose_level(levels, scale, target, location)
    array = stores.open_array(group, location, level.path)
    return Volume(location=location, level=level, array=array, finest=levels[0].grid)


def _has_chunks(volume: Volume) -> bool:
    whole = volume.array.shape
    stop = (whole[0], whole[1], whole[2])
    return any(chunk.mark for chunk in stores.survey(volume.array, (0, 0, 0), stop))


def _common_grid(grids: Sequence[Grid]) -> Grid:
    """The finest voxel size over the extent of all: classes of a crop may differ."""
    finest = min(grids, key=lambda g: float(np.prod(g.voxel_nm)))
    low = np.min([g.box.low_nm for g in grids], axis=0)
    high = np.max([g.box.high_nm for g in grids], axis=0)
    voxel = np.array(finest.voxel_nm)
    count = np.maximum(1, np.round((high - low) / voxel).astype(int))
    centre = low + voxel / 2
    return Grid(
        shape_vox=(int(count[0]), int(count[1]), int(count[2])),
        voxel_nm=finest.voxel_nm,
        translation_nm=(float(centre[0]), float(centre[1]), float(centre[2])),
    )


def _touched(hole: Grid, target: Grid) -> tuple[slice, ...]:
    """Output voxels that any part of a missing chunk reaches into."""
    low, high = target.edge_index(hole.box.low_nm), target.edge_index(hole.box.high_nm)
    return tuple(
        slice(max(0, int(np.floor(a + 1e-6))), max(0, int(np.ceil(b - 1e-6))))
        for a, b in zip(low, high, strict=True)
    )


def _shared(one: Box, other: Box) -> float:
    """Volume in nm³ that two boxes share."""
    low = np.maximum(one.low_nm, other.low_nm)
    high = np.minimum(one.high_nm, other.high_nm)
    return float(np.prod(np.maximum(high - low, 0)))


def _text(box: Box) -> str:
    low, high = (", ".join(f"{v:g}" for v in edge) for edge in (box.low_nm, box.high_nm))
    return f"{low} to {high} nm"

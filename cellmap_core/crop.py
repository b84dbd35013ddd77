"""One crop, opened: its raw level, its class arrays and the grid all are brought to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellmap_core import annotation, resample, stores
from cellmap_core.annotation import Encoding, States
from cellmap_core.chunks import Piece
from cellmap_core.classes import UNIONS, suggest
from cellmap_core.datasplit import CropRef
from cellmap_core.errors import AnnotationError, CropExcluded
from cellmap_core.grid import Box, Grid, Shape, Triple, count_vox
from cellmap_core.label_table import ABSENT, PRESENT, UNKNOWN
from cellmap_core.options import ConvertOptions
from cellmap_core.provenance import key_of
from cellmap_core.volume import Volume, open_crop_group, open_labels, open_volume


@dataclass(frozen=True)
class ClassArray:
    """The stored labels of one class: where they are and what their values mean."""

    volume: Volume
    encoding: Encoding

    def states(self, target: Grid) -> States | int:
        """States on ``target`` (z, y, x) by majority; one number where all are the same."""
        volume, how = self.volume, resample.plan(self.volume.level.grid, target, "label")
        # The fill value need not be one of the encoding's where nothing is left to fill.
        fill = None if volume.complete(how.start, how.stop) else int(volume.reader.fill)
        rest = ABSENT if fill is None else self.encoding.state(fill, volume.location)
        if how.inside and not volume.stored(how.start, how.stop):
            return rest
        if self._in_step(how):
            pieces = volume.pieces(how.start, how.stop)
        else:
            pieces = iter([Piece((0, 0, 0), volume.block(how.start, how.stop))])
        if how.pools is not None and how.inside:
            return self._decided(pieces, how, target.shape_vox, rest)
        return resample.decide(*self._counted(pieces, how, rest), how)

    def _in_step(self, how: resample.Plan) -> bool:
        """Whether no sum over whole source voxels takes from two chunks."""
        sizes = zip(how.start, self.volume.chunk_shape, how.sums, strict=True)
        return all(first % ratio == 0 and size % ratio == 0 for first, size, ratio in sizes)

    def _decided(
        self, pieces: Iterator[Piece], how: resample.Plan, shape: Shape, rest: int
    ) -> States | int:
        """Chunk by chunk to the end, each in the processor's cache."""
        result: States | None = None
        for offset, values in pieces:
            part = self._one_state(values)
            if part == rest:
                continue
            if result is None:
                result = np.full(shape, rest, np.uint8)
            place = _reduced(offset, values.shape, how.sums)
            if part is None:
                present, unknown = self.encoding.masks(values, self.volume.location)
                result[place] = resample.majority(present, unknown, how)
            else:
                result[place] = part
        return rest if result is None else result

    def _counted(
        self, pieces: Iterator[Piece], how: resample.Plan, rest: int
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Present and unknown voxels summed chunk by chunk; what is left is small."""
        full = int(np.prod(how.sums))
        extent = zip(how.start, how.stop, how.sums, strict=True)
        shape = tuple((stop - start) // ratio for start, stop, ratio in extent)
        present, unknown = (
            np.full(shape, full if rest == state else 0, np.min_scalar_type(full))
            for state in (PRESENT, UNKNOWN)
        )
        for offset, values in pieces:
            place = _reduced(offset, values.shape, how.sums)
            part = self._one_state(values)
            if part is None:
                is_present, is_unknown = self.encoding.masks(values, self.volume.location)
                present[place] = resample.pool(is_present, how.sums)
                unknown[place] = 0 if is_unknown is None else resample.pool(is_unknown, how.sums)
            else:
                present[place] = full if part == PRESENT else 0
                unknown[place] = full if part == UNKNOWN else 0
        return present, unknown

    def _one_state(self, values: NDArray[Any]) -> int | None:
        """The state of a chunk that holds one value, as most do; else None."""
        low = values.min()
        if low != values.max():
            return None
        return self.encoding.state(int(low), self.volume.location)


@dataclass(frozen=True)
class ClassSource:
    """Where the states of one class come from: its own array, or its parts' arrays."""

    name: str
    arrays: tuple[ClassArray, ...]

    def around(self, target: Grid) -> ClassSource:
        """The source with what is stored of it around a crop surveyed."""
        arrays = (replace(a, volume=a.volume.around(target, "label")) for a in self.arrays)
        return replace(self, arrays=tuple(arrays))

    def states(self, target: Grid) -> States | int:
        """States of the class on ``target`` (z, y, x); one number where all are the same."""
        parts = [array.states(target) for array in self.arrays]
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
    """

    ref: CropRef
    raw: Volume
    label_grid: Grid
    grid: Grid
    sources: dict[str, ClassSource]

    @property
    def label_volume(self) -> Volume:
        """The finest of the class arrays."""
        volumes = [a.volume for source in self.sources.values() for a in source.arrays]
        return min(volumes, key=lambda v: float(np.prod(v.level.grid.voxel_nm)))

    def image(self, target: Grid) -> NDArray[Any]:
        """The raw on a part of the output grid; zero where the raw does not reach."""
        return self.raw.image(target)

    def states(self, target: Grid, classes: Sequence[str]) -> Iterator[States | int]:
        """States of each class on a part of the output grid; one number for a whole block.

        Unknown where the class is not annotated, where its labels do not reach, and wherever
        there is no raw to learn from (outside the volume, or a chunk that was not downloaded).
        """
        dark = self.without_raw(target)
        for name in classes:
            source = self.sources.get(name)
            if source is None:
                yield ABSENT  # Masked by annotated_classes.
                continue
            states = source.states(target)
            if dark is not None:
                states = np.array(np.broadcast_to(states, target.shape_vox), np.uint8)
                states[dark] = UNKNOWN
            yield states

    def without_raw(self, target: Grid) -> NDArray[np.bool_] | None:
        """Voxels with no raw to learn from; None where all have some."""
        if not self.raw.holes and self.raw.level.grid.box.contains(self.grid.box):
            return None
        dark = np.ones(target.shape_vox, bool)
        dark[resample.inside(self.raw.level.grid, target)] = False
        raw_nm = self.raw.level.grid.voxel_nm
        # Where the raw grows it is interpolated: a hole reaches half a voxel around itself.
        reach = [v / 2 if v > t else 0.0 for v, t in zip(raw_nm, target.voxel_nm, strict=True)]
        for hole in self.raw.holes:
            dark[_touched(hole.box, target, reach)] = True
        return dark if dark.any() else None

    def coverage(self) -> float:
        """Part of the crop's volume that has raw: inside the volume and downloaded."""
        total = float(np.prod(self.grid.box.size_nm))
        covered = _shared(self.raw.level.grid.box, self.grid.box)
        covered -= sum(_shared(hole.box, self.grid.box) for hole in self.raw.holes)
        return max(0.0, min(1.0, covered / total))

    def coarser_than_need_be(self) -> bool:
        """Whether the raw is interpolated although the store has a finer level."""
        level = self.raw.level.grid.voxel_nm
        wanted = zip(level, self.grid.voxel_nm, strict=True)
        return level != self.raw.finest.voxel_nm and any(v > t * 1.01 for v, t in wanted)

    def raw_start_vox(self) -> Triple:
        """The crop's low edge as an index on the finest raw level."""
        return self.raw.finest.edge_index(self.label_grid.box.low_nm)

    def digest(self) -> str:
        """Digest of all stored content the crop is made from."""
        sources = [
            [name, [[a.volume.digest(), a.encoding.model_dump()] for a in source.arrays]]
            for name, source in sorted(self.sources.items())
        ]
        return key_of(self.grid.model_dump(mode="json"), self.raw.digest(), sources)


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
    arrays = _class_arrays(ref, classes, options) if ref.labels else {}
    if ref.labels and not arrays:
        raise CropExcluded("none of the classes asked for is annotated in this crop")
    label_grid = ref.grid or _common_grid(
        [array.volume.finest for source in arrays.values() for array in source.arrays]
    )
    grid = label_grid.resampled(target or label_grid.voxel_nm)
    raw = open_volume(ref.raw, options.scale, target or label_grid.voxel_nm)
    if not raw.finest.box.intersects(grid.box):
        raise CropExcluded(
            f"the crop ({_text(grid.box)}) lies outside the raw ({_text(raw.finest.box)})"
        )
    return Crop(
        ref=ref,
        raw=raw.around(grid, "image"),
        label_grid=label_grid,
        grid=grid,
        sources={name: source.around(grid) for name, source in arrays.items()},
    )


def _class_arrays(
    ref: CropRef, classes: Sequence[str], options: ConvertOptions
) -> dict[str, ClassSource]:
    group = open_crop_group(ref.labels)
    wanted = {part for name in (*classes, *ref.classes) for part in (name, *UNIONS.get(name, ()))}
    stored = tuple(n for n in stores.children(group, sorted(wanted)) if n != "all")
    named = annotation.class_names(stores.attributes(group, ref.labels))
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
        opened = tuple(_open_class(f"{ref.labels}/{part}") for part in parts)
        trusted = options.empty_class == "absent" and (name in named or name in ref.classes)
        if trusted or all(_has_chunks(array.volume) for array in opened):
            sources[name] = ClassSource(name=name, arrays=opened)
    return sources


def _parts(name: str, stored: Sequence[str]) -> tuple[str, ...]:
    """The parts a union can be derived from: all of them stored, else none."""
    parts = UNIONS.get(name, ())
    return parts if parts and set(parts) <= set(stored) else ()


def _open_class(location: str) -> ClassArray:
    volume = open_labels(location)
    annotation.check_type(volume.dtype, location)
    attributes = (stores.attributes(volume.reader.array, location), volume.attributes)
    return ClassArray(volume, annotation.read_encoding(*attributes, location=location))


def _has_chunks(volume: Volume) -> bool:
    return bool(volume.reader.survey((0, 0, 0), volume.reader.shape).stored.any())


def _common_grid(grids: Sequence[Grid]) -> Grid:
    """The finest voxel size over the extent of all: classes of a crop may differ."""
    finest = min(grids, key=lambda g: float(np.prod(g.voxel_nm)))
    low = np.min([g.box.low_nm for g in grids], axis=0)
    high = np.max([g.box.high_nm for g in grids], axis=0)
    voxel = np.array(finest.voxel_nm)
    count = [count_vox(float(size), float(v)) for size, v in zip(high - low, voxel, strict=True)]
    centre = low + voxel / 2
    return Grid(
        shape_vox=(count[0], count[1], count[2]),
        voxel_nm=finest.voxel_nm,
        translation_nm=(float(centre[0]), float(centre[1]), float(centre[2])),
    )


def _reduced(offset: Shape, shape: tuple[int, ...], sums: Shape) -> tuple[slice, ...]:
    """Where a piece stands after its whole axes are summed."""
    return tuple(
        slice(o // ratio, (o + n) // ratio) for o, n, ratio in zip(offset, shape, sums, strict=True)
    )


def _touched(hole: Box, target: Grid, reach_nm: Sequence[float]) -> tuple[slice, ...]:
    """Output voxels that any part of a missing chunk, or what is mixed with it, reaches into."""
    low, high = target.edge_index(hole.low_nm), target.edge_index(hole.high_nm)
    margin = [r / v for r, v in zip(reach_nm, target.voxel_nm, strict=True)]
    return tuple(
        slice(max(0, int(np.floor(a - m + 1e-6))), max(0, int(np.ceil(b + m - 1e-6))))
        for a, b, m in zip(low, high, margin, strict=True)
    )


def _shared(one: Box, other: Box) -> float:
    """Volume in nm³ that two boxes share."""
    low = np.maximum(one.low_nm, other.low_nm)
    high = np.minimum(one.high_nm, other.high_nm)
    return float(np.prod(np.maximum(high - low, 0)))


def _text(box: Box) -> str:
    low, high = (", ".join(f"{v:g}" for v in edge) for edge in (box.low_nm, box.high_nm))
    return f"{low} to {high} nm"

"""OME-NGFF multiscale metadata: the scale levels of an image and their grids in nm."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import zarr

from cellmap_core.errors import MetadataError
from cellmap_core.grid import Grid, Shape, Triple
from cellmap_core.models import Frozen
from cellmap_core.stores import Array, find_array, line
from cellmap_core.stores import attributes as node_attributes

# Length of one unit in nm, by the names OME-NGFF takes from UDUNITS-2 and short forms met.
_UNIT_NM = {
    "angstrom": 0.1,
    "nanometer": 1.0,
    "nm": 1.0,
    "micrometer": 1e3,
    "micron": 1e3,
    "um": 1e3,
    "µm": 1e3,
    "millimeter": 1e6,
    "mm": 1e6,
    "meter": 1e9,
}

# Beyond it a number is no place in a volume of electron microscopy.
_LARGEST_NM = 1e9

# A level may be this much coarser than the target and still count as "not coarser": FIB-SEM
# voxel sizes are calibrated to the third digit.
_COARSER_TOLERANCE = 1.01


class Level(Frozen):
    """One scale level: its name, its grid (z, y, x) and where z, y, x stand in the array."""

    path: str
    grid: Grid
    axes: tuple[int, int, int] = (0, 1, 2)

    def to_array(self, zyx: Shape) -> Shape:
        """An index given as z, y, x in the array's own axis order."""
        placed = [0, 0, 0]
        for axis, value in zip(self.axes, zyx, strict=True):
            placed[axis] = value
        return placed[0], placed[1], placed[2]


class Levels:
    """The scale levels of a multiscale group; an array is opened when its level is asked for.

    A download may leave levels out: those named in the metadata but absent are no choice.

    Parameters
    ----------
    group : zarr.Group
        With OME-NGFF multiscales metadata.
    location : str
        Its location, for messages.

    Raises
    ------
    MetadataError
        The metadata are missing, incomplete or not three space axes with known units.
        Nothing is guessed.
    """

    def __init__(self, group: zarr.Group, location: str) -> None:
        self._group, self._location = group, location
        multiscale = _multiscale(group, location)
        try:
            named, self._order = _named_levels(multiscale, location)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise MetadataError(
                f"{location} has malformed multiscales ({line(error)})",
                "OME-NGFF multiscales metadata",
            ) from error
        self._named = dict(sorted(named.items(), key=lambda item: float(np.prod(item[1][0]))))
        self._opened: dict[str, tuple[Level, Array] | None] = {}

    def finest(self) -> tuple[Level, Array]:
        """The finest level there is."""
        for path in self._named:
            if opened := self._open(path):
                return opened
        raise MetadataError(
            f"{self._location} has none of the scale levels its metadata name "
            f"({', '.join(self._named) or 'none'})",
            "at least one",
        )

    def first(self) -> tuple[Level, Array]:
        """The finest level that the metadata name, which must be there."""
        for path in self._named:
            if opened := self._open(path):
                return opened
            raise MetadataError(
                f"{self._location} has no {path}, the finest level its metadata name",
                "labels at their finest",
                "download it: what coarser levels of labels hold is not told",
            )
        raise MetadataError(f"{self._location} names no scale level", "at least one")

    def choose(self, scale: str, target_nm: Triple | None) -> tuple[Level, Array]:
        """The level to read: the one named, or by ``auto`` the coarsest not coarser than wanted.

        Parameters
        ----------
        scale : str
            ``s0``, ``s1``, … or ``auto``.
        target_nm : tuple of float or None
            Voxel size wanted; None (native) makes ``auto`` the finest.
        """
        if scale == "auto":
            for path, (voxel, _) in reversed(self._named.items()):
                fine = target_nm is not None and _not_coarser(voxel, target_nm)
                if fine and (opened := self._open(path)):
                    return opened
            return self.finest()
        for path in self._named:
            if re.sub(r"\D", "", path) == scale[1:] and (opened := self._open(path)):
                return opened
        there = [path for path in self._named if self._open(path)]
        raise MetadataError(
            f"{self._location} has no scale level {scale}",
            f"one of {', '.join(there)} or auto" if there else "at least s0",
        )

    def _open(self, path: str) -> tuple[Level, Array] | None:
        if path not in self._opened:
            array = find_array(self._group, self._location, path)
            self._opened[path] = None if array is None else (self._level(path, array), array)
        return self._opened[path]

    def _level(self, path: str, array: Array) -> Level:
        if array.ndim != 3:
            raise MetadataError(f"{self._location}/{path} has {array.ndim} axes", "three (z, y, x)")
        voxel, origin = self._named[path]
        shape = _reorder(array.shape, self._order, int)
        grid = Grid(shape_vox=shape, voxel_nm=voxel, translation_nm=origin)
        return Level(path=path, axes=self._order, grid=grid)


def _not_coarser(voxel: Triple, target: Triple) -> bool:
    return all(v <= t * _COARSER_TOLERANCE for v, t in zip(voxel, target, strict=True))


def _multiscale(group: zarr.Group, location: str) -> dict[str, Any]:
    attributes = node_attributes(group, location)
    document = attributes.get("ome", attributes)  # OME-NGFF 0.5 nests everything under "ome".
    multiscales = document.get("multiscales") if isinstance(document, dict) else None
    if not (isinstance(multiscales, list) and multiscales and isinstance(multiscales[0], dict)):
        raise MetadataError(f"{location} has no multiscales", "OME-NGFF multiscales metadata")
    return multiscales[0]


def _named_levels(
    multiscale: dict[str, Any], location: str
) -> tuple[dict[str, tuple[Triple, Triple]], tuple[int, int, int]]:
    """Voxel size and first voxel centre (z, y, x, nm) of each level, and where z, y, x stand."""
    names, factors = _axes(multiscale, location)
    z, y, x = (names.index(a) for a in "zyx")
    outer = multiscale.get("coordinateTransformations") or []
    named: dict[str, tuple[Triple, Triple]] = {}
    for dataset in multiscale.get("datasets") or []:
        path = dataset.get("path")
        if not isinstance(path, str):
            raise MetadataError(f"{location}: a multiscale dataset without path", "path: s0")
        scale, shift = _transform(dataset.get("coordinateTransformations"), location, path)
        outer_scale, outer_shift = _transform(outer, location, path, required=False)
        voxel = scale * outer_scale * factors
        origin = (shift * outer_scale + outer_shift) * factors
        if not (voxel > 0).all() or max(*voxel, *abs(origin)) > _LARGEST_NM:
            raise MetadataError(
                f"{location}/{path} has voxels of {voxel.tolist()} nm at {origin.tolist()}",
                "sizes above 0 and below a metre",
            )
        named[path] = (_reorder(voxel, (z, y, x), float), _reorder(origin, (z, y, x), float))
    return named, (z, y, x)


def _axes(multiscale: dict[str, Any], location: str) -> tuple[list[str], Any]:
    axes = multiscale.get("axes") or []
    names = [str(a.get("name")) if isinstance(a, dict) else str(a) for a in axes]
    if sorted(names) != ["x", "y", "z"]:
        raise MetadataError(f"{location} has axes {names}", "z, y and x in any order")
    units = [a.get("unit") if isinstance(a, dict) else None for a in axes]
    if unknown := [u for u in units if u not in _UNIT_NM]:
        raise MetadataError(f"{location} has unit {unknown[0]}", f"one of {', '.join(_UNIT_NM)}")
    return names, np.array([_UNIT_NM[str(u)] for u in units])


def _transform(rows: Any, location: str, path: str, required: bool = True) -> tuple[Any, Any]:
    scale, translation, moved = None, np.zeros(3), 0
    for row in rows or []:
        kind = row.get("type")
        if kind == "scale":
            scale = _vector(row, "scale", location, path)
        elif kind == "translation":
            translation = _vector(row, "translation", location, path)
            moved += 1
        elif kind != "identity":
            raise MetadataError(f"{location}/{path}: transformation {kind}", "scale or translation")
    if moved > 1:
        raise MetadataError(f"{location}/{path} has {moved} translations", "one")
    if scale is None:
        if required:
            raise MetadataError(f"{location}/{path} has no scale", "a scale transformation")
        scale = np.ones(3)
    return scale, translation


def _vector(row: dict[str, Any], kind: str, location: str, path: str) -> Any:
    try:
        vector = np.array([float(v) for v in row[kind]])
    except (KeyError, TypeError, ValueError) as error:
        raise MetadataError(f"{location}/{path}: unreadable {kind}", "three numbers") from error
    if not np.isfinite(vector).all():
        raise MetadataError(f"{location}/{path}: {kind} {vector.tolist()}", "finite numbers")
    if vector.shape != (3,):
        raise MetadataError(f"{location}/{path}: {kind} of {len(vector)} numbers", "three numbers")
    return vector


def _reorder(values: Any, order: tuple[int, ...], kind: type) -> Any:
    return tuple(kind(values[i]) for i in order)

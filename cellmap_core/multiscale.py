"""OME-NGFF multiscale metadata: the scale levels of an image and their grids in nm."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import zarr

from cellmap_core.errors import MetadataError, StoreError
from cellmap_core.grid import EDGE_TOLERANCE_VOX, Grid, Shape, Triple
from cellmap_core.lengths import UNITS, unit_nm
from cellmap_core.models import Frozen
from cellmap_core.stores import Array, children, find_array, line
from cellmap_core.stores import attributes as node_attributes
from cellmap_core.transformations import read_transformation

logger = logging.getLogger(__name__)

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


class _Named(NamedTuple):
    """What the metadata say of one level: voxel size and first voxel centre (z, y, x, nm)."""

    voxel_nm: Triple
    origin_nm: Triple

    @property
    def low_nm(self) -> Triple:
        """The low edge of the level's box."""
        z, y, x = (o - v / 2 for o, v in zip(self.origin_nm, self.voxel_nm, strict=True))
        return z, y, x


class Levels:
    """The scale levels of a multiscale group; an array is opened when its level is asked for.

    Levels are ranked by voxel size, whatever their names: rank 0 is the finest that the
    metadata name. A download may leave levels out: those named but absent are no choice, and
    neither are those whose box is not that of the finest.

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
        """Return the finest level there is."""
        for path in self._named:
            if opened := self._usable(path):
                return opened
        raise MetadataError(
            f"{self._location} has none of the scale levels its metadata name "
            f"({', '.join(self._named) or 'none'})",
            "at least one",
        )

    def first(self) -> tuple[Level, Array]:
        """Return the finest level that the metadata name.

        Raises
        ------
        MetadataError
            It is not there, or a coarser level contradicts it: nothing tells which is right.
        """
        for path in self._named:
            if opened := self._open(path):
                self._refuse_contradictions(path)
                return opened
            raise MetadataError(
                f"{self._location} has no {path}, the finest level its metadata name",
                "labels at their finest",
                "download it: what coarser levels of labels hold is not told",
            )
        raise MetadataError(f"{self._location} names no scale level", "at least one")

    def choose(self, scale: str, target_nm: Triple | None) -> tuple[Level, Array]:
        """Return the level of a rank, or by ``auto`` the coarsest not coarser than wanted.

        Levels that lie elsewhere than the finest are reported by a warning.

        Parameters
        ----------
        scale : str
            ``s0`` (the finest), ``s1``, … or ``auto``.
        target_nm : tuple of float or None
            Voxel size wanted; None (native) makes ``auto`` the finest.

        Raises
        ------
        MetadataError
            There is no such level, or it lies elsewhere than the finest.
        """
        for path in self._named:
            if reason := self._strays(path):
                _warn_once(f"{self._location}/{path} is not used: {reason}")
        if scale == "auto":
            for path, (voxel, _) in reversed(self._named.items()):
                fine = target_nm is not None and _not_coarser(voxel, target_nm)
                if fine and (opened := self._usable(path)):
                    return opened
            return self.finest()
        return self._ranked(scale)

    def _ranked(self, scale: str) -> tuple[Level, Array]:
        paths, rank = list(self._named), int(scale[1:])
        path = paths[rank] if rank < len(paths) else None
        if path is not None:
            if opened := self._usable(path):
                if scale in paths and scale != path:
                    _warn_once(
                        f"{self._location}: scale {scale} is the level {path}, by the rank of its "
                        f"voxel size; the level named {scale} is scale s{paths.index(scale)}"
                    )
                return opened
            if self._open(path) and (reason := self._strays(path)):
                raise MetadataError(
                    f"{self._location}/{path} cannot be used: {reason}",
                    "levels of one pyramid that share their edges",
                    f"correct its scale or translation, or give scale {self._choices() or 'auto'}",
                )
        there = self._choices()
        raise MetadataError(
            f"{self._location} has no scale level {scale}",
            f"one of {there} or auto" if there else "at least s0",
        )

    def _choices(self) -> str:
        """What the option scale accepts here."""
        ranks = enumerate(self._named)
        return ", ".join(
            f"s{rank}" if path == f"s{rank}" else f"s{rank} (the level {path})"
            for rank, path in ranks
            if self._usable(path)
        )

    def _usable(self, path: str) -> tuple[Level, Array] | None:
        """Return a level that is there and lies where the finest lies."""
        opened = self._open(path)
        if opened is None:
            return None
        if reason := self._strays(path):
            _warn_once(f"{self._location}/{path} is not used: {reason}")
            return None
        return opened

    def _strays(self, path: str) -> str:
        """Say how the box of a level differs from that of the finest; empty where it does not.

        The low edges of a pyramid are one place, whatever was rounded: a voxel of the finest is
        the tolerance, since levels are often stored without the half voxels that their centres
        move by (a shift of half a voxel of the finest at the second level, and of one and a
        half at the third). At the high end a level has a voxel of its own more or less where
        the size is no multiple of it. High edges are compared once an array tells its shape.
        """
        finest, level = next(iter(self._named.values())), self._named[path]
        step = finest.voxel_nm
        if gap := _beyond(finest.low_nm, level.low_nm, step):
            return f"its low edge lies {gap} nm (z, y, x) from that of the finest level"
        return self._high_gap(path)

    def _high_gap(self, path: str) -> str:
        step = next(iter(self._named.values())).voxel_nm
        opened = self._opened.get(path)
        reference = next((o for p in self._named if (o := self._open(p))), None)
        if opened is None or reference is None or reference is opened:
            return ""
        own, other = opened[0].grid, reference[0].grid
        z, y, x = (a + b for a, b in zip(step, own.voxel_nm, strict=True))
        if gap := _beyond(other.box.high_nm, own.box.high_nm, (z, y, x)):
            return f"its high edge lies {gap} nm (z, y, x) from that of {reference[0].path}"
        return ""

    def _refuse_contradictions(self, finest: str) -> None:
        """Refuse levels that the finest one contradicts, beyond what writers leave out.

        A pyramid without translations of its own for each level is met everywhere and says
        nothing else: of such a level the size is compared alone.
        """
        own = self._named[finest]
        for path, level in self._named.items():
            reason = ""
            if not np.allclose(level.origin_nm, own.origin_nm):
                reason = _beyond(own.low_nm, level.low_nm, own.voxel_nm)
                reason = reason and f"the low edge of {path} lies {reason} nm (z, y, x) from it"
            if not reason:
                reason = self._size_gap(path, finest)
            if reason:
                raise MetadataError(
                    f"{self._location}: the levels {finest} and {path} contradict each other "
                    f"({reason})",
                    "levels of one pyramid that share their edges and sizes",
                    "correct their scales and translations",
                )

    def _size_gap(self, path: str, finest: str) -> str:
        """Say how the size of a level differs from that of the finest; empty where it does not.

        Each array costs requests to a store: a wrong finest level shows in the next two.
        """
        if path not in list(self._named)[1:3]:
            return ""
        try:
            pair = [self._open(name) for name in (finest, path)]
        except (MetadataError, StoreError):
            return ""  # The level is not needed, and what cannot be read contradicts nothing.
        if None in pair:
            return ""
        grids = [opened[0].grid for opened in pair if opened]
        own, other = (np.subtract(grid.box.high_nm, grid.box.low_nm) for grid in grids)
        most = np.add(grids[0].voxel_nm, grids[1].voxel_nm) * (1 + EDGE_TOLERANCE_VOX)
        if (abs(other - own) <= most).all():
            return ""
        gap = ", ".join(f"{value:+g}" for value in other - own)
        return f"{path} is larger by {gap} nm (z, y, x)"

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


@lru_cache(maxsize=4096)
def _warn_once(text: str) -> None:
    """Log a warning once: many crops read the same volume."""
    logger.warning("%s", text)


def _beyond(one: Triple, other: Triple, tolerance: Triple) -> str:
    """Distances of two edges as text where one exceeds its tolerance, else nothing."""
    gaps = [b - a for a, b in zip(one, other, strict=True)]
    pairs = zip(gaps, tolerance, strict=True)
    if all(abs(gap) <= most * (1 + EDGE_TOLERANCE_VOX) for gap, most in pairs):
        return ""
    return ", ".join(f"{gap:+g}" for gap in gaps)


def _not_coarser(voxel: Triple, target: Triple) -> bool:
    return all(v <= t * _COARSER_TOLERANCE for v, t in zip(voxel, target, strict=True))


def _multiscale(group: zarr.Group, location: str) -> dict[str, Any]:
    attributes = node_attributes(group, location)
    document = attributes.get("ome", attributes)  # OME-NGFF 0.5 nests everything under "ome".
    multiscales = document.get("multiscales") if isinstance(document, dict) else None
    if isinstance(multiscales, list) and multiscales and isinstance(multiscales[0], dict):
        # The first is the one to take where nobody chose, by the specification.
        return multiscales[0]
    try:
        held = ", ".join(children(group)[:6])
    except StoreError:
        held = ""
    raise MetadataError(
        f"{location} has no multiscales",
        "OME-NGFF multiscales metadata",
        f"give one of the images it holds: {held}" if held else "",
    )


def _named_levels(
    multiscale: dict[str, Any], location: str
) -> tuple[dict[str, _Named], tuple[int, int, int]]:
    """What the metadata say of each level, and where z, y, x stand in its array."""
    if "coordinateSystems" in multiscale:
        raise MetadataError(
            f"{location} has coordinateSystems, which are of OME-NGFF 0.6",
            "OME-NGFF 0.4 or 0.5 (axes, and a scale and translation of each level)",
        )
    names, factors = _axes(multiscale, location)
    z, y, x = (names.index(a) for a in "zyx")
    outer = read_transformation(
        multiscale.get("coordinateTransformations"), f"{location} (all levels)", required=False
    )
    named: dict[str, _Named] = {}
    for dataset in multiscale.get("datasets") or []:
        path = _level_path(dataset.get("path"), location)
        if path in named:
            raise MetadataError(f"{location} names the level {path} twice", "each level once")
        own = read_transformation(dataset.get("coordinateTransformations"), f"{location}/{path}")
        voxel, origin = own.then(outer).in_unit(factors)
        if not (voxel > 0).all() or max(*voxel, *abs(origin)) > _LARGEST_NM:
            raise MetadataError(
                f"{location}/{path} has voxels of {voxel.tolist()} nm at {origin.tolist()}",
                "sizes above 0 and below a metre",
            )
        named[path] = _Named(_reorder(voxel, (z, y, x), float), _reorder(origin, (z, y, x), float))
    return named, (z, y, x)


def _level_path(path: Any, location: str) -> str:
    """Return the path of a level below its group, without what does not change it (``./s0``)."""
    if not isinstance(path, str):
        raise MetadataError(f"{location}: a multiscale dataset without path", "path: s0")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        raise MetadataError(
            f"{location} has the dataset path {path!r}",
            "the path of an array below it, as s0",
            "correct it in its multiscales",
        )
    return "/".join(parts)


def _axes(multiscale: dict[str, Any], location: str) -> tuple[list[str], Any]:
    axes = multiscale.get("axes") or []
    names = [str(a.get("name")) if isinstance(a, dict) else str(a) for a in axes]
    if sorted(names) != ["x", "y", "z"]:
        raise MetadataError(f"{location} has axes {names}", "z, y and x in any order")
    units = [a.get("unit") if isinstance(a, dict) else None for a in axes]
    factors = [unit_nm(unit) for unit in units]
    if None in factors:
        unit = units[factors.index(None)]
        found = "an axis without unit" if unit is None else f"unit {unit}"
        raise MetadataError(f"{location} has {found}", f"one of {', '.join(UNITS)}")
    return names, np.array(factors)


def _reorder(values: Any, order: tuple[int, ...], kind: type) -> Any:
    return tuple(kind(values[i]) for i in order)

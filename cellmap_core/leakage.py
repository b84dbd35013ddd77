"""Cases that show the same voxels, which must not be trained on and validated or tested on.

Two crops share voxels if they overlap in one raw volume, if they are one crop in two
reconstructions, or if their images are equal files. Conversion records the first two in the
datalist; equal files are found in any datalist.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from cellmap_core.datalist import Datalist, Entry
from cellmap_core.grid import Box, Grid
from cellmap_core.models import Frozen
from cellmap_core.nifti_names import files_of
from cellmap_core.provenance import file_digest, key_of

# Grids of several voxel sizes that touch may overlap by what rounding adds.
_MARGIN_VOX = 0.25
# Equal files have equal parts: a few tell most unequal ones without reading them all.
_SAMPLES, _SAMPLE_BYTES = 8, 1 << 14
# Pairs that are named in notes; the rest is counted.
_NAMED = 20


class Extent(Frozen):
    """The place of one crop.

    Attributes
    ----------
    name : str
        The crop's name.
    volume : str
        The raw volume that it is cut from: the same for all images of one reconstruction.
    box : Box
        Its place in the volume's coordinates, a part of a voxel smaller on each side.
    tissue : str
        The same for all reconstructions of one crop; empty where nothing tells.
    """

    name: str
    volume: str
    box: Box
    tissue: str = ""


def box_within(grid: Grid) -> Box:
    """The extent of a grid without a margin, so that grids which touch do not overlap."""
    z, y, x = (v * _MARGIN_VOX for v in grid.voxel_nm)
    (z0, y0, x0), (z1, y1, x1) = grid.box.low_nm, grid.box.high_nm
    return Box(low_nm=(z0 + z, y0 + y, x0 + x), high_nm=(z1 - z, y1 - y, x1 - x))


def overlaps(extents: Sequence[Extent]) -> dict[str, tuple[str, ...]]:
    """Return, for each crop that shares voxels with others, the names of those, sorted."""
    found: dict[str, set[str]] = defaultdict(set)
    volumes, tissues = defaultdict(list), defaultdict(list)
    for extent in extents:
        volumes[extent.volume].append(extent)
        tissues[extent.tissue or extent.name].append(extent)
    for group in volumes.values():
        low = np.array([e.box.low_nm for e in group])
        high = np.array([e.box.high_nm for e in group])
        for i, one in enumerate(group):
            shared = ((low < high[i]) & (low[i] < high)).all(axis=1)
            found[one.name].update(group[k].name for k in np.flatnonzero(shared))
    for group in tissues.values():
        for one in group:
            found[one.name].update(other.name for other in group)
    others = {name: tuple(sorted(names - {name})) for name, names in found.items()}
    return {name: names for name, names in others.items() if names}


def joined(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the least member of the group of each name; pairs are in one group."""
    least: dict[str, str] = {}

    def root(name: str) -> str:
        least.setdefault(name, name)
        while least[name] != name:
            least[name] = least[least[name]]
            name = least[name]
        return name

    for pair in pairs:
        low, high = sorted(map(root, pair))
        least[high] = low
    return {name: root(name) for name in least}


def specimens(volumes: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the specimen of each dataset that shares a raw volume with another one.

    Parameters
    ----------
    volumes : iterable of (str, str)
        Dataset and raw volume of each crop.

    Returns
    -------
    dict of str to str
        Dataset → the first, by name, of the datasets of the specimen. Datasets that share no
        volume, and the first ones themselves, are left out.
    """
    datasets: dict[str, set[str]] = defaultdict(set)
    for dataset, volume in volumes:
        datasets[volume].add(dataset)
    first = joined((name, min(group)) for group in datasets.values() for name in group)
    return {dataset: name for dataset, name in first.items() if dataset != name}


def equal_files(paths: Sequence[Path]) -> list[list[int]]:
    """Return the places in ``paths`` of files with the same content, group by group.

    Files of different size, or of which a few samples differ, are not read further. Files
    that cannot be read are equal to none.
    """
    groups = [list(range(len(paths)))]
    for mark in (_size, _samples, _content):
        apart: list[list[int]] = []
        for group in groups:
            marks: dict[object, list[int]] = defaultdict(list)
            for i in group:
                try:
                    marks[mark(paths[i])].append(i)
                except OSError:
                    continue
            apart += [same for same in marks.values() if len(same) > 1]
        groups = apart
    return groups


def shared_voxels(datalist: Datalist) -> tuple[tuple[Entry, Entry], ...]:
    """Return the pairs of cases that show the same voxels.

    The first of a pair is a training case. Pairs of two cases to predict are left out.
    """
    entries = (*datalist.training, *datalist.testing)
    place = {entry.name: i for i, entry in enumerate(entries)}
    pairs: set[tuple[int, int]] = set()
    for i, entry in enumerate(entries):
        named = (entry.cellmap.overlaps or ()) if entry.cellmap else ()
        pairs.update((min(i, k), max(i, k)) for k in (place[n] for n in named if n in place))
    for group in equal_files([datalist.path(entry.image) for entry in entries]):
        pairs.update((group[0], k) for k in group[1:])
    count = len(datalist.training)
    return tuple((entries[i], entries[k]) for i, k in sorted(pairs) if i < count)


def leakage_notes(datalist: Datalist, pairs: Sequence[tuple[Entry, Entry]]) -> tuple[str, ...]:
    """Return a note on each pair of cases that show the same voxels, by the list's folds."""
    tested = {entry.image for entry in datalist.testing}
    folds = {entry.image: entry.fold for entry in datalist.training}
    notes = []
    for one, other in pairs[:_NAMED]:
        fold = folds[one.image]
        if other.image in tested:
            notes.append(
                f"{other.name}, which is to be predicted, shows voxels of {one.name}, which is "
                "trained on: how well it is predicted says nothing of new data"
            )
        elif fold == folds[other.image]:
            kept = "" if fold is None else ": they are in one fold"
            notes.append(f"{one.name} and {other.name} show the same voxels{kept}")
        else:
            notes.append(
                f"{one.name} (fold {fold}) and {other.name} (fold {folds[other.image]}) show the "
                "same voxels: validation Dice is too high; give them one fold, or leave one out"
            )
    if more := len(pairs) - len(notes):
        notes.append(f"{more} more pairs of crops show the same voxels")
    return tuple(notes)


def _size(path: Path) -> object:
    return tuple(file.stat().st_size for file in _files(path))


def _samples(path: Path) -> object:
    parts = []
    for file in _files(path):
        size = file.stat().st_size
        with file.open("rb") as source:
            for k in range(_SAMPLES):
                source.seek(max(0, size - _SAMPLE_BYTES) * k // (_SAMPLES - 1))
                parts.append(source.read(_SAMPLE_BYTES).hex())
    return key_of(parts)


def _content(path: Path) -> object:
    return tuple(file_digest(file) for file in _files(path))


def _files(path: Path) -> list[Path]:
    """The files of a volume, in a fixed order: the headers of a pair may be all alike."""
    return sorted(files_of(path))

"""A sheet of the crops that a person should look at."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cellmap_core import nifti
from cellmap_core.datastats.outliers import Outlier
from cellmap_core.label_table import LabelTable
from cellmap_core.report.contact_sheet import contact_sheet
from cellmap_core.report.crop_pictures import thumbnail
from cellmap_core.sample import WINDOW_VOX, Plane

#: Crops drawn; the table names the rest.
SHOWN = 24
_LIMIT_BYTES = 120_000


def outlier_sheet(
    outliers: Sequence[Outlier], table: LabelTable, grey: tuple[float, float]
) -> bytes:
    """JPEG of the middle section of each crop with its labels on it.

    Parameters
    ----------
    outliers : sequence of Outlier
        The first of them are drawn.
    table : LabelTable
        What the label ids mean.
    grey : tuple of float
        Values drawn black and white, the same for all: so that contrasts can be compared.
    """
    states = [tuple(row) for row in table.states().tolist()]
    pictures = [
        (o.case, _thumbnail(o, states, table.classes, grey), True) for o in outliers[:SHOWN]
    ]
    return contact_sheet(pictures, _LIMIT_BYTES, len(outliers))


def _thumbnail(
    outlier: Outlier,
    states: list[tuple[int, ...]],
    classes: Sequence[str],
    grey: tuple[float, float],
) -> bytes:
    geometry = nifti.read_geometry(outlier.image)
    index = geometry.shape_vox[0] // 2
    plane = Plane(
        axis=0,
        index=index,
        start_vox=(0, 0),
        image=_section(outlier.image, index),
        codes=np.rint(_section(outlier.label, index)).astype(np.intp),
    )
    return thumbnail([plane], states, classes, geometry.voxel_nm, grey)


def _section(path: Path, index: int) -> NDArray[np.generic]:
    """The middle of one section, reading no further than that."""
    sections = nifti.iter_slabs(path, slab_bytes=1, channel=0)
    return _window(next(itertools.islice(sections, index, None))[0])


def _window(section: NDArray[np.generic]) -> NDArray[np.generic]:
    cuts = [slice((n - min(n, WINDOW_VOX)) // 2, None) for n in section.shape]
    return section[cuts[0], cuts[1]][:WINDOW_VOX, :WINDOW_VOX]

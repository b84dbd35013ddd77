"""A picture of one crop: three orthogonal planes of EM, its labels over them.

Drawn with Pillow, because a matplotlib figure takes ten times as long and every crop of a
data set gets a picture.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cellmap_core.alignment import Alignment, Verdict
from cellmap_core.errors import CellmapError
from cellmap_core.grid import Triple
from cellmap_core.label_table import States
from cellmap_core.report.overlay import (
    NOBODY_KNOWS,
    UNKNOWN_COLOUR,
    colour_of,
    grey_range,
    painted,
    shown_class,
    used_states,
)
from cellmap_core.sample import Plane

#: Longest side of a thumbnail in pixels.
THUMBNAIL_PX = 128
#: Colour of what the alignment says.
VERDICT_COLOURS: dict[Verdict, tuple[int, int, int]] = {
    "aligned": (0, 120, 50),
    "shifted": (200, 0, 0),
    "unclear": (150, 100, 0),
    "unlabelled": (90, 90, 90),
}

_WIDTH_PX, _PANEL_PX = 1080, 250
_GAP, _TITLE, _CAPTION, _LEGEND_ROW = 8, 26, 20, 20
_INK, _PAPER = (30, 30, 30), (255, 255, 255)
_AXES = "zyx"
# Among them the scale bar finds a round length.
_ROUND = (1.0, 2.0, 5.0)
# Noise does not pack: 256 colours make a picture a quarter of its size and the encoding twice
# as fast; a higher level would take three times as long for 5 %.
_COLOURS, _PNG_LEVEL = 256, 4


def crop_picture(
    planes: Sequence[Plane],
    states: Sequence[States],
    classes: Sequence[str],
    voxel_nm: Triple,
    title: str,
    alignment: Alignment,
) -> bytes:
    """PNG of the plane of each orientation that holds most class boundaries.

    All three have one scale in nm a pixel; the picture is at most 1080 pixels wide.

    Parameters
    ----------
    planes : sequence of Plane
        Of a ``Sampler``.
    states : sequence of tuple of int
        State of each class by code.
    classes : sequence of str
        Class names; the index settles the colour.
    voxel_nm : tuple of float
        Voxel size (z, y, x).
    title : str
        ``dataset/crop``.
    alignment : Alignment
        Named beside the title.
    """
    chosen = [_fullest(planes, axis) for axis in range(3)]
    shown = shown_class(used_states(states, planes), classes)
    sizes = _sizes(chosen, voxel_nm)
    legend = _legend(chosen, shown, classes)
    rows = _legend_rows(legend)
    bottom = _TITLE + max(h for h, _ in sizes) + _CAPTION
    picture = Image.new("RGB", (_WIDTH_PX, bottom + rows * _LEGEND_ROW + _GAP), _PAPER)
    draw = ImageDraw.Draw(picture)
    _draw_title(draw, title, alignment)
    left, grey = _GAP, grey_range(chosen)
    for plane, size in zip(chosen, sizes, strict=True):
        picture.paste(Image.fromarray(painted(plane, shown, grey, size)), (left, _TITLE))
        _draw_caption(draw, plane, (left, _TITLE + size[0]), size[1])
        left += size[1] + _GAP
    _draw_scale(draw, sizes[0], chosen[0], voxel_nm)
    _draw_legend(draw, legend, bottom)
    return _png(picture.crop((0, 0, max(left, _legend_width(legend), 480), picture.height)))


def thumbnail(
    planes: Sequence[Plane],
    states: Sequence[States],
    classes: Sequence[str],
    voxel_nm: Triple,
    grey: tuple[float, float] | None = None,
) -> bytes:
    """PNG of one xy plane with its labels, the longer side 128 pixels.

    ``grey`` holds the values drawn black and white; None finds them in the plane.
    """
    plane = _fullest(planes, 0)
    height, width = _extent_nm(plane, voxel_nm)
    scale = THUMBNAIL_PX / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    shown = shown_class(used_states(states, planes), classes)
    return _png(Image.fromarray(painted(plane, shown, grey or grey_range([plane]), size)))


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with Pillow: the same on every machine."""
    return ImageFont.load_default(size)


def _png(picture: Image.Image) -> bytes:
    sink = io.BytesIO()
    few = picture.quantize(_COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.save(sink, "PNG", compress_level=_PNG_LEVEL)
    return sink.getvalue()


def _fullest(planes: Sequence[Plane], axis: int) -> Plane:
    """The plane of one orientation with most changes of label; the middle one where there is none.

    Raises
    ------
    CellmapError
        No plane of that orientation.
    """
    some = [p for p in planes if p.axis == axis]
    if not some:
        raise CellmapError(f"no plane across {_AXES[axis]}", "planes of all three orientations")
    middle = some[len(some) // 2]
    return max([middle, *some], key=_changes)


def _changes(plane: Plane) -> int:
    if plane.codes is None:
        return 0
    return int((plane.codes[1:] != plane.codes[:-1]).sum())


def _extent_nm(plane: Plane, voxel_nm: Triple) -> tuple[float, float]:
    rows, columns = (v for a, v in enumerate(voxel_nm) if a != plane.axis)
    return plane.image.shape[0] * rows, plane.image.shape[1] * columns


def _sizes(planes: Sequence[Plane], voxel_nm: Triple) -> list[tuple[int, int]]:
    """Height and width of each panel in pixels, at one scale."""
    extents = [_extent_nm(p, voxel_nm) for p in planes]
    room = _WIDTH_PX - _GAP * (len(planes) + 1)
    scale = min(_PANEL_PX / max(h for h, _ in extents), room / sum(w for _, w in extents))
    return [(max(1, math.floor(h * scale)), max(1, math.floor(w * scale))) for h, w in extents]


def _draw_title(draw: ImageDraw.ImageDraw, title: str, alignment: Alignment) -> None:
    draw.text((_GAP, 5), title, _INK, font(14))
    left = _GAP + draw.textlength(title, font(14)) + 2 * _GAP
    draw.text((left, 5), alignment.summary(), VERDICT_COLOURS[alignment.verdict], font(14))


def _draw_caption(
    draw: ImageDraw.ImageDraw, plane: Plane, corner: tuple[int, int], width: int
) -> None:
    down, across = (name for a, name in enumerate(_AXES) if a != plane.axis)
    place = f"{_AXES[plane.axis]} = {plane.index}"
    long = f"{down} down, {across} across, at {place}"
    text = long if draw.textlength(long, font(11)) <= width else f"{down}{across}, {place}"
    draw.text((corner[0], corner[1] + 3), text, _INK, font(11))


def _draw_scale(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], plane: Plane, voxel_nm: Triple
) -> None:
    """A bar of a round length, about a quarter of the first panel wide, at its lower left."""
    per_px = _extent_nm(plane, voxel_nm)[1] / size[1]
    length = _round_below(per_px * max(size[1], 8) / 3)
    text = f"{length:g} nm"
    bar, foot = round(length / per_px), _TITLE + size[0] - 8
    left = _GAP + 8
    wide = max(bar, round(draw.textlength(text, font(12))))
    draw.rectangle((left - 4, foot - 22, left + wide + 4, foot + 4), (0, 0, 0))
    draw.rectangle((left, foot - 3, left + bar - 1, foot), _PAPER)
    draw.text((left, foot - 20), text, _PAPER, font(12))


def _round_below(value: float) -> float:
    power: float = 10.0 ** math.floor(math.log10(value))
    return max(r * power for r in _ROUND if r * power <= value)


def _legend(
    planes: Sequence[Plane], shown: NDArray[np.int16], classes: Sequence[str]
) -> list[tuple[str, int]]:
    """Name and index of what is drawn in these planes, classes in their order."""
    drawn = {int(i) for p in planes if p.codes is not None for i in shown[np.unique(p.codes)]}
    entries = [(name, i) for i, name in enumerate(classes) if i in drawn]
    return [*entries, ("unknown", NOBODY_KNOWS)] if NOBODY_KNOWS in drawn else entries


def _places(legend: Sequence[tuple[str, int]]) -> list[tuple[int, int]]:
    """Left edge and row of each entry."""
    places, left, row = [], _GAP, 0
    for name, _ in legend:
        width = 18 + math.ceil(font(12).getlength(name)) + 14
        if left + width > _WIDTH_PX and left > _GAP:
            left, row = _GAP, row + 1
        places.append((left, row))
        left += width
    return places


def _legend_rows(legend: Sequence[tuple[str, int]]) -> int:
    return _places(legend)[-1][1] + 1 if legend else 0


def _legend_width(legend: Sequence[tuple[str, int]]) -> int:
    ends = [
        left + 32 + math.ceil(font(12).getlength(name))
        for (name, _), (left, _) in zip(legend, _places(legend), strict=True)
    ]
    return max(ends, default=0)


def _draw_legend(draw: ImageDraw.ImageDraw, legend: Sequence[tuple[str, int]], top: int) -> None:
    for (name, index), (left, row) in zip(legend, _places(legend), strict=True):
        y = top + row * _LEGEND_ROW + 3
        box = (left, y, left + 12, y + 12)
        if index == NOBODY_KNOWS:
            draw.rectangle(box, (90, 90, 90))
            for start in (-8, 0, 8):
                line = (max(left, left + start), y + 12 + min(0, start))
                draw.line((*line, min(left + 12, left + 12 + start), y + max(0, start)),
                          UNKNOWN_COLOUR, 2)  # fmt: skip
        else:
            draw.rectangle(box, colour_of(index))
        draw.text((left + 18, y - 2), name, _INK, font(12))

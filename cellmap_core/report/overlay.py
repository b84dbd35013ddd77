"""Class colours laid over EM: one plane as pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cellmap_core.classes import UNIONS
from cellmap_core.label_table import PRESENT, UNKNOWN, States
from cellmap_core.sample import Plane

_Pixels = NDArray[np.uint8]

# Chosen one by one, each as far in CIELAB from those before it as it can be, among those that
# are neither grey, dark nor pale.
_HEX = """
00b4ff ff3c3c 3ce63c ffd200 ff4bff 00ffe1 f096c3 1e69ff 5a782d ffb478 ff0087 782dff
964bb4 c3f000 ff8700 3cc369 b44b4b e1f078 008769 c3b4ff 00e1ff 967800 b4f0b4 c30096
5aa500 2d69c3 a54b00 b42d69 d20f4b 962dd2 875a96 d2c378 ffb43c ff87f0 9687ff ff785a
879600 00ff87 ff4b00 96ff78 ffa596 96ff00 00ff00 00780f 00ffb4 d200ff 965a2d 1e4bff
"""
#: Colour by class index, the same in every picture.
PALETTE: tuple[tuple[int, int, int], ...] = tuple(
    (int(c[:2], 16), int(c[2:4], 16), int(c[4:], 16)) for c in _HEX.split()
)
#: Of the stripes over voxels whose class nobody knows.
UNKNOWN_COLOUR = (150, 150, 165)
#: In the place of a class index: no class is present, and none (or some) may be.
NOTHING, NOBODY_KNOWS = -1, -2

_FILL = 0.25
_DARKER = 0.6
_STRIPES = 0.55
_STRIPE_PX = 4


def colour_of(index: int) -> tuple[int, int, int]:
    """Colour of a class by its index among the classes asked.

    Beyond the palette the colours come again, darker each time.
    """
    times, place = divmod(index, len(PALETTE))
    red, green, blue = (round(part * _DARKER**times) for part in PALETTE[place])
    return red, green, blue


def shown_class(states: Sequence[States], classes: Sequence[str]) -> NDArray[np.int16]:
    """For each code the index of the class that is drawn, ``NOTHING`` or ``NOBODY_KNOWS``.

    Of several classes present the one with the fewest parts is drawn, because it lies inside
    the others (nucleolus, then nucleus, then cell); of equals, the last. A class that is
    unknown in every code was not annotated in this crop, and leaves no mark.
    """
    table = np.array(states, np.uint8).reshape(-1, len(classes))
    annotated = (table != UNKNOWN).any(axis=0)
    parts = [len(UNIONS.get(name, (name,))) for name in classes]
    # The last in this order is drawn.
    order = sorted(range(len(classes)), key=lambda i: (-parts[i], i))
    shown = np.full(len(table), NOTHING, np.int16)
    shown[(table[:, annotated] == UNKNOWN).any(axis=1)] = NOBODY_KNOWS
    for i in order:
        shown[table[:, i] == PRESENT] = i
    return shown


def used_states(states: Sequence[States], planes: Sequence[Plane]) -> tuple[States, ...]:
    """The look-up with every class UNKNOWN in the codes that do not occur in the planes.

    A table shared by all crops has combinations this crop knows nothing of; they must not
    decide which classes are annotated in it.
    """
    seen = np.zeros(len(states), bool)
    for plane in planes:
        if plane.codes is not None:
            seen[np.unique(plane.codes)] = True
    nothing = (UNKNOWN,) * (len(states[0]) if len(states) else 0)
    return tuple(row if used else nothing for row, used in zip(states, seen, strict=True))


def grey_range(planes: Sequence[Plane]) -> tuple[float, float]:
    """The image values drawn black and white: percentiles 0.5 and 99.5 of what is not blank."""
    values = np.concatenate([p.image[::2, ::2].ravel() for p in planes])
    some = values[values != 0]
    low, high = np.percentile(some if some.size else values, (0.5, 99.5))
    return float(low), max(float(high), float(low) + 1e-6)


def painted(
    plane: Plane, shown: NDArray[np.int16], grey: tuple[float, float], size: tuple[int, int]
) -> _Pixels:
    """One plane as pixels, shape (height, width, 3).

    Parameters
    ----------
    plane : Plane
        What to draw.
    shown : ndarray of int
        Class drawn for each code, of ``shown_class``.
    grey : tuple of float
        Image values drawn black and white.
    size : tuple of int
        Height and width in pixels; it settles the aspect of the voxels.
    """
    pixels = np.repeat(_grey_pixels(plane.image, grey, size)[..., None], 3, axis=2)
    if plane.codes is None:
        return pixels
    rows, columns = (_nearest(n, m) for n, m in zip(plane.codes.shape, size, strict=True))
    drawn = shown[plane.codes[np.ix_(rows, columns)]]
    colours, alphas = _paint(drawn)
    mixed = pixels + (colours - pixels) * alphas[..., None]
    return mixed.astype(np.uint8)


def _grey_pixels(image: NDArray[Any], grey: tuple[float, float], size: tuple[int, int]) -> _Pixels:
    low, high = grey
    values = (image.astype(np.float32) - low) * np.float32(255 / (high - low))
    picture = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    # Smaller: the mean of what falls on a pixel. Larger: smooth, as a microscope shows it.
    shrinks = size[0] < image.shape[0] or size[1] < image.shape[1]
    how = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
    return np.asarray(picture.resize((size[1], size[0]), how))


def _nearest(n: int, pixels: int) -> NDArray[np.int64]:
    return ((np.arange(pixels) + 0.5) * n / pixels).astype(np.int64)


def _paint(drawn: NDArray[np.int16]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Colour and opacity of each pixel: classes filled and outlined, the unknown striped."""
    lowest = min(NOTHING, NOBODY_KNOWS)
    top = max(int(drawn.max()), 0) + 1
    colours = np.zeros((top - lowest, 3), np.float32)
    alphas = np.zeros(top - lowest, np.float32)
    for i in range(top):
        colours[i], alphas[i] = colour_of(i), _FILL
    # The special numbers are negative and stand, as Python counts, at the end.
    colours[NOBODY_KNOWS], alphas[NOBODY_KNOWS] = UNKNOWN_COLOUR, _STRIPES
    alpha = alphas[drawn]
    rows, columns = np.ogrid[: drawn.shape[0], : drawn.shape[1]]
    gap = ((rows + columns) // _STRIPE_PX) % 2 == 1
    alpha[(drawn == NOBODY_KNOWS) & gap] = 0
    alpha[_outline(drawn)] = 1
    return colours[drawn], alpha


def _outline(drawn: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Pixels of a class beside something larger: one line a boundary, in the smaller's colour."""
    counts = np.bincount((drawn - NOBODY_KNOWS).ravel())
    # What is no class is larger than any.
    counts[:-NOBODY_KNOWS] = drawn.size + 1
    rank = np.argsort(np.argsort(-counts, kind="stable")).astype(np.int16)[drawn - NOBODY_KNOWS]
    edge = np.zeros(drawn.shape, bool)
    down, right = rank[1:] - rank[:-1], rank[:, 1:] - rank[:, :-1]
    edge[:-1] |= down < 0
    edge[1:] |= down > 0
    edge[:, :-1] |= right < 0
    edge[:, 1:] |= right > 0
    return edge & (drawn >= 0)

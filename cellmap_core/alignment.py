"""Whether the labels lie on the structures of the image.

Where label and EM belong together, class boundaries run along edges and dark lines of the
image (every organelle has a membrane, and membranes are stained dark). Moving the labels
against the image lowers the edge strength met by the boundaries in every direction; labels
paired with the wrong place show their best place elsewhere, or none. The cross-correlation
over all shifts is the classic registration by edges (Canny's gradient magnitude, and
darkness against the surroundings for lines), computed with the fast Fourier transform.

Planes of the three orientations show in a tenth of a second that labels are in place. Where
they do not, a block of the crop's middle is correlated in all three dimensions: of a shift
along several axes a plane sees its own two alone, the block sees all.

A false alarm costs the trust in every later one: ``shifted`` needs one sharp peak that no
other shift comes near.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from cellmap_core.boundaries import ClassBits, boundaries, edge_strength
from cellmap_core.grid import Triple
from cellmap_core.label_table import UNKNOWN, States
from cellmap_core.models import Frozen
from cellmap_core.sample import Block, Plane

Verdict = Literal["aligned", "shifted", "unclear", "unlabelled"]

#: Largest shift looked at along each axis, in voxels.
REACH_VOX = 16
# Labels drawn by hand are off by a voxel or two; that is no wrong pairing.
_TOLERANCE_VOX = 2
# Shifts this near a peak belong to it.
_PEAK_VOX = 4
# Over pure noise the best of all shifts reaches 4 deviations, and hardly ever 5.
_MIN_PROMINENCE = 5.0
# Height of the highest other place, over that of the peak. Parallel membranes have many places.
_MAX_RIVAL = 0.88
# Boundaries that meet less than a quarter of a deviation more edge than at other shifts are not
# seen in the image, however sharp the peak.
_MIN_HEIGHT = 0.25
# Height at no shift, over that of the peak, up to which the labels may be called shifted.
_MAX_AT_ZERO = 0.8
# Voxels this unequal are sections of a knife: one does not continue the other's edges.
_MAX_ANISOTROPY = 3.0
# Of a shift that leaves fewer of the boundaries than this in sight chance says too much.
_MIN_STAYING = 0.5
# Labels drawn too large fit as well moved the other way; what is shifted does not.
_MAX_OPPOSITE = 0.5
# Fewer boundary voxels than these (about one small vesicle in each plane) tell nothing.
_MIN_BOUNDARY = 300.0
_MIN_SHIFTS = 100
# A block has as many independent shifts as voxels in reach, so that chance comes higher; it has
# to be wide enough that a shift leaves most of it, and to hold more boundary.
_MIN_BLOCK_PROMINENCE = 6.5
_MIN_BLOCK_VOX = 3 * REACH_VOX
_MIN_BLOCK_BOUNDARY = 3000.0

_Map = NDArray[np.float64]


class Alignment(Frozen):
    """What the boundaries say of a crop's labels.

    Attributes
    ----------
    verdict : str
        ``aligned``, ``shifted``, ``unclear`` (too little or too faint to tell) or
        ``unlabelled`` (no voxel of any class is known).
    shift_nm : tuple of float or None
        How far the labels lie off the structures (z, y, x); only where ``shifted``. An axis
        that is not in ``axes`` is 0.
    score_zero, score_best : float
        Mean edge strength on the class boundaries, in deviations of the image's own, as the
        labels are and at the best shift.
    prominence : float
        Height of the best shift over the median of all, in (robust) deviations.
    margin : float
        How much of that height is left over the best shift elsewhere, 0 to 1.
    axes : str
        The axes along which a shift can be seen.
    """

    verdict: Verdict
    shift_nm: Triple | None = None
    score_zero: float = 0.0
    score_best: float = 0.0
    prominence: float = 0.0
    margin: float = 0.0
    axes: str = "zyx"

    def summary(self) -> str:
        """One line for titles and warnings."""
        if self.verdict == "shifted" and self.shift_nm is not None:
            parts = [
                f"{axis} {nm:+.0f}" for axis, nm in zip("zyx", self.shift_nm, strict=True) if nm
            ]
            return f"labels shifted against the EM: {', '.join(parts)} nm"
        if self.verdict == "unclear":
            return "alignment unclear"
        return self.verdict


def alignment(
    planes: Sequence[Plane],
    states: Sequence[States],
    voxel_nm: Triple,
    block: Block | None = None,
) -> Alignment:
    """Find whether the labels are shifted against the image.

    Parameters
    ----------
    planes : sequence of Plane
        Of all three orientations, as a ``Sampler`` keeps them.
    states : sequence of tuple of int
        The state of each class (ABSENT, PRESENT or UNKNOWN) by code, of the codes in the crop.
    voxel_nm : tuple of float
        Voxel size (z, y, x).
    block : Block or None
        The middle of the crop, looked at where the planes do not find the labels in place.
    """
    labelled = [p for p in planes if p.codes is not None]
    if not labelled or not any(s != UNKNOWN for row in states for s in row):
        return Alignment(verdict="unlabelled")
    table = ClassBits(states)
    told = _by_planes(labelled, table, voxel_nm)
    if told.verdict != "aligned" and block is not None and _isotropic(voxel_nm):
        closer = _by_block(block, table, voxel_nm)
        return told if closer.verdict == "unclear" else closer
    return told


def _by_planes(planes: Sequence[Plane], table: ClassBits, voxel_nm: Triple) -> Alignment:
    """The verdict of planes, each of which sees shifts along its own two axes."""
    total: Any = 0
    count: Any = 0
    most, axes = 0.0, set[int]()
    for axis in range(3):
        inside = [a for a in range(3) if a != axis]
        if not _isotropic([voxel_nm[a] for a in inside]):
            continue
        windows = [(p.image, np.asarray(p.codes)) for p in planes if p.axis == axis]
        strength, number = _tally(windows, table)
        # The same for any shift off the plane.
        total = total + np.expand_dims(strength, axis)
        count = count + np.expand_dims(number, axis)
        if number.any():
            most, axes = max(most, float(number.max())), axes.union(inside)
    if most < _MIN_BOUNDARY:
        return Alignment(verdict="unclear")
    names = "".join("zyx"[a] for a in sorted(axes))
    return _judge(total, count, voxel_nm, names)


def _by_block(block: Block, table: ClassBits, voxel_nm: Triple) -> Alignment:
    """The verdict of a block, which sees shifts along all axes at once."""
    if block.codes is None or min(block.codes.shape) < _MIN_BLOCK_VOX:
        return Alignment(verdict="unclear")
    strength, number = _tally([(block.image, block.codes)], table)
    if number.max() < _MIN_BLOCK_BOUNDARY:
        return Alignment(verdict="unclear")
    return _judge(strength, number, voxel_nm, "zyx", _MIN_BLOCK_PROMINENCE)


def _isotropic(voxel_nm: Sequence[float]) -> bool:
    return max(voxel_nm) <= _MAX_ANISOTROPY * min(voxel_nm)


def _tally(
    windows: Sequence[tuple[NDArray[Any], NDArray[Any]]], table: ClassBits
) -> tuple[_Map, _Map]:
    """Sum of edge strength under the shifted boundaries, and their number, by shift.

    The windows (image, codes) are planes or blocks, all of one shape. A boundary shifted out
    of its window does not count. Both maps have shape (2·reach + 1) along each axis, no shift
    in the middle.
    """
    shape = windows[0][0].shape
    reach = [min(REACH_VOX, n // 3) for n in shape]
    padded = [fft.next_fast_len(n + r, real=True) for n, r in zip(shape, reach, strict=True)]
    spectrum: Any = 0
    number = np.zeros(shape)
    for image, codes in windows:
        touched = boundaries(codes, table)
        if touched.any():
            edges = fft.rfftn(edge_strength(image), padded)
            spectrum = spectrum + edges * np.conj(fft.rfftn(touched, padded))
            number += touched
    if not number.any():
        nothing = np.zeros([2 * r + 1 for r in reach])
        return nothing, nothing
    product = np.roll(fft.irfftn(spectrum, padded), reach, range(len(shape)))
    window = product[tuple(slice(2 * r + 1) for r in reach)]
    return window.astype(np.float64), _staying(number, reach)


def _staying(number: _Map, reach: Sequence[int]) -> _Map:
    """How much of ``number`` stays inside the window, by shift (from a summed-area table)."""
    area = np.pad(number, [(1, 0)] * number.ndim)
    ends = []
    for axis, (n, r) in enumerate(zip(number.shape, reach, strict=True)):
        area = area.cumsum(axis)
        shift = np.arange(-r, r + 1)
        ends.append((np.minimum(n, n - shift), np.maximum(0, -shift)))
    result: _Map = np.zeros([2 * r + 1 for r in reach])
    for corner in itertools.product((0, 1), repeat=number.ndim):
        part = area[np.ix_(*(end[side] for end, side in zip(ends, corner, strict=True)))]
        result += -part if sum(corner) % 2 else part
    return result


def _judge(
    strength: _Map,
    number: _Map,
    voxel_nm: Triple,
    axes: str,
    min_prominence: float = _MIN_PROMINENCE,
) -> Alignment:
    """The verdict from edge strength and number of boundaries by 3-D shift (none in the middle)."""
    # Of fewer boundaries the mean scatters more: weighted so, all shifts scatter alike.
    weight = np.sqrt(number / number.max())
    seen = number >= _MIN_STAYING * number.max()
    score = strength / np.maximum(number, 1) * weight
    score[~seen] = np.median(score[seen])
    middle = tuple(n // 2 for n in score.shape)
    best = tuple(int(i) for i in np.unravel_index(int(score.argmax()), score.shape))
    # Boundaries and labels move oppositely: the boundaries belong where the labels are not.
    shift = tuple(m - b for m, b in zip(middle, best, strict=True))
    level = float(np.median(score[seen]))
    deviation = 1.4826 * float(np.median(np.abs(score[seen] - level)))
    height = float(score[best]) - level
    others = score.copy()
    others[tuple(slice(max(0, b - _PEAK_VOX), b + _PEAK_VOX + 1) for b in best)] = level
    rival = float(others.max()) - level
    told = Alignment(
        verdict="unclear",
        score_zero=float(score[middle]),
        score_best=float(score[best]),
        prominence=height / deviation if deviation > 0 else 0.0,
        margin=1 - rival / height if height > 0 else 0.0,
        axes=axes,
    )
    sharp = told.prominence >= min_prominence and told.margin >= 1 - _MAX_RIVAL
    if score.size < _MIN_SHIFTS or height < _MIN_HEIGHT or not sharp:
        return told
    if max(abs(s) for s in shift) <= _TOLERANCE_VOX:
        return told.model_copy(update={"verdict": "aligned"})
    opposite = tuple(2 * m - b for m, b in zip(middle, best, strict=True))
    if told.score_zero - level > _MAX_AT_ZERO * height:
        return told
    if float(score[opposite]) - level > _MAX_OPPOSITE * height:
        return told
    z, y, x = (s * v for s, v in zip(shift, voxel_nm, strict=True))
    return told.model_copy(update={"verdict": "shifted", "shift_nm": (z, y, x)})

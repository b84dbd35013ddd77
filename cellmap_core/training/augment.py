"""Augmentation fit for EM: orientations, intensity, blur, noise, missing sections.

What happens to a patch depends on the training's seed, the step and the patch's number in it
alone, so a step is the same however its patches are spread over processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cellmap_core.grid import Shape, Triple

if TYPE_CHECKING:
    import torch

# A quarter turn between axes whose voxels differ by more than this would deform.
_SAME_VOXEL = 1.05
# Of a patch's intensities, in units of the normalised image (stdev 1).
_CONTRAST, _BRIGHTNESS, _NOISE = (0.8, 1.25), 0.2, 0.2
_BLUR_VOX = (0.4, 1.2)
# How often: blur (focus), noise (dwell time), a section lost in milling or imaging.
_BLURRED, _NOISY, _SECTION_LOST = 0.15, 0.5, 0.05
_LOST_SECTIONS = 2


@dataclass(frozen=True)
class Orientation:
    """One of the ways a patch can lie: quarter turns in one plane, then flips."""

    plane: tuple[int, int] | None
    turns: int
    flips: tuple[int, ...]

    def apply(self, patch: NDArray[Any]) -> NDArray[Any]:
        """Turn a patch (z, y, x); a view, its shape unchanged."""
        if self.plane is not None and self.turns:
            patch = np.rot90(patch, self.turns, self.plane)
        return np.flip(patch, self.flips) if self.flips else patch


def planes(patch_vox: Shape, voxel_nm: Triple) -> tuple[tuple[int, int], ...]:
    """Pairs of axes between which a quarter turn keeps the voxels and the patch's shape."""
    return tuple(
        (a, b)
        for a, b in ((0, 1), (0, 2), (1, 2))
        if patch_vox[a] == patch_vox[b] and _same(voxel_nm[a], voxel_nm[b])
    )


def section_axes(voxel_nm: Triple) -> tuple[int, ...]:
    """Axes along which sections may be lost: the coarsest; all of them where they are alike.

    FIB-SEM mills along one axis, but its volumes are often turned afterwards.
    """
    coarsest = max(voxel_nm)
    return tuple(axis for axis in range(3) if _same(voxel_nm[axis], coarsest))


def _same(a: float, b: float) -> bool:
    return max(a, b) <= _SAME_VOXEL * min(a, b)


def draw_orientation(rng: np.random.Generator, legal: tuple[tuple[int, int], ...]) -> Orientation:
    """Draw an orientation; EM has no up and down, so each axis flips half of the time."""
    flips = tuple(axis for axis in range(3) if rng.random() < 0.5)
    if not legal:
        return Orientation(None, 0, flips)
    return Orientation(legal[int(rng.integers(len(legal)))], int(rng.integers(4)), flips)


@dataclass(frozen=True)
class Change:
    """What happens to the intensities of one patch.

    Attributes
    ----------
    contrast, brightness : float
        Factor and summand.
    blur_vox : float
        Deviation of a Gaussian; 0: none.
    noise : float
        Deviation; 0: none.
    noise_seed : int
        Of the noise, on the device where the patch is.
    lost : tuple or None
        Axis, first and end of the sections that are black.
    """

    contrast: float
    brightness: float
    blur_vox: float
    noise: float
    noise_seed: int
    lost: tuple[int, int, int] | None


def draw_change(rng: np.random.Generator, patch_vox: Shape, axes: Sequence[int]) -> Change:
    """Draw what happens to a patch; ``axes`` are those that may lose sections."""
    low, high = _CONTRAST
    contrast = math.exp(rng.uniform(math.log(low), math.log(high)))
    brightness = rng.uniform(-_BRIGHTNESS, _BRIGHTNESS)
    blur = rng.uniform(*_BLUR_VOX) if rng.random() < _BLURRED else 0.0
    noise = rng.uniform(0, _NOISE) if rng.random() < _NOISY else 0.0
    seed = int(rng.integers(1 << 62))
    lost = None
    if rng.random() < _SECTION_LOST:
        axis = int(rng.choice(np.asarray(axes)))
        first = int(rng.integers(patch_vox[axis]))
        lost = (axis, first, min(patch_vox[axis], first + int(rng.integers(_LOST_SECTIONS)) + 1))
    return Change(contrast, brightness, blur, noise, seed, lost)


def alter(patch: torch.Tensor, change: Change, black: float) -> torch.Tensor:
    """Change the intensities of a normalised patch (z, y, x), on its device and in place.

    Parameters
    ----------
    patch : Tensor of float32
        Shape (z, y, x).
    change : Change
        What to do.
    black : float
        Intensity of a lost section.
    """
    import torch

    patch.mul_(change.contrast).add_(change.brightness)
    if change.blur_vox:
        patch.copy_(_blurred(patch, change.blur_vox))
    if change.noise:
        generator = torch.Generator(device=patch.device).manual_seed(change.noise_seed)
        noise = torch.empty_like(patch).normal_(0, change.noise, generator=generator)
        patch.add_(noise)
    if change.lost is not None:
        axis, first, end = change.lost
        patch.narrow(axis, first, end - first).fill_(black)
    return patch


def _blurred(patch: torch.Tensor, sigma_vox: float) -> torch.Tensor:
    """Convolved with a Gaussian, axis by axis; its border voxels stand for what lies beyond."""
    import torch

    reach = math.ceil(3 * sigma_vox)
    weights = [math.exp(-0.5 * (n / sigma_vox) ** 2) for n in range(reach + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    for axis in range(3):
        size = patch.shape[axis]
        first, last = patch.narrow(axis, 0, 1), patch.narrow(axis, size - 1, 1)
        wide = torch.cat([*(first,) * reach, patch, *(last,) * reach], dim=axis)
        # Shifted sums: torch's convolution of one channel is several times slower on a CPU.
        patch = patch * (weights[0] / total)
        for n in range(1, reach + 1):
            for start in (reach - n, reach + n):
                patch.add_(wide.narrow(axis, start, size), alpha=weights[n] / total)
    return patch

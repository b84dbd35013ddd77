"""Augmentation: orientations that the voxel size allows, and small changes of intensity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cellmap_core.grid import Shape, Triple

if TYPE_CHECKING:
    import torch

# A quarter turn between axes whose voxels differ by more than this would deform.
_SAME_VOXEL = 1.05


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
        if patch_vox[a] == patch_vox[b]
        and max(voxel_nm[a], voxel_nm[b]) <= _SAME_VOXEL * min(voxel_nm[a], voxel_nm[b])
    )


def draw_orientation(rng: np.random.Generator, legal: tuple[tuple[int, int], ...]) -> Orientation:
    """Draw an orientation; EM has no up and down, so each axis flips half of the time."""
    flips = tuple(axis for axis in range(3) if rng.random() < 0.5)
    if not legal:
        return Orientation(None, 0, flips)
    return Orientation(legal[int(rng.integers(len(legal)))], int(rng.integers(4)), flips)


def jitter(image: torch.Tensor, seed: int) -> torch.Tensor:
    """Change contrast, brightness and noise of normalised patches (B, 1, z, y, x).

    The same seed gives the same change on the same kind of device.
    """
    import torch

    generator = torch.Generator(device=image.device).manual_seed(seed)

    def draw(low: float, high: float) -> torch.Tensor:
        unit = torch.rand((image.shape[0], 1, 1, 1, 1), generator=generator, device=image.device)
        return low + (high - low) * unit

    noise = torch.randn(image.shape, generator=generator, device=image.device)
    return image * draw(0.9, 1.1) + draw(-0.1, 0.1) + noise * draw(0.0, 0.1)

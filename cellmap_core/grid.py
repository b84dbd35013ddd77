"""Voxel grids and regions of interest in nanometres.

A grid's translation is the *centre* of its first voxel (OME-NGFF). Two grids are compared
at voxel *edges*: an array at 8 nm and one at 4 nm that start at the same edge have
translations that differ by 2 nm. All triples are z, y, x.
"""

from __future__ import annotations

import math

from cellmap_core.errors import MetadataError
from cellmap_core.models import Frozen

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]

# Metadata are decimal fractions of a nanometre (2.62, 5.24); a thousandth of a voxel is
# far below any annotation and far above their rounding.
EDGE_TOLERANCE_VOX = 1e-3


def count_vox(size_nm: float, voxel_nm: float) -> int:
    """Voxels that an extent rounds to, at least one; a half counts up, whatever floats make it."""
    return max(1, math.floor(size_nm / voxel_nm + 0.5 + EDGE_TOLERANCE_VOX))


class Box(Frozen):
    """A region of interest, by its low and high edges in nm (z, y, x)."""

    low_nm: Triple
    high_nm: Triple

    @property
    def size_nm(self) -> Triple:
        """Extent along each axis in nm."""
        z, y, x = (high - low for low, high in zip(self.low_nm, self.high_nm, strict=True))
        return z, y, x

    def contains(self, other: Box) -> bool:
        """Whether the other lies inside this one, edges included."""
        low = zip(self.low_nm, other.low_nm, strict=True)
        high = zip(self.high_nm, other.high_nm, strict=True)
        return all(own <= its for own, its in low) and all(own >= its for own, its in high)

    def intersects(self, other: Box) -> bool:
        """Whether the two share a volume (touching edges do not count)."""
        pairs = zip(self.low_nm, self.high_nm, other.low_nm, other.high_nm, strict=True)
        return all(
            low < other_high and other_low < high for low, high, other_low, other_high in pairs
        )


class Grid(Frozen):
    """A regular voxel grid.

    Attributes
    ----------
    shape_vox : tuple of int
        Number of voxels (z, y, x), each at least 1.
    voxel_nm : tuple of float
        Voxel size in nm (z, y, x), each above 0.
    translation_nm : tuple of float
        Centre of the first voxel in nm (z, y, x).
    """

    shape_vox: Shape
    voxel_nm: Triple
    translation_nm: Triple

    def model_post_init(self, _context: object) -> None:
        """Refuse a grid that has no volume."""
        if min(self.shape_vox) < 1 or not all(v > 0 and math.isfinite(v) for v in self.voxel_nm):
            raise MetadataError(
                f"a grid of shape {self.shape_vox} and voxel size {self.voxel_nm} nm",
                "at least one voxel and a positive, finite voxel size on each axis",
            )

    @property
    def box(self) -> Box:
        """The volume the voxels fill, edge to edge."""
        axes = zip(self.shape_vox, self.voxel_nm, self.translation_nm, strict=True)
        edges = [(t - v / 2, t - v / 2 + n * v) for n, v, t in axes]
        (z0, z1), (y0, y1), (x0, x1) = edges
        return Box(low_nm=(z0, y0, x0), high_nm=(z1, y1, x1))

    def resampled(self, voxel_nm: Triple) -> Grid:
        """The grid of another voxel size that starts at the same edge and keeps the extent.

        The number of voxels is the extent over the voxel size, rounded: what rounding leaves
        out or adds is less than half a voxel, the part that could not be told by majority.
        """
        box = self.box
        counts = [
            count_vox(n * own, v)
            for n, own, v in zip(self.shape_vox, self.voxel_nm, voxel_nm, strict=True)
        ]
        z, y, x = (low + v / 2 for low, v in zip(box.low_nm, voxel_nm, strict=True))
        return Grid(
            shape_vox=(counts[0], counts[1], counts[2]), voxel_nm=voxel_nm, translation_nm=(z, y, x)
        )

    def cut(self, start_vox: Shape, stop_vox: Shape) -> Grid:
        """The part of the grid from ``start_vox`` up to ``stop_vox`` (may lie outside it)."""
        n = [stop - start for start, stop in zip(start_vox, stop_vox, strict=True)]
        t = [
            origin + start * v
            for origin, start, v in zip(self.translation_nm, start_vox, self.voxel_nm, strict=True)
        ]
        return Grid(
            shape_vox=(n[0], n[1], n[2]), voxel_nm=self.voxel_nm, translation_nm=(t[0], t[1], t[2])
        )

    def edge_index(self, low_nm: Triple) -> Triple:
        """Index of an edge position on this grid: 0 is the grid's own low edge."""
        z, y, x = (
            (edge - own) / v
            for edge, own, v in zip(low_nm, self.box.low_nm, self.voxel_nm, strict=True)
        )
        return z, y, x

    def aligned_with(self, other: Grid) -> bool:
        """Whether both have the same voxel size and their edges fall on each other."""
        same_size = all(
            math.isclose(a, b, rel_tol=1e-6)
            for a, b in zip(self.voxel_nm, other.voxel_nm, strict=True)
        )
        offsets = self.edge_index(other.box.low_nm)
        return same_size and all(abs(o - round(o)) < EDGE_TOLERANCE_VOX for o in offsets)

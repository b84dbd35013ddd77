"""Image geometry: where the voxels of a NIfTI file lie, by its full affine.

World coordinates are those of NIfTI: x to the right, y to the front, z up. File axes are
i, j, k; arrays hold them as k, j, i, which is z, y, x for the files that this project writes.
"""

from __future__ import annotations

import itertools
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from cellmap_core.errors import GeometryError, NiftiError
from cellmap_core.grid import Grid, Shape, Triple
from cellmap_core.models import Frozen

#: Two grids are one where no corner of one is farther than this from that of the other.
CORNER_TOLERANCE_VOX = 0.1

Affine = tuple[tuple[float, float, float, float], ...]

# Columns whose volume is a smaller part than this of that of a box have no usable inverse.
_MIN_VOLUME = 1e-6


class ArrayOrder(Frozen):
    """How to bring an array (k, j, i of the file) into ascending world axes z, y, x.

    Attributes
    ----------
    axes : tuple of int
        For each world axis z, y, x the array axis that runs along it.
    flipped : tuple of bool
        Whether that axis runs against the world axis.
    grid : Grid
        The voxels in that order, in nm; of an oblique image with translation 0.
    oblique : bool
        The image's axes are not those of the world. Its array stays as it is, and its grid has
        voxel sizes, but no place in the world.
    """

    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]
    grid: Grid
    oblique: bool = False

    def reordered(self, part: NDArray[Any]) -> NDArray[Any]:
        """Return a view of a part of the array with its axes in this order."""
        turned = tuple(slice(None, None, -1 if flipped else 1) for flipped in self.flipped)
        return part.transpose(self.axes)[turned]

    def place(self, part: tuple[slice, ...]) -> tuple[slice, ...]:
        """Return where a part of the array lies in the array in this order."""
        chosen = [part[axis] for axis in self.axes]
        return tuple(
            slice(n - s.stop, n - s.start) if flipped else s
            for s, flipped, n in zip(chosen, self.flipped, self.grid.shape_vox, strict=True)
        )


class ImageGeometry(Frozen):
    """Shape and affine of one volume.

    Attributes
    ----------
    shape_vox : tuple of int
        Shape of the array, (k, j, i) of the file.
    affine : tuple of tuple of float
        4 × 4, from the index (i, j, k) of a voxel to the world position (x, y, z) of its centre,
        in the unit of the file.
    unit_nm : float
        That unit in nm.
    """

    shape_vox: Shape
    affine: Affine
    unit_nm: float = 1.0

    def model_post_init(self, _context: object) -> None:
        """Refuse an affine that gives the voxels no volume."""
        if min(self.shape_vox) < 1 or not is_usable(self.matrix):
            raise NiftiError(
                f"an image of shape {self.shape_vox} and affine {self.affine}",
                "at least one voxel and an invertible affine of finite numbers",
            )

    @classmethod
    def of_grid(cls, grid: Grid) -> ImageGeometry:
        """Return the geometry of a grid, with axes along those of the world."""
        affine = np.diag([*grid.voxel_nm[::-1], 1.0])
        affine[:3, 3] = grid.translation_nm[::-1]
        return cls(shape_vox=grid.shape_vox, affine=as_affine(affine))

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The affine as an array (4, 4), in the unit of the file."""
        return np.array(self.affine, dtype=np.float64)

    @property
    def matrix_nm(self) -> NDArray[np.float64]:
        """The affine as an array (4, 4), in nm."""
        return np.diag([self.unit_nm] * 3 + [1.0]) @ self.matrix

    @property
    def voxel_nm(self) -> Triple:
        """Voxel size along the axes of the array (k, j, i) in nm."""
        i, j, k = (float(v) for v in np.linalg.norm(self.matrix_nm[:3, :3], axis=0))
        return k, j, i

    @property
    def directions(self) -> str:
        """The world directions nearest to the axes i, j, k, as three letters (``RAS``)."""
        return "".join(map(str, nib.aff2axcodes(self.matrix)))

    def corners_vox(self) -> NDArray[np.float64]:
        """Return the eight outer corners as indices (8, 3) of i, j, k; a voxel ends at ± 0.5."""
        ends = [(-0.5, n - 0.5) for n in self.shape_vox[::-1]]
        return np.array(list(itertools.product(*ends)))

    def corners_in(self, other: ImageGeometry) -> NDArray[np.float64]:
        """Return the corners of this image as indices (8, 3) of another one."""
        to_other = np.linalg.inv(other.matrix_nm) @ self.matrix_nm
        return nib.affines.apply_affine(to_other, self.corners_vox())  # type: ignore[no-any-return]

    def apart_vox(self, other: ImageGeometry) -> float:
        """Return the largest distance between the same corners, in voxels of the other image."""
        return float(np.linalg.norm(self.corners_in(other) - other.corners_vox(), axis=1).max())

    def fills_the_box_of(self, other: ImageGeometry) -> bool:
        """Whether both fill the same box, whatever the order and direction of their axes."""
        apart = self.corners_in(other)[:, None] - other.corners_vox()[None]
        return bool((np.linalg.norm(apart, axis=2).min(axis=0) <= CORNER_TOLERANCE_VOX).all())

    def order(self) -> ArrayOrder:
        """Return how to bring the array into world axes; an oblique one stays as it is.

        An image is oblique where world axes would move a corner by more than a tenth of a voxel.
        """
        aligned = self._aligned()
        if aligned is not None:
            return _order(aligned)
        grid = Grid(
            shape_vox=self.shape_vox, voxel_nm=self.voxel_nm, translation_nm=(0.0, 0.0, 0.0)
        )
        return ArrayOrder(axes=(0, 1, 2), flipped=(False,) * 3, grid=grid, oblique=True)

    def _aligned(self) -> ImageGeometry | None:
        """The same image in nm, its axes turned exactly into those of the world, if near them."""
        turn = self.matrix_nm[:3, :3]
        size = np.linalg.norm(turn, axis=0)
        world = np.argmax(np.abs(turn / size), axis=0)
        if sorted(world) != [0, 1, 2]:
            return None
        straight = np.zeros((3, 3))
        straight[world, range(3)] = np.sign(turn[world, range(3)]) * size
        middle = (np.array(self.shape_vox[::-1]) - 1) / 2
        affine = np.eye(4)
        affine[:3, :3] = straight
        # Turned about the middle, because that moves the corners least.
        affine[:3, 3] = self.matrix_nm[:3, 3] + (turn - straight) @ middle
        aligned = ImageGeometry(shape_vox=self.shape_vox, affine=as_affine(affine))
        if aligned.apart_vox(self) > CORNER_TOLERANCE_VOX:
            return None
        return aligned

    def __str__(self) -> str:
        cosines = ""
        if self._aligned() is None:
            turn = self.matrix_nm[:3, :3] / np.array(self.voxel_nm[::-1])
            cosines = f" (oblique, direction cosines {np.round(turn, 4).tolist()})"
        numbers = [f"{v:.6g}" for v in (*self.voxel_nm[::-1], *self.matrix_nm[:3, 3])]
        return (
            f"{' × '.join(map(str, self.shape_vox[::-1]))} voxels (i, j, k) of "
            f"{' × '.join(numbers[:3])} nm, axes to {self.directions}{cosines}, "
            f"first voxel at x, y, z = {', '.join(numbers[3:])} nm"
        )


def _order(aligned: ImageGeometry) -> ArrayOrder:
    """The order of an image whose axes are exactly those of the world."""
    affine, shape = aligned.matrix_nm, aligned.shape_vox
    axes, flipped, origin = [], [], []
    for w in (2, 1, 0):
        c = int(np.argmax(np.abs(affine[w, :3])))
        step = affine[w, c]
        axes.append(2 - c)
        flipped.append(bool(step < 0))
        origin.append(float(affine[w, 3] + (step * (shape[2 - c] - 1) if step < 0 else 0.0)))
    voxel = aligned.voxel_nm
    a, b, c = axes
    grid = Grid(
        shape_vox=(shape[a], shape[b], shape[c]),
        voxel_nm=(voxel[a], voxel[b], voxel[c]),
        translation_nm=(origin[0], origin[1], origin[2]),
    )
    return ArrayOrder(axes=(a, b, c), flipped=(flipped[0], flipped[1], flipped[2]), grid=grid)


def as_affine(matrix: NDArray[Any]) -> Affine:
    """Return a 4 × 4 matrix as tuples of Python's numbers."""
    a, b, c, d = ((float(r[0]), float(r[1]), float(r[2]), float(r[3])) for r in matrix)
    return a, b, c, d


def is_usable(matrix: NDArray[np.float64]) -> bool:
    """Whether an affine is finite and has an inverse."""
    if not np.isfinite(matrix).all():
        return False
    turn = matrix[:3, :3]
    return bool(abs(np.linalg.det(turn)) > _MIN_VOLUME * np.prod(np.linalg.norm(turn, axis=0)))


def check_one_grid(
    image: ImageGeometry, label: ImageGeometry, image_name: str, label_name: str
) -> None:
    """Refuse an image and a label that are not one grid.

    They are one where the shapes are equal and all eight corners agree within
    `CORNER_TOLERANCE_VOX` voxels. Voxels of both are paired by index everywhere, so that axes
    stored in another order or direction are refused too.

    Raises
    ------
    GeometryError
        They are not; the message has both grids.
    """
    apart = label.apart_vox(image)
    if image.shape_vox == label.shape_vox and apart <= CORNER_TOLERANCE_VOX:
        return
    if image.shape_vox != label.shape_vox:
        how = "they differ in shape"
    else:
        how = f"their corners lie up to {apart:.4g} voxels apart"
    do = "resample the label onto the image's grid, or correct the header that is wrong"
    if label.fills_the_box_of(image):
        how = f"they fill the same box, with axes to {image.directions} and {label.directions}"
        do = "save the label with its axes in the order and direction of the image's"
    raise GeometryError(
        f"image and label are not one grid: {how}; image {image_name}: {image}; "
        f"label {label_name}: {label}",
        f"equal shapes, and corners within {CORNER_TOLERANCE_VOX} voxels",
        do,
    )

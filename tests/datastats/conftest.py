"""Small data sets written with our own writers."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from cellmap_core import nifti
from cellmap_core.datalist import CaseInfo, Datalist, Entry, write_datalist
from cellmap_core.grid import Grid
from cellmap_core.label_table import LabelTable

SPACING_ZYX = (4.0, 6.0, 8.0)


def write(path, volume, voxel_nm=SPACING_ZYX):
    """Write a volume (z, y, x), or channels of volumes by nibabel."""
    if volume.ndim == 3:
        grid = Grid(shape_vox=volume.shape, voxel_nm=voxel_nm, translation_nm=(0.0, 0.0, 0.0))
        nifti.write_volume(path, grid, volume)
        return
    affine = np.diag([*voxel_nm[::-1], 1.0])
    nib.save(nib.Nifti1Image(volume.transpose(3, 2, 1, 0), affine), path)


class DataSet:
    """A folder with NIfTI cases and the datalist that lists them."""

    def __init__(self, folder: Path, table: LabelTable):
        self.folder, self.table, self.entries = folder, table, []

    def add(
        self,
        name,
        image,
        label,
        annotated=None,
        suffix=".nii.gz",
        voxel_nm=SPACING_ZYX,
        dataset="jrc_test",
        **about,
    ):
        """Write one case (z, y, x arrays; an image of channels first is 4-D) and list it."""
        paths = {}
        for kind, volume in (("images", image), ("labels", label)):
            volume = np.asarray(volume)
            relative = f"{kind}/{name}{suffix}"
            (self.folder / kind).mkdir(exist_ok=True, parents=True)
            write(self.folder / relative, volume, voxel_nm)
            paths[kind] = relative
        if annotated is None:
            annotated = range(1, len(self.table.classes) + 1)
        entry = Entry(
            image=paths["images"],
            label=paths["labels"],
            fold=len(self.entries) % 2,
            annotated_classes=tuple(annotated),
            cellmap=CaseInfo(
                dataset=dataset,
                crop=name,
                voxel_nm=voxel_nm,
                translation_nm=(0.0, 0.0, 0.0),
                **about,
            ),
        )
        self.entries.append(entry)
        return entry

    def write(self):
        """Write datalist.json and return its path."""
        path = self.folder / "datalist.json"
        write_datalist(
            path, Datalist(folder=self.folder, table=self.table, training=tuple(self.entries))
        )
        return path


@pytest.fixture
def new_data_set(tmp_path):
    def make(classes=("a", "b"), seen=(), folder="data"):
        return DataSet(tmp_path / folder, LabelTable.of(classes, seen))

    return make


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def blobs(rng):
    def make(shape, n_labels):
        """Labels in coarse blocks, so that components span many voxels and touch by corners."""
        coarse = rng.integers(0, n_labels, tuple(-(-n // 3) for n in shape))
        labels = np.kron(coarse, np.ones((3, 3, 3), dtype=int))[tuple(slice(n) for n in shape)]
        return labels.astype(np.uint8)

    return make

"""``crops.csv``: a row for each crop of the datasplit, converted or not, and why."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cellmap_core.alignment import Alignment
from cellmap_core.crop import Crop
from cellmap_core.datasplit import BadRow, CropRef
from cellmap_core.models import Frozen
from cellmap_core.provenance import write_text

Status = Literal["converted", "excluded", "failed"]


class CropRow(Frozen):
    """One row. Triples are z y x, separated by spaces; empty where nothing is known."""

    dataset: str
    crop: str
    split: str
    status: Status
    reason: str = ""
    label_voxel_nm: str = ""
    raw_voxel_nm: str = ""
    raw_level: str = ""
    raw_start_vox: str = ""
    output_shape: str = ""
    output_voxel_nm: str = ""
    offset_nm: str = ""
    coverage: str = ""
    annotated: str = ""
    overlaps: int = 0
    alignment: str = ""
    label_shift_nm: str = ""

    @classmethod
    def of_ref(cls, ref: CropRef, status: Status, reason: str) -> CropRow:
        """A crop that was not converted."""
        return cls(
            dataset=ref.dataset, crop=ref.crop, split=ref.split, status=status, reason=reason
        )

    @classmethod
    def of_bad_row(cls, row: BadRow) -> CropRow:
        """A line of the datasplit that names no crop."""
        return cls(
            dataset="?", crop=f"line {row.line}", split="?", status="failed", reason=row.reason
        )

    @classmethod
    def of_crop(cls, crop: Crop, coverage: float, overlaps: int, alignment: Alignment) -> CropRow:
        """A converted crop, with where it lies and how it was read."""
        return cls(
            dataset=crop.ref.dataset,
            crop=crop.ref.crop,
            split=crop.ref.split,
            status="converted",
            label_voxel_nm=_triple(crop.label_grid.voxel_nm),
            raw_voxel_nm=_triple(crop.raw.level.grid.voxel_nm),
            raw_level=crop.raw.level.path,
            raw_start_vox=_triple(crop.raw_start_vox()),
            output_shape=_triple(crop.grid.shape_vox),
            output_voxel_nm=_triple(crop.grid.voxel_nm),
            offset_nm=_triple(crop.grid.translation_nm),
            coverage=f"{coverage:.3f}",
            annotated=" ".join(crop.sources),
            overlaps=overlaps,
            alignment=alignment.verdict,
            label_shift_nm=_triple(alignment.shift_nm or ()),
        )

    def summary(self) -> str:
        """One line for the log."""
        if self.status != "converted":
            return f"{self.status}: {self.reason}"
        classes = self.annotated or "no labels"
        return f"{self.output_shape} voxels of {self.output_voxel_nm} nm, {classes}"


COLUMNS = tuple(CropRow.model_fields)


def write_crops_table(path: Path, rows: Sequence[CropRow]) -> None:
    """Write the table, whole or not at all."""
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, fieldnames=COLUMNS)
    writer.writeheader()
    writer.writerows(row.model_dump() for row in rows)
    write_text(path, sink.getvalue())


def _triple(values: Sequence[float]) -> str:
    return " ".join(f"{round(v, 4):.10g}" for v in values)

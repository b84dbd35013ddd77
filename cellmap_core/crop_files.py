"""The files of one crop: its image, its labels under ids of its own, then under the shared ids."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellmap_core import nifti
from cellmap_core.combinations import CODE_DTYPE, Coder, look_up
from cellmap_core.crop import Crop, open_crop
from cellmap_core.crops_table import CropRow, Status
from cellmap_core.datalist import CaseInfo
from cellmap_core.datasplit import CropRef
from cellmap_core.errors import CellmapError, CropExcluded, may_pass
from cellmap_core.label_table import PRESENT, States
from cellmap_core.models import Frozen
from cellmap_core.options import ConvertOptions
from cellmap_core.provenance import key_of, read_receipt, write_receipt
from cellmap_core.slabs import z_slabs

logger = logging.getLogger(__name__)

# Part of every key: raise it when the same inputs would give other files.
_FORMAT = 2


class ReadCrop(Frozen):
    """A crop after the first step: its row, and what the second step and the datalist need."""

    ref: CropRef
    row: CropRow
    seen: tuple[States, ...] = ()
    annotated: tuple[str, ...] = ()
    info: CaseInfo | None = None
    key: str = ""
    current: bool = False


class LabelJob(Frozen):
    """The second step of a crop: the shared id of each of its own, and their type."""

    crop: ReadCrop
    ids: tuple[int, ...]
    dtype: str


def read_crop(ref: CropRef, classes: tuple[str, ...], options: ConvertOptions) -> ReadCrop:
    """Read one crop: write its image, code its labels. Bad input never raises; the row tells."""
    try:
        crop = open_crop(ref, classes, options)
        return _read_open_crop(crop, classes, options)
    except (CellmapError, OSError) as error:
        if may_pass(error):
            raise
        status: Status = "excluded" if isinstance(error, CropExcluded) else "failed"
        return _not_converted(ref, options, status, str(error))
    except Exception as error:
        # One crop must not end the others, whatever a codec or a store comes up with.
        logger.exception("%s failed unexpectedly", ref.name)
        return _not_converted(ref, options, "failed", f"unexpected {error!r}")


def write_label(job: LabelJob, output: Path, options: ConvertOptions) -> bool:
    """Write a crop's labels under the shared ids; tell whether anything had to be written."""
    stem = job.crop.ref.stem
    receipt = output / ".cache" / f"{stem}.label.json"
    key = key_of(_FORMAT, job.crop.key, job.ids, job.dtype)
    if not job.crop.annotated or read_receipt(receipt, key):
        return False
    coded = _coded_path(output, stem)
    table = np.zeros(1 << 16, dtype=np.dtype(job.dtype))
    table[: len(job.ids)] = job.ids
    final = output / "labels" / f"{stem}{nifti.suffix(options.compression)}"
    slabs = (look_up(table, slab) for slab in nifti.iter_slabs(coded))
    nifti.write_slabs(final, nifti.read_grid(coded), table.dtype, slabs)
    write_receipt(receipt, key, [final], {})
    return True


def _read_open_crop(crop: Crop, classes: tuple[str, ...], options: ConvertOptions) -> ReadCrop:
    coverage = crop.coverage()
    if coverage < options.min_coverage or coverage == 0:
        raise CropExcluded(
            f"{coverage:.0%} of its EM at level {crop.raw.level.path} is there",
            f"at least {options.min_coverage:.0%}",
            "download it, or read another level with --scale auto",
        )
    output, stem = options.output_dir, crop.ref.stem
    image = output / "images" / f"{stem}{nifti.suffix(options.compression)}"
    receipt_path = output / ".cache" / f"{stem}.crop.json"
    key = key_of(_FORMAT, options.compression, classes, tuple(crop.sources), crop.digest())
    receipt = read_receipt(receipt_path, key)
    seen = _seen(receipt.result) if receipt else _write_crop(crop, classes, image, output)
    if receipt is None:
        outputs = [image, _coded_path(output, stem)] if crop.sources else [image]
        write_receipt(receipt_path, key, outputs, {"seen": seen})
    return ReadCrop(
        ref=crop.ref,
        row=CropRow.of_crop(crop, coverage, _overlaps(classes, seen)),
        seen=seen,
        annotated=tuple(crop.sources),
        info=CaseInfo(
            dataset=crop.ref.dataset,
            crop=crop.ref.crop,
            voxel_nm=crop.grid.voxel_nm,
            translation_nm=crop.grid.translation_nm,
        ),
        key=key,
        current=receipt is not None,
    )


def _not_converted(ref: CropRef, options: ConvertOptions, status: Status, reason: str) -> ReadCrop:
    """The row of a crop that is not there; what an earlier run or half of this one left goes."""
    output, name = options.output_dir, f"{ref.stem}{nifti.suffix(options.compression)}"
    cache = output / ".cache"
    for path in (
        cache / f"{ref.stem}.crop.json",
        cache / f"{ref.stem}.label.json",
        _coded_path(output, ref.stem),
        output / "images" / name,
        output / "labels" / name,
    ):
        with contextlib.suppress(OSError):
            path.unlink()
    return ReadCrop(ref=ref, row=CropRow.of_ref(ref, status, reason))


def _write_crop(
    crop: Crop, classes: tuple[str, ...], image: Path, output: Path
) -> tuple[States, ...]:
    scratch = output / ".cache"
    scratch.mkdir(parents=True, exist_ok=True)
    nifti.write_slabs(image, crop.grid, crop.raw.dtype, _image_slabs(crop, scratch))
    coder = Coder()
    if crop.sources:
        codes = z_slabs(
            crop.grid,
            lambda tile: coder.encode(crop.states(tile, classes), tile.shape_vox),
            like=crop.label_volume,
            dtype=CODE_DTYPE,
            scratch=scratch,
        )
        nifti.write_slabs(_coded_path(output, crop.ref.stem), crop.grid, CODE_DTYPE, codes)
    return coder.seen


def _image_slabs(crop: Crop, scratch: Path) -> Iterator[NDArray[Any]]:
    """The image, slab by slab; a blank one excludes the crop before a file appears."""
    low, high = np.inf, -np.inf
    slabs = z_slabs(crop.grid, crop.image, like=crop.raw, dtype=crop.raw.dtype, scratch=scratch)
    for slab in slabs:
        low, high = min(low, slab.min()), max(high, slab.max())
        yield slab
    if low == high:
        raise CropExcluded(f"its EM is blank (every voxel is {low:g})")


def _overlaps(classes: tuple[str, ...], seen: Sequence[States]) -> int:
    """How many of the crop's combinations have more than one class present."""
    return sum(sum(s == PRESENT for s in states) > 1 for states in seen)


def _seen(result: dict[str, Any]) -> tuple[States, ...]:
    return tuple(tuple(int(s) for s in states) for states in result["seen"])


def _coded_path(output: Path, stem: str) -> Path:
    """A crop's labels under its own ids, kept so that a new table costs no second read."""
    return output / ".cache" / f"{stem}.coded.nii.gz"

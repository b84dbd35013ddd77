"""The files of one crop: its image, its labels under ids of its own, then under the shared ids."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellmap_core import nifti
from cellmap_core.alignment import Alignment, alignment
from cellmap_core.combinations import CODE_DTYPE, Coder, look_up
from cellmap_core.crop import Crop, open_crop
from cellmap_core.crop_refs import tissue_of, volume_of
from cellmap_core.crops_table import CropRow, Status
from cellmap_core.datalist import CaseInfo
from cellmap_core.datasplit import CropRef
from cellmap_core.errors import CellmapError, CropExcluded, StoreError, lost_reason
from cellmap_core.label_table import PRESENT, States
from cellmap_core.leakage import Extent, box_within
from cellmap_core.machine import keep_memory
from cellmap_core.models import Frozen
from cellmap_core.options import ConvertOptions
from cellmap_core.patience import patiently
from cellmap_core.provenance import key_of, read_receipt, write_bytes, write_receipt
from cellmap_core.report.crop_pictures import crop_picture, thumbnail
from cellmap_core.sample import Sampler, thinned, thinned_block
from cellmap_core.slabs import z_slabs

logger = logging.getLogger(__name__)

# Part of every key: raise it when the same inputs would give other files.
_FORMAT = 5


class ReadCrop(Frozen):
    """A crop after the first step: its row, and what the second step and the datalist need."""

    ref: CropRef
    row: CropRow
    seen: tuple[States, ...] = ()
    annotated: tuple[str, ...] = ()
    info: CaseInfo | None = None
    alignment: Alignment | None = None
    extent: Extent | None = None
    voxels: int = 0
    interpolated: bool = False
    key: str = ""
    current: bool = False

    @property
    def converted(self) -> bool:
        """Whether its files are there."""
        return self.row.status == "converted"


class LabelJob(Frozen):
    """The second step of a crop: the shared id of each of its own, and their type."""

    crop: ReadCrop
    ids: tuple[int, ...]
    dtype: str


class WrittenLabel(Frozen):
    """A crop after the second step: whether its labels had to be written, or why they are not."""

    changed: bool = False
    reason: str = ""


class CropPaths:
    """Where the files of one crop are."""

    def __init__(self, ref: CropRef, options: ConvertOptions) -> None:
        output, cache = options.output_dir, options.output_dir / ".cache"
        name = f"{ref.stem}{nifti.suffix(options.compression)}"
        self.image = output / "images" / name
        self.label = output / "labels" / name
        other = f"{ref.stem}{nifti.suffix('none' if options.compression == 'gzip' else 'gzip')}"
        self._stale = (output / "images" / other, output / "labels" / other)
        self.picture = output / "pictures" / f"{ref.stem}.png"
        self.thumbnail = cache / f"{ref.stem}.thumbnail.png"
        # A crop's labels under its own ids, kept so that a new table costs no second read.
        self.coded = cache / f"{ref.stem}.coded.nii.gz"
        self.crop_receipt = cache / f"{ref.stem}.crop.json"
        self.label_receipt = cache / f"{ref.stem}.label.json"

    def remove_stale(self) -> None:
        """Remove what a run with the other compression left."""
        for path in self._stale:
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove what an earlier run or half of this one left; receipts first."""
        for path in (
            self.crop_receipt,
            self.label_receipt,
            self.coded,
            self.image,
            self.label,
            self.picture,
            self.thumbnail,
            *self._stale,
        ):
            with contextlib.suppress(OSError):
                path.unlink()


def read_crop(ref: CropRef, classes: tuple[str, ...], options: ConvertOptions) -> ReadCrop:
    """Read one crop: write its image, code its labels, draw its picture.

    Bad input never raises; the row tells. What may pass is tried again, of this crop alone.
    """
    keep_memory()
    try:
        return patiently(
            lambda: _read_open_crop(open_crop(ref, classes, options), classes, options)
        )
    except (CellmapError, OSError) as error:
        status: Status = "excluded" if isinstance(error, CropExcluded) else "failed"
        return _not_converted(ref, options, status, str(error))
    except Exception as error:
        # One crop must not end the others, whatever a codec or a store comes up with.
        logger.exception("%s failed unexpectedly", ref.name)
        return _not_converted(ref, options, "failed", f"unexpected {error!r}")


def lost_crop(ref: CropRef, error: Exception, options: ConvertOptions) -> ReadCrop:
    """Return the row of a crop whose worker died while it was read, and remove its files."""
    return _not_converted(ref, options, "failed", lost_reason(error))


def lost_label(job: LabelJob, error: Exception, options: ConvertOptions) -> WrittenLabel:
    """Return why a crop whose worker died has no labels, and remove its files."""
    CropPaths(job.crop.ref, options).remove()
    return WrittenLabel(reason=lost_reason(error))


def write_label(job: LabelJob, options: ConvertOptions) -> WrittenLabel:
    """Write a crop's labels under the shared ids, where they are not there already."""
    paths = CropPaths(job.crop.ref, options)
    key = key_of(_FORMAT, job.crop.key, job.ids, job.dtype)
    if not job.crop.annotated or read_receipt(paths.label_receipt, key):
        return WrittenLabel()
    try:
        patiently(lambda: _write_label(job, paths, key))
    except (CellmapError, OSError) as error:
        paths.remove()
        return WrittenLabel(reason=str(error))
    except Exception as error:
        logger.exception("%s failed unexpectedly", job.crop.ref.name)
        paths.remove()
        return WrittenLabel(reason=f"unexpected {error!r}")
    return WrittenLabel(changed=True)


def _write_label(job: LabelJob, paths: CropPaths, key: str) -> None:
    table = np.zeros(1 << 16, dtype=np.dtype(job.dtype))
    table[: len(job.ids)] = job.ids
    slabs = (look_up(table, slab) for slab in nifti.iter_slabs(paths.coded))
    nifti.write_slabs(paths.label, nifti.read_grid(paths.coded), table.dtype, slabs)
    write_receipt(paths.label_receipt, key, [paths.label], {})


def _read_open_crop(crop: Crop, classes: tuple[str, ...], options: ConvertOptions) -> ReadCrop:
    coverage = crop.coverage()
    if coverage < options.min_coverage or coverage == 0:
        raise CropExcluded(
            f"{coverage:.0%} of its EM at level {crop.raw.level.path} is there",
            f"at least {options.min_coverage:.0%}",
            "download it, or read another level with --scale auto",
        )
    paths = CropPaths(crop.ref, options)
    key = key_of(_FORMAT, options.compression, classes, tuple(crop.sources), crop.digest())
    receipt = read_receipt(paths.crop_receipt, key)
    if receipt is None:
        paths.remove_stale()
        made = _write_crop(crop, classes, paths)
        outputs = [paths.image, paths.picture, paths.thumbnail]
        outputs += [paths.coded] if crop.sources else []
        write_receipt(paths.crop_receipt, key, outputs, made.model_dump(mode="json"))
    else:
        made = _Made.model_validate(receipt.result)
    return ReadCrop(
        ref=crop.ref,
        row=CropRow.of_crop(crop, coverage, _overlaps(made.seen), made.alignment),
        seen=made.seen,
        annotated=tuple(crop.sources),
        info=CaseInfo(
            dataset=crop.ref.dataset,
            crop=crop.ref.crop,
            voxel_nm=crop.grid.voxel_nm,
            translation_nm=crop.grid.translation_nm,
            alignment=made.alignment.verdict,
            label_shift_nm=made.alignment.shift_nm,
        ),
        alignment=made.alignment,
        extent=_extent(crop),
        voxels=int(np.prod(crop.grid.shape_vox)),
        interpolated=crop.coarser_than_need_be(),
        key=key,
        current=receipt is not None,
    )


def _extent(crop: Crop) -> Extent:
    return Extent(
        name=crop.ref.name,
        volume=volume_of(crop.ref.raw),
        box=box_within(crop.label_grid),
        tissue=tissue_of(crop.ref),
    )


class _Made(Frozen):
    """What reading a crop found, as its receipt keeps it."""

    seen: tuple[States, ...]
    alignment: Alignment


def _not_converted(ref: CropRef, options: ConvertOptions, status: Status, reason: str) -> ReadCrop:
    """The row of a crop that is not there, and no file of it either."""
    CropPaths(ref, options).remove()
    return ReadCrop(ref=ref, row=CropRow.of_ref(ref, status, reason))


def _write_crop(crop: Crop, classes: tuple[str, ...], paths: CropPaths) -> _Made:
    scratch = paths.coded.parent
    scratch.mkdir(parents=True, exist_ok=True)
    sampler = Sampler(crop.grid.shape_vox)
    dtype = nifti.storable(crop.raw.dtype, crop.raw.location)
    slabs = _seen_by(sampler.image, _image_slabs(crop, dtype, scratch))
    nifti.write_slabs(paths.image, crop.grid, dtype, slabs)
    coder = Coder()
    if crop.sources:
        codes = z_slabs(
            crop.grid,
            lambda tile: coder.encode(crop.states(tile, classes), tile.shape_vox),
            like=crop.label_volume,
            dtype=CODE_DTYPE,
            scratch=scratch,
        )
        nifti.write_slabs(paths.coded, crop.grid, CODE_DTYPE, _seen_by(sampler.codes, codes))
    planes, voxel_nm = sampler.planes(), crop.grid.voxel_nm
    found = _alignment(crop, sampler, coder.seen)
    picture = crop_picture(planes, coder.seen, classes, voxel_nm, crop.ref.name, found)
    write_bytes(paths.picture, picture)
    write_bytes(paths.thumbnail, thumbnail(planes, coder.seen, classes, voxel_nm))
    return _Made(seen=coder.seen, alignment=found)


def _alignment(crop: Crop, sampler: Sampler, seen: Sequence[States]) -> Alignment:
    """Whether the labels lie on the EM, judged at voxels no finer than the EM's own.

    What was interpolated has no finer edges, only fewer of them in reach.
    """
    voxel_nm = crop.grid.voxel_nm
    raw = zip(crop.raw.level.grid.voxel_nm, voxel_nm, strict=True)
    z, y, x = (max(1, round(own / made)) for own, made in raw)
    coarse = (voxel_nm[0] * z, voxel_nm[1] * y, voxel_nm[2] * x)
    planes, block = thinned(sampler.planes(), (z, y, x)), thinned_block(sampler.block(), (z, y, x))
    return alignment(planes, seen, coarse, block)


def _seen_by(
    look: Callable[[int, NDArray[Any]], None], slabs: Iterable[NDArray[Any]]
) -> Iterator[NDArray[Any]]:
    """The slabs, each looked at as it goes by."""
    z = 0
    for slab in slabs:
        look(z, slab)
        yield slab
        z += len(slab)


def _image_slabs(crop: Crop, dtype: np.dtype[Any], scratch: Path) -> Iterator[NDArray[Any]]:
    """The image, slab by slab; a blank one excludes the crop before a file appears."""
    low, high, z = np.inf, -np.inf, 0
    for slab in z_slabs(crop.grid, crop.image, like=crop.raw, dtype=dtype, scratch=scratch):
        _, y, x = slab.shape
        dark = crop.without_raw(crop.grid.cut((z, 0, 0), (z + len(slab), y, x)))
        seen = slab if dark is None else slab[~dark]
        if seen.size:
            low, high = min(low, seen.min()), max(high, seen.max())
        if dtype.kind == "f" and not np.isfinite(seen).all():
            raise StoreError(f"{crop.raw.location} has values that are no numbers", "finite EM")
        yield slab
        z += len(slab)
    if low == high:
        raise CropExcluded(f"its EM is blank (every voxel is {low:g})")


def _overlaps(seen: Sequence[States]) -> int:
    """How many of the crop's combinations have more than one class present."""
    return sum(sum(s == PRESENT for s in states) > 1 for states in seen)

"""Conversion: every crop of a datasplit to NIfTI, one datalist and one table of all crops.

In two steps, because the ids of class combinations are shared by all crops: each crop is
read once, its image written and its labels coded with ids of its own; then, with the label
table of all crops, the labels are written under their final ids.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellmap_core import combinations, nifti
from cellmap_core.classes import KNOWN, SETS, expand, suggest
from cellmap_core.combinations import CODE_DTYPE, Coder
from cellmap_core.crop import Crop, open_crop
from cellmap_core.crops_table import CropRow, Status, write_crops_table
from cellmap_core.datalist import CaseInfo, Datalist, Entry, write_datalist
from cellmap_core.datasplit import CropRef, Datasplit, read_datasplit, read_test_manifest
from cellmap_core.errors import (
    CellmapError,
    CropExcluded,
    DatasplitError,
    IncompleteError,
    OptionError,
    may_pass,
)
from cellmap_core.folds import with_folds
from cellmap_core.grid import Grid
from cellmap_core.label_table import PRESENT, LabelTable, States
from cellmap_core.models import ConvertResult, Failure, Frozen, Mapper, serial
from cellmap_core.options import ConvertOptions
from cellmap_core.provenance import key_of, read_receipt, write_receipt

logger = logging.getLogger(__name__)

# Part of every key: raise it when the same inputs would give other files.
_FORMAT = 1
# Sections of the output are made together up to this many voxels.
_SLAB_VOXELS = 16 << 20


class ReadCrop(Frozen):
    """A crop after the first step: its row, and what the second step and the datalist need."""

    ref: CropRef
    row: CropRow
    seen: tuple[States, ...] = ()
    annotated: tuple[str, ...] = ()
    info: CaseInfo | None = None
    key: str = ""
    current: bool = False


class _LabelJob(Frozen):
    crop: ReadCrop
    ids: tuple[int, ...]
    dtype: str


def convert(options: ConvertOptions, mapper: Mapper = serial) -> ConvertResult:
    """Convert a datasplit.

    Parameters
    ----------
    options : ConvertOptions
        What to convert and how.
    mapper : Mapper
        How crops are spread over workers.

    Returns
    -------
    ConvertResult
        Crops that could not be converted are listed in it and in ``crops.csv``; they do not
        stop the others.

    Raises
    ------
    DatasplitError, OptionError
        Nothing can be converted at all; no file is written.
    """
    datasplit, classes = plan(options)
    refs = _chosen(datasplit, options)
    output = options.output_dir
    results = mapper(partial(read_crop, classes=classes, options=options), refs)
    crops: list[ReadCrop] = []
    for crop in results:
        crops.append(crop)
        logger.info("%s (%d of %d): %s", crop.ref.name, len(crops), len(refs), crop.row.summary())
    converted = [crop for crop in crops if crop.row.status == "converted"]
    for name in classes:
        if not any(name in crop.annotated for crop in converted):
            logger.warning("class %s is annotated in no converted crop", name)
    table = combinations.shared_table(classes, (crop.seen for crop in converted))
    changed = list(
        mapper(partial(write_label, output=output, options=options), _jobs(converted, table))
    )
    rows = [*(crop.row for crop in crops), *(CropRow.of_bad_row(b) for b in datasplit.bad_rows)]
    write_crops_table(output / "crops.csv", rows)
    if not converted:
        listed = "; ".join(f"{row.dataset}/{row.crop} {row.status}: {row.reason}" for row in rows)
        raise IncompleteError(f"no crop could be converted - {listed}")
    write_datalist(output / "datalist.json", _datalist(converted, table, options))
    failed, excluded = _failures(rows, "failed"), _failures(rows, "excluded")
    if options.on_bad_crop == "exclude":
        failed, excluded = (), excluded + failed
    made = sum(not c.current or w for c, w in zip(converted, changed, strict=True))
    return ConvertResult(
        done=made,
        current=len(converted) - made,
        failures=failed,
        excluded=excluded,
        datalist=output / "datalist.json",
        crops_table=output / "crops.csv",
    )


def plan(options: ConvertOptions) -> tuple[Datasplit, tuple[str, ...]]:
    """The crops and classes a conversion would take, checked without opening a volume."""
    if options.datasplit is None:
        raise OptionError("no datasplit given", "--datasplit FILE.csv")
    datasplit = read_datasplit(options.datasplit)
    if options.test_manifest is not None:
        extra = read_test_manifest(options.test_manifest, datasplit.crops)
        datasplit = datasplit.model_copy(update={"crops": (*datasplit.crops, *extra)})
    listed = datasplit.classes()
    if options.classes is None:
        if not listed and datasplit.crops:
            raise DatasplitError(
                f"{options.datasplit} lists no classes", "labels[class,…] or the option classes"
            )
        return datasplit, listed
    valid = sorted({*KNOWN, *SETS, *listed})
    for name in options.classes:
        if name not in valid:
            raise OptionError(f"unknown class {name!r}", "a CellMap class", suggest(name, valid))
    return datasplit, expand(options.classes)


def check_crop_count(options: ConvertOptions) -> None:
    """Refuse a datasplit with fewer crops to train on than folds, before anything is read."""
    datasplit, _ = plan(options)
    count = sum(crop.split == "train" for crop in _chosen(datasplit, options))
    if count < options.num_fold:
        raise DatasplitError(
            f"{options.datasplit} has {count} crops to train on",
            f"at least one for each of {options.num_fold} folds",
            f"set num_fold to {max(count, 2)} or less, or add crops",
        )


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


def write_label(job: _LabelJob, output: Path, options: ConvertOptions) -> bool:
    """Write a crop's labels under the shared ids; tell whether anything had to be written."""
    stem = job.crop.ref.stem
    receipt = output / ".cache" / f"{stem}.label.json"
    key = key_of(_FORMAT, job.crop.key, job.ids, job.dtype)
    if not job.crop.annotated or read_receipt(receipt, key):
        return False
    coded = _coded_path(output, stem)
    lookup = np.array(job.ids, dtype=np.dtype(job.dtype))
    final = output / "labels" / f"{stem}{nifti.suffix(options.compression)}"
    slabs = (lookup[slab] for slab in nifti.iter_slabs(coded))
    nifti.write_slabs(final, nifti.read_grid(coded), lookup.dtype, slabs)
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
    nifti.write_slabs(image, crop.grid, crop.raw.array.dtype, _image_slabs(crop))
    coder = Coder()
    if crop.sources:
        slabs = (
            coder.encode(crop.states(part, name) for name in classes) for part in _parts(crop.grid)
        )
        nifti.write_slabs(_coded_path(output, crop.ref.stem), crop.grid, CODE_DTYPE, slabs)
    return coder.seen


def _image_slabs(crop: Crop) -> Iterator[NDArray[Any]]:
    """The image, section by section; a blank one excludes the crop before a file appears."""
    low, high = np.inf, -np.inf
    for part in _parts(crop.grid):
        slab = crop.image(part)
        low, high = min(low, slab.min()), max(high, slab.max())
        yield slab
    if low == high:
        raise CropExcluded(f"its EM is blank (every voxel is {low:g})")


def _parts(grid: Grid) -> Iterator[Grid]:
    """The grid cut along z into parts of a bounded number of voxels."""
    z, y, x = grid.shape_vox
    thickness = max(1, _SLAB_VOXELS // (y * x))
    for start in range(0, z, thickness):
        yield grid.cut((start, 0, 0), (min(start + thickness, z), y, x))


def _chosen(datasplit: Datasplit, options: ConvertOptions) -> tuple[CropRef, ...]:
    crops = datasplit.crops
    return crops[: options.max_crops] if options.max_crops else crops


def _jobs(crops: Sequence[ReadCrop], table: LabelTable) -> list[_LabelJob]:
    ids = table.id_of()
    return [
        _LabelJob(crop=crop, ids=tuple(ids[s] for s in crop.seen), dtype=table.dtype.name)
        for crop in crops
    ]


def _datalist(crops: Sequence[ReadCrop], table: LabelTable, options: ConvertOptions) -> Datalist:
    datalist = Datalist(
        folder=options.output_dir,
        table=table,
        training=tuple(_entry(c, table, options) for c in crops if c.ref.split == "train"),
        testing=tuple(_entry(c, table, options) for c in crops if c.ref.split != "train"),
    )
    return with_folds(datalist, options.num_fold, options.fold_by)


def _entry(crop: ReadCrop, table: LabelTable, options: ConvertOptions) -> Entry:
    name = f"{crop.ref.stem}{nifti.suffix(options.compression)}"
    present = combinations.present_classes(table.classes, crop.seen)
    annotated = _ids(table, crop.annotated)
    return Entry(
        image=f"images/{name}",
        label=f"labels/{name}" if annotated else None,
        annotated_classes=annotated,
        present_classes=tuple(i for i in _ids(table, present) if i in annotated),
        cellmap=crop.info,
    )


def _ids(table: LabelTable, names: Sequence[str]) -> tuple[int, ...]:
    return tuple(i for i, name in enumerate(table.classes, start=1) if name in names)


def _failures(rows: Sequence[CropRow], status: str) -> tuple[Failure, ...]:
    return tuple(
        Failure(item=f"{row.dataset}/{row.crop}", reason=row.reason)
        for row in rows
        if row.status == status
    )


def _overlaps(classes: tuple[str, ...], seen: Sequence[States]) -> int:
    """How many of the crop's combinations have more than one class present."""
    return sum(sum(s == PRESENT for s in states) > 1 for states in seen)


def _seen(result: dict[str, Any]) -> tuple[States, ...]:
    return tuple(tuple(int(s) for s in states) for states in result["seen"])


def _coded_path(output: Path, stem: str) -> Path:
    """A crop's labels under its own ids, kept so that a new table costs no second read."""
    return output / ".cache" / f"{stem}.coded.nii.gz"

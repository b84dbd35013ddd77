"""Conversion: every crop of a datasplit to NIfTI, one datalist and one table of all crops.

In two steps, because the ids of class combinations are shared by all crops: each crop is
read once, its image written and its labels coded with ids of its own; then, with the label
table of all crops, the labels are written under their final ids.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from functools import partial

from cellmap_core import combinations, leakage, nifti
from cellmap_core.classes import KNOWN, SETS, expand, suggest
from cellmap_core.crop_files import (
    CropPaths,
    LabelJob,
    ReadCrop,
    WrittenLabel,
    lost_crop,
    lost_label,
    read_crop,
    write_label,
)
from cellmap_core.crop_folders import with_stored_classes
from cellmap_core.crop_refs import names_of_stores, with_test_crops
from cellmap_core.crops_table import CropRow, write_crops_table
from cellmap_core.datalist import Datalist, Entry, write_datalist
from cellmap_core.datasplit import CropRef, Datasplit, read_datasplit, read_test_manifest
from cellmap_core.errors import (
    DatasplitError,
    IncompleteError,
    OptionError,
)
from cellmap_core.folds import crops_lacking, fold_remedy, with_folds
from cellmap_core.label_table import LabelTable
from cellmap_core.models import ConvertResult, CropPicture, Failure, Mapper, serial
from cellmap_core.options import ConvertOptions
from cellmap_core.pace import Pace, Report, unreported
from cellmap_core.provenance import held, sweep

logger = logging.getLogger(__name__)

# Crops too small or too plain to tell are met everywhere; it takes more to be a sign.
_FEW = 3


def convert(
    options: ConvertOptions, mapper: Mapper = serial, report: Report = unreported
) -> ConvertResult:
    """Convert a datasplit.

    Parameters
    ----------
    options : ConvertOptions
        What to convert and how.
    mapper : Mapper
        How crops are spread over workers.
    report : Report
        Told how far it is.

    Returns
    -------
    ConvertResult
        Crops that could not be converted are listed in it and in ``crops.csv``; they do not
        stop the others.

    Raises
    ------
    DatasplitError, OptionError
        Nothing can be converted at all; no file is written.
    IncompleteError
        Not one crop could be converted.
    BusyError
        Another run is writing into the output folder.
    """
    datasplit, classes = plan(options)
    _warn_of_names(datasplit)
    with held(options.output_dir):
        return _convert(datasplit, classes, options, mapper, report)


def _convert(
    datasplit: Datasplit,
    classes: tuple[str, ...],
    options: ConvertOptions,
    mapper: Mapper,
    report: Report,
) -> ConvertResult:
    refs = _chosen(datasplit, options)
    pace = Pace(len(refs), report)
    crops: list[ReadCrop] = mapper(
        partial(read_crop, classes=classes, options=options),
        refs,
        done=lambda crop: pace.step(crop.ref.name, crop.row.summary(), _worked(crop)),
        lost=partial(lost_crop, options=options),
    )
    table = combinations.shared_table(classes, (c.seen for c in crops if c.converted))
    crops, changed = _write_labels(crops, table, options, mapper)
    converted = [crop for crop in crops if crop.converted]
    _warn(classes, converted)
    rows = [*(crop.row for crop in crops), *(CropRow.of_bad_row(b) for b in datasplit.bad_rows)]
    output = options.output_dir
    write_crops_table(output / "crops.csv", rows)
    if not converted:
        listed = "; ".join(f"{row.dataset}/{row.crop} {row.status}: {row.reason}" for row in rows)
        raise IncompleteError(f"no crop could be converted{_set_aside(options)} - {listed}")
    write_datalist(output / "datalist.json", _datalist(converted, table, options))
    for folder in (output, *(p for p in output.iterdir() if p.is_dir())):
        sweep(folder)
    failed, excluded = _failures(rows, "failed"), _failures(rows, "excluded")
    if options.on_bad_crop == "exclude":
        failed, excluded = (), excluded + failed
    return ConvertResult(
        done=changed,
        current=len(converted) - changed,
        failures=failed,
        excluded=excluded,
        datalist=output / "datalist.json",
        crops_table=output / "crops.csv",
        pictures=tuple(_picture(crop, options) for crop in converted),
    )


def _set_aside(options: ConvertOptions) -> str:
    """Move the datalist of an earlier run, whose files are gone, aside; say so."""
    path = options.output_dir / "datalist.json"
    if not path.is_file():
        return ""
    names = (path.with_name(f"datalist.{number}.old.json") for number in itertools.count(1))
    aside = next(name for name in names if not name.exists())
    path.rename(aside)
    return f" (the earlier datalist is now {aside.name})"


def plan(options: ConvertOptions) -> tuple[Datasplit, tuple[str, ...]]:
    """The crops and classes a conversion would take, checked without opening a volume."""
    if options.datasplit is None:
        raise OptionError("no datasplit given", "--datasplit FILE.csv")
    datasplit = read_datasplit(options.datasplit, options.data_root)
    if options.test_manifest is not None:
        extra = read_test_manifest(options.test_manifest, datasplit.crops, options.data_root)
        datasplit = with_test_crops(datasplit, extra)
    asked = options.classes
    if not datasplit.classes() and (asked is None or not {*asked} <= {*KNOWN, *SETS}):
        # Only the crops' own folders can tell; asking remote ones for nothing would be slow.
        datasplit = with_stored_classes(datasplit)
    listed = datasplit.classes()
    if options.classes is None:
        return datasplit, listed
    valid = sorted({*KNOWN, *SETS, *listed})
    for name in options.classes:
        if name not in valid:
            raise OptionError(f"unknown class {name!r}", "a CellMap class", suggest(name, valid))
    return datasplit, expand(options.classes)


def check_crop_count(options: ConvertOptions) -> None:
    """Refuse a datasplit with fewer crops, or datasets, to train on than folds."""
    datasplit, _ = plan(options)
    crops = [crop for crop in _chosen(datasplit, options) if crop.split == "train"]
    if lacking := crops_lacking(options.datasplit, len(crops), options.num_fold):
        raise DatasplitError(*lacking)
    datasets = len({crop.dataset for crop in crops})
    if options.fold_by == "dataset" and datasets < options.num_fold:
        raise DatasplitError(
            f"{options.datasplit} has {datasets} dataset{'s' * (datasets > 1)} to train on",
            f"at least one for each of {options.num_fold} folds with fold_by=dataset",
            fold_remedy(datasets, by_dataset=True),
        )


def _chosen(datasplit: Datasplit, options: ConvertOptions) -> tuple[CropRef, ...]:
    crops = datasplit.crops
    return crops[: options.max_crops] if options.max_crops else crops


def _worked(crop: ReadCrop) -> int:
    """Output voxels that had to be made."""
    return 0 if crop.current else crop.voxels


def _write_labels(
    crops: Sequence[ReadCrop], table: LabelTable, options: ConvertOptions, mapper: Mapper
) -> tuple[list[ReadCrop], int]:
    """The second step: the crops, failed where it failed, and how many had to be made."""
    ids = table.id_of()
    jobs = [
        LabelJob(crop=c, ids=tuple(ids[s] for s in c.seen), dtype=table.dtype.name)
        for c in crops
        if c.converted
    ]
    written: list[WrittenLabel] = mapper(
        partial(write_label, options=options),
        jobs,
        lost=partial(lost_label, options=options),
    )
    made, failed = 0, {}
    for job, label in zip(jobs, written, strict=True):
        if label.reason:
            row = CropRow.of_ref(job.crop.ref, "failed", label.reason)
            failed[job.crop.ref] = ReadCrop(ref=job.crop.ref, row=row)
            logger.info("%s: %s", job.crop.ref.name, row.summary())
        else:
            made += label.changed or not job.crop.current
    return [failed.get(crop.ref, crop) for crop in crops], made


def _warn_of_names(datasplit: Datasplit) -> None:
    """Say which names are not those that the datasplit gives."""
    for base, stores in names_of_stores(datasplit.crops).items():
        if len(stores) > 1:
            listed = ", ".join(f"{name} ({store})" for name, store in sorted(stores.items()))
            logger.warning("%d stores are called %s; their datasets: %s", len(stores), base, listed)
    for known, crop in datasplit.listed_twice:
        logger.warning(
            "%s is in the datasplit (%s) and in the test manifest, whose grid is predicted as %s",
            known.name,
            known.split,
            crop.name,
        )


def _warn(classes: Sequence[str], crops: Sequence[ReadCrop]) -> None:
    """Say what converted but may not be meant."""
    for name in classes:
        if not any(name in crop.annotated for crop in crops):
            logger.warning("class %s is annotated in no converted crop", name)
    if coarse := sum(crop.interpolated for crop in crops):
        logger.warning(
            "the EM of %d crops is interpolated from a level coarser than the target although a "
            "finer one is there; --scale auto reads the right one",
            coarse,
        )
    checked = [c for c in crops if c.alignment and c.alignment.verdict != "unlabelled"]
    for crop in checked:
        if crop.alignment and crop.alignment.verdict == "shifted":
            logger.warning("%s: %s; look at its picture", crop.ref.name, crop.alignment.summary())
    unclear = sum(1 for c in checked if c.alignment and c.alignment.verdict == "unclear")
    if unclear > max(_FEW, len(checked) // 2):
        # Labels of quite another place have no best shift: a wrong pairing of all shows so.
        logger.warning(
            "in %d of %d crops the EM shows no edge where the labels have theirs; look at the "
            "contact sheet: image and labels may not belong together",
            unclear,
            len(checked),
        )


def _picture(crop: ReadCrop, options: ConvertOptions) -> CropPicture:
    paths, found = CropPaths(crop.ref, options), crop.alignment
    return CropPicture(
        crop=crop.ref.name,
        picture=paths.picture,
        thumbnail=paths.thumbnail,
        verdict=found.verdict if found else "unlabelled",
        shift_nm=found.shift_nm if found else None,
    )


def _linked(crops: Sequence[ReadCrop]) -> list[ReadCrop]:
    """The crops, each with the names of those that show some of the same voxels."""
    extents = [crop.extent for crop in crops if crop.extent]
    shared = leakage.overlaps(extents)
    specimen = leakage.specimens((c.ref.dataset, c.extent.volume) for c in crops if c.extent)
    linked = []
    for crop in crops:
        update = {
            "overlaps": shared.get(crop.ref.name),
            "specimen": specimen.get(crop.ref.dataset),
        }
        info = crop.info.model_copy(update=update) if crop.info else None
        linked.append(crop.model_copy(update={"info": info}))
    return linked


def _datalist(crops: Sequence[ReadCrop], table: LabelTable, options: ConvertOptions) -> Datalist:
    crops = _linked(crops)
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

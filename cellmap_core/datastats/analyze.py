"""The stage ``analyze``: statistics of all training cases, their summary and what it means."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellmap_core.datalist import Datalist, Entry, read_datalist
from cellmap_core.datastats.case import case_statistics
from cellmap_core.datastats.findings import findings
from cellmap_core.datastats.outliers import Outlier, find_outliers
from cellmap_core.datastats.page import Picture, analysis_markdown
from cellmap_core.datastats.reduce import summarize
from cellmap_core.datastats.reports import write_report
from cellmap_core.errors import CellmapError, DatalistError, StatisticsError, lost_reason
from cellmap_core.label_table import LabelTable
from cellmap_core.leakage import leakage_notes, shared_voxels
from cellmap_core.machine import keep_memory
from cellmap_core.models import AnalyzeResult, Failure, Frozen, Mapper, serial
from cellmap_core.nifti_names import files_of
from cellmap_core.pace import Pace, Report, unreported
from cellmap_core.patience import patiently
from cellmap_core.provenance import (
    held,
    key_of,
    read_receipt,
    write_bytes,
    write_receipt,
    write_text,
)
from cellmap_core.work import ensure_folder

logger = logging.getLogger(__name__)

# Part of every key: raise it when a number's rule changes, so that old results do not stay.
_VERSION = 4

_PLOTS = (
    Picture("Class balance", "class_balance.png"),
    Picture("Intensity by dataset", "intensity.png"),
    Picture("Crop sizes", "crop_sizes.png"),
    Picture("Annotated classes by crop", "annotation_matrix.png"),
)
_OUTLIERS = Picture("Crops to look at", "outliers.jpg")


class _Job(Frozen):
    """One case to analyse; small, it travels to a worker."""

    entry: Entry
    folder: Path
    table: LabelTable
    do_ccp: bool
    receipt: Path


class _Outcome(Frozen):
    """What came of a case: its statistics, or why there are none."""

    name: str
    made: bool = False
    stats: dict[str, Any] | None = None
    reason: str = ""

    @property
    def voxels(self) -> int:
        """Voxels that had to be read."""
        shape = self.stats["image_stats"]["shape"][0] if self.made and self.stats else (0,)
        return math.prod(shape)

    @classmethod
    def lost(cls, job: _Job, error: Exception) -> _Outcome:
        """A case whose worker died with it."""
        return cls(name=job.entry.name, reason=lost_reason(error))


def analyze(
    datalist: Path,
    work_dir: Path,
    do_ccp: bool = False,
    mapper: Mapper = serial,
    report: Report = unreported,
) -> AnalyzeResult:
    """Analyse the training cases of a datalist.

    Writes ``datastats.yaml``, ``datastats_by_case.yaml``, ``analysis.md`` and the pictures in
    ``analysis/``. A case already analysed from the same files, table and options is not
    analysed again. A case that cannot be analysed is a failure by name; the rest go on.

    Parameters
    ----------
    datalist : Path
        ``datalist.json``.
    work_dir : Path
        Where the reports go.
    do_ccp : bool
        Whether to find the connected components of each label id.
    mapper : Mapper
        Runs a function over the cases, in their order.
    report : Report
        Told how far the cases are.

    Raises
    ------
    DatalistError
        The datalist cannot be read.
    StatisticsError
        Not one case could be analysed.
    BusyError
        Another analysis writes into the same folder.
    """
    cases = read_datalist(datalist)
    for remark in (*cases.remarks, *leakage_notes(cases, shared_voxels(cases))):
        logger.warning("%s", remark)
    if not cases.training:
        raise DatalistError(f"{datalist} has no training case", "at least one", "convert some")
    ensure_folder(work_dir, "work_dir")
    with held(work_dir / ".cache" / "datastats"):
        return _analyze(cases, work_dir, do_ccp, mapper, report)


def _analyze(
    cases: Datalist, work_dir: Path, do_ccp: bool, mapper: Mapper, report: Report
) -> AnalyzeResult:
    jobs = _jobs(cases, work_dir, do_ccp)
    pace = Pace(len(jobs), report)
    outcomes: list[_Outcome] = mapper(
        analyze_case,
        jobs,
        done=lambda o: pace.step(o.name, o.reason or "analysed", o.voxels),
        lost=_Outcome.lost,
    )
    failures = tuple(Failure(item=o.name, reason=o.reason) for o in outcomes if o.stats is None)
    for failure in failures:
        logger.warning("%s has no statistics: %s", failure.item, failure.reason)
    stats = [o.stats for o in outcomes if o.stats is not None]
    if not stats:
        first = f", the first ({failures[0].item}) because {failures[0].reason}" if failures else ""
        raise StatisticsError(
            f"none of the {len(jobs)} training cases has statistics{first}",
            "at least one labelled case",
            f"look at the files listed in {cases.folder / 'datalist.json'}",
        )
    outliers = find_outliers(stats)
    for outlier in outliers:
        logger.warning("look at %s: %s", outlier.case, outlier.text())
    _write_reports(work_dir, cases, stats, outliers, failures)
    made = sum(o.made for o in outcomes)
    return AnalyzeResult(
        done=made,
        current=len(stats) - made,
        failures=failures,
        datastats=work_dir / "datastats.yaml",
        datastats_by_case=work_dir / "datastats_by_case.yaml",
        analysis=work_dir / "analysis.md",
    )


def analyze_case(job: _Job) -> _Outcome:
    """Statistics of one case, from its receipt where that still holds.

    Survives any fault of the case's own files; never raises for one.
    """
    entry = job.entry
    key = key_of(
        _VERSION,
        job.do_ccp,
        list(job.table.classes),
        job.table.to_json(),
        sorted(set(entry.annotated_classes)),
    )
    # Where the files lie is no part of their statistics, so a moved data set stays current.
    about: dict[str, Any] = {
        "image_filepath": str(job.folder / entry.image),
        "label_filepath": str(job.folder / (entry.label or "")),
    }
    if entry.title:
        about["case"] = entry.title
    if entry.cellmap is not None:
        about["cellmap"] = entry.cellmap.model_dump(mode="json")
    named = (Path(about["image_filepath"]), Path(about["label_filepath"]))
    files = [file for path in named for file in files_of(path)]
    if receipt := read_receipt(job.receipt, key, files):
        return _Outcome(name=entry.name, stats={**receipt.result, **about})
    keep_memory()
    try:
        stats = patiently(lambda: case_statistics(entry, job.folder, job.table, job.do_ccp))
        # The receipt's "outputs" are the files read: current as long as they are the same.
        write_receipt(job.receipt, key, files, stats)
    except (CellmapError, OSError, ValueError) as error:
        return _Outcome(name=entry.name, reason=" ".join(str(error).split()))
    except Exception as error:
        # One case must not end the others, whatever a reader comes up with.
        logger.exception("%s failed unexpectedly", entry.name)
        return _Outcome(name=entry.name, reason=f"unexpected {error!r}")
    return _Outcome(name=entry.name, made=True, stats={**stats, **about})


def _jobs(cases: Datalist, work_dir: Path, do_ccp: bool) -> list[_Job]:
    folder = work_dir / ".cache" / "datastats"
    return [
        _Job(
            entry=entry,
            folder=cases.folder,
            table=cases.table,
            do_ccp=do_ccp,
            receipt=folder / f"{entry.stem}.json",
        )
        for entry in cases.training
    ]


def _write_reports(
    work_dir: Path,
    cases: Datalist,
    stats: Sequence[dict[str, Any]],
    outliers: Sequence[Outlier],
    failures: Sequence[Failure],
) -> None:
    """Write all reports, unless those of the very same statistics are there already."""
    short, full = work_dir / "datastats.yaml", work_dir / "datastats_by_case.yaml"
    page, folder = work_dir / "analysis.md", work_dir / "analysis"
    pictures = [*_PLOTS, _OUTLIERS] if outliers else list(_PLOTS)
    receipt = work_dir / ".cache" / "datastats.json"
    key = key_of(_VERSION, stats, list(cases.classes), [f.model_dump() for f in failures])
    if read_receipt(receipt, key):
        return
    summary = summarize(stats, cases.classes)
    write_report(short, summary, [])
    write_report(full, summary, stats)
    _draw(folder, summary, stats, outliers, cases.table)
    found = findings(summary, stats)
    write_text(page, analysis_markdown(found, summary, outliers, failures, _PLOTS, _OUTLIERS))
    write_receipt(receipt, key, [short, full, page, *(folder / p.file for p in pictures)], {})


def _draw(
    folder: Path,
    summary: dict[str, Any],
    stats: Sequence[dict[str, Any]],
    outliers: Sequence[Outlier],
    table: LabelTable,
) -> None:
    # matplotlib takes most of a second to import, and a run that finds all current needs none.
    from cellmap_core.datastats import plots
    from cellmap_core.report.outlier_sheet import outlier_sheet

    drawn = (
        plots.class_balance(summary),
        plots.intensity(stats),
        plots.crop_sizes(stats),
        plots.annotation_matrix(summary, stats),
    )
    for picture, content in zip(_PLOTS, drawn, strict=True):
        write_bytes(folder / picture.file, content)
    (folder / _OUTLIERS.file).unlink(missing_ok=True)
    if outliers:
        # The scale of all crops: the odd ones themselves must not move it.
        scale = summary["normalisation"]
        low, high = (scale["clip_low"], scale["clip_high"]) if scale else (0.0, 0.0)
        grey = (low, high if high > low else low + 1)
        write_bytes(folder / _OUTLIERS.file, outlier_sheet(outliers, table, grey))

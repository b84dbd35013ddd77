"""The stage ``analyze``: statistics of all training cases, their summary and what it means."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cellmap_core.datalist import Datalist, Entry, read_datalist
from cellmap_core.datastats.case import case_statistics
from cellmap_core.datastats.findings import findings, findings_markdown
from cellmap_core.datastats.reduce import summarize
from cellmap_core.errors import CellmapError, DatalistError, StatisticsError
from cellmap_core.label_table import LabelTable
from cellmap_core.models import AnalyzeResult, Failure, Frozen, Mapper, serial
from cellmap_core.provenance import atomic_path, key_of, read_receipt, write_receipt, write_text

log = logging.getLogger(__name__)

# Part of every key: raise it when a number's rule changes, so that old results do not stay.
_VERSION = 1

_PLOTS = (
    ("Class balance", "class_balance.png"),
    ("Crop sizes", "crop_sizes.png"),
    ("Annotated classes by crop", "annotation_matrix.png"),
)

# libyaml is some ten times faster, where PyYAML was built with it.
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


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


def analyze(
    datalist: Path, work_dir: Path, do_ccp: bool = False, mapper: Mapper = serial
) -> AnalyzeResult:
    """Analyse the training cases of a datalist.

    Writes ``datastats.yaml``, ``datastats_by_case.yaml``, ``analysis.md`` and the plots in
    ``analysis/``. A case already analysed from the same files, table and options is not
    analysed again. A case that cannot be analysed is a failure by name; the rest go on.

    Parameters
    ----------
    datalist : Path
        ``datalist.json``.
    work_dir : Path
        Where the reports go.
    do_ccp : bool
        Whether to count connected components.
    mapper : Mapper
        Runs a function over the cases, in their order.

    Raises
    ------
    DatalistError
        The datalist cannot be read.
    StatisticsError
        Not one case could be analysed.
    """
    cases = read_datalist(datalist)
    if not cases.training:
        raise DatalistError(f"{datalist} has no training case", "at least one", "convert some")
    jobs = _jobs(cases, work_dir, do_ccp)
    outcomes = [_Outcome.model_validate(o) for o in mapper(analyze_case, jobs)]
    failures = tuple(Failure(item=o.name, reason=o.reason) for o in outcomes if o.stats is None)
    for failure in failures:
        log.warning("%s has no statistics: %s", failure.item, failure.reason)
    stats = [o.stats for o in outcomes if o.stats is not None]
    if not stats:
        first = f", the first ({failures[0].item}) because {failures[0].reason}" if failures else ""
        raise StatisticsError(
            f"none of the {len(jobs)} training cases has statistics{first}",
            "at least one labelled case",
            f"look at the files listed in {datalist}",
        )
    _write_reports(work_dir, stats, cases.classes, failures)
    made = sum(o.made for o in outcomes)
    return AnalyzeResult(
        done=made,
        current=len(stats) - made,
        failures=failures,
        datastats=work_dir / "datastats.yaml",
        datastats_by_case=work_dir / "datastats_by_case.yaml",
        analysis=work_dir / "analysis.md",
    )


def read_summary(path: Path) -> dict[str, Any]:
    """The ``stats_summary`` of a ``datastats.yaml``.

    Raises
    ------
    StatisticsError
        The file is missing or holds no summary.
    """
    advice = "make it with flows/analyze.py"
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise StatisticsError(
            f"{path} cannot be read ({error})", "a datastats.yaml", advice
        ) from error
    if not isinstance(document, dict) or not isinstance(document.get("stats_summary"), dict):
        raise StatisticsError(f"{path} holds no statistics", "the key stats_summary", advice)
    summary: dict[str, Any] = document["stats_summary"]
    return summary


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
    paths = {
        "image_filepath": str(job.folder / entry.image),
        "label_filepath": str(job.folder / (entry.label or "")),
    }
    if receipt := read_receipt(job.receipt, key):
        return _Outcome(name=entry.name, stats={**receipt.result, **paths})
    try:
        stats = case_statistics(entry, job.folder, job.table, job.do_ccp)
        # The receipt's "outputs" are the files read: current as long as they are the same.
        write_receipt(job.receipt, key, [Path(p) for p in paths.values()], stats)
    except (CellmapError, OSError, ValueError) as error:
        return _Outcome(name=entry.name, reason=" ".join(str(error).split()))
    return _Outcome(name=entry.name, made=True, stats=stats)


def _jobs(cases: Datalist, work_dir: Path, do_ccp: bool) -> list[_Job]:
    stems = Counter(e.stem for e in cases.training)
    folder = work_dir / ".cache" / "datastats"
    return [
        _Job(
            entry=entry,
            folder=cases.folder,
            table=cases.table,
            do_ccp=do_ccp,
            # Files of one name in two folders are two cases.
            receipt=folder
            / (
                f"{entry.stem}-{key_of(entry.image)[:8]}.json"
                if stems[entry.stem] > 1
                else f"{entry.stem}.json"
            ),
        )
        for entry in cases.training
    ]


def _write_reports(
    work_dir: Path,
    cases: Sequence[dict[str, Any]],
    classes: Sequence[str],
    failures: Sequence[Failure],
) -> None:
    """Write all reports, unless those of the very same statistics are there already."""
    short, full = work_dir / "datastats.yaml", work_dir / "datastats_by_case.yaml"
    page = work_dir / "analysis.md"
    pictures = [work_dir / "analysis" / file for _, file in _PLOTS]
    receipt = work_dir / ".cache" / "datastats.json"
    key = key_of(_VERSION, cases, list(classes), [f.model_dump() for f in failures])
    if read_receipt(receipt, key):
        return
    summary = summarize(cases, classes)
    _write_yaml(short, {"stats_summary": summary, "stats_by_cases": []})
    _write_yaml(full, {"stats_summary": summary, "stats_by_cases": list(cases)})
    _write_plots(pictures, summary, cases)
    links = [(title, f"analysis/{file}") for title, file in _PLOTS]
    write_text(page, findings_markdown(findings(summary, cases), failures, links))
    write_receipt(receipt, key, [short, full, page, *pictures], {})


def _write_plots(
    files: Sequence[Path], summary: dict[str, Any], cases: Sequence[dict[str, Any]]
) -> None:
    # matplotlib takes most of a second to import, and a run that finds all current needs none.
    from cellmap_core.datastats.plots import annotation_matrix, class_balance, crop_sizes

    pictures = (class_balance(summary), crop_sizes(cases), annotation_matrix(summary, cases))
    for file, picture in zip(files, pictures, strict=True):
        with atomic_path(file) as temporary:
            temporary.write_bytes(picture)


class _PlainDumper(_Dumper):  # type: ignore[misc]
    """Writes a list that is shared by two keys twice: readers of YAML trip over aliases."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _write_yaml(path: Path, document: dict[str, Any]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as sink:
        # The layout of MONAI's own export.
        yaml.dump(document, sink, Dumper=_PlainDumper, default_flow_style=None, sort_keys=False)

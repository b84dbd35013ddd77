"""Analyze: statistics of all cases and what they mean; needs no server."""

from __future__ import annotations

import sys
from pathlib import Path

from cellmap_core.datalist import read_datalist
from cellmap_core.models import AnalyzeResult
from cellmap_core.options import AnalyzeOptions, ConvertOptions
from cellmap_core.work import datalist_of, ensure_folder
from flows import convert
from flows.house import auto3dseg, shell
from tasks.analyze import analyze_cases
from tasks.crew import crew
from tasks.house import result_of


def check(options: AnalyzeOptions) -> None:
    """Refuse a datalist or datasplit that is not there, and folders not to be made."""
    if _from_crops(options):
        convert.check(_of_conversion(options))
    else:
        read_datalist(datalist_of(options.datalist, options.output_dir))
    ensure_folder(options.work_dir, "work_dir")


def run(options: AnalyzeOptions) -> AnalyzeResult:
    """Analyse every case of the datalist, or of the datasplit's crops, converted first."""
    if not _from_crops(options):
        return _analyze(datalist_of(options.datalist, options.output_dir), options)
    converted = convert.run(_of_conversion(options))
    analyzed = _analyze(converted.datalist, options)
    both = converted.and_then(analyzed)
    return analyzed.model_copy(update=dict(both))


def _analyze(datalist: Path, options: AnalyzeOptions) -> AnalyzeResult:
    with crew("analyze", work_dir=options.work_dir):
        state = analyze_cases(datalist, options.work_dir, options.do_ccp, return_state=True)
    return result_of(state)


def _from_crops(options: AnalyzeOptions) -> bool:
    return options.datalist is None and options.datasplit is not None


def _of_conversion(options: AnalyzeOptions) -> ConvertOptions:
    return ConvertOptions(**{n: getattr(options, n) for n in ConvertOptions.model_fields})


def _show(options: AnalyzeOptions) -> None:
    """Print what the data say."""
    from cellmap_core.report.terminal import print_page

    print_page(options.work_dir / "analysis.md")


analyze = auto3dseg(AnalyzeOptions, check)(run)

if __name__ == "__main__":
    sys.exit(shell(analyze, AnalyzeOptions, check, show=_show))

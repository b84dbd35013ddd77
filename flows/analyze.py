"""Analyze: statistics of all cases and what they mean; needs no server."""

from __future__ import annotations

import sys

from cellmap_core.datalist import read_datalist
from cellmap_core.models import AnalyzeResult
from cellmap_core.options import AnalyzeOptions
from cellmap_core.work import datalist_of, ensure_folder
from flows.house import auto3dseg, shell
from tasks.analyze import analyze_cases


def check(options: AnalyzeOptions) -> None:
    """Refuse a datalist that is not there, and a folder not to be made."""
    read_datalist(datalist_of(options.datalist))
    ensure_folder(options.work_dir, "work_dir")


def run(options: AnalyzeOptions) -> AnalyzeResult:
    """Analyse every case of the datalist."""
    datalist = datalist_of(options.datalist)
    state = analyze_cases(datalist, options.work_dir, options.do_ccp, return_state=True)
    return state.result()


analyze = auto3dseg(AnalyzeOptions, check)(run)

if __name__ == "__main__":
    sys.exit(shell(analyze, AnalyzeOptions, check))

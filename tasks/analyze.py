"""Task: statistics of all cases, and publish what they say."""

from __future__ import annotations

from pathlib import Path

from cellmap_core.datastats.analyze import analyze
from cellmap_core.models import AnalyzeResult
from cellmap_core.report.datastats_page import datastats_markdown, datastats_table
from tasks.artifacts import Progress, publish_page, publish_table
from tasks.fanout import mapper
from tasks.house import house_task


@house_task("analyze")
def analyze_cases(datalist: Path, work_dir: Path, do_ccp: bool) -> AnalyzeResult:
    """Analyse all cases, spread over the cluster; see :mod:`cellmap_core.datastats`."""
    report = Progress("progress-analyze", "cases").show
    result = analyze(datalist, work_dir, do_ccp, mapper(), report)
    publish_page("datastats", datastats_markdown(result), "What the data are, and what follows")
    publish_table("datastats-classes", datastats_table(result), "Each class over all crops")
    return result

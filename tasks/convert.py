"""Task: convert the crops of a datasplit, and publish the table of all crops."""

from __future__ import annotations

from cellmap_core.convert import convert
from cellmap_core.models import ConvertResult
from cellmap_core.options import ConvertOptions
from cellmap_core.report.contact_sheet import contact_page
from cellmap_core.report.crops_page import crops_markdown, crops_table
from tasks.artifacts import Progress, publish_page, publish_table
from tasks.fanout import mapper
from tasks.house import house_task


@house_task("convert")
def convert_crops(options: ConvertOptions) -> ConvertResult:
    """Convert all crops, spread over the cluster; see :func:`cellmap_core.convert.convert`."""
    result = convert(options, mapper(), Progress("progress-convert", "crops").show)
    publish_table("crops", crops_table(result.crops_table), "Every crop: converted, or why not")
    publish_page("crops-summary", crops_markdown(result.crops_table), result.tally())
    publish_page("crops-sheet", contact_page(result.pictures), "Every crop, its labels on its EM")
    return result

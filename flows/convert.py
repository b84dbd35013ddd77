"""Convert: the crops of a datasplit to NIfTI and a datalist."""

from __future__ import annotations

import sys

from cellmap_core.convert import plan
from cellmap_core.models import ConvertResult
from cellmap_core.options import ConvertOptions
from cellmap_core.work import ensure_folder
from flows.house import auto3dseg, shell
from tasks.convert import convert_crops
from tasks.crew import crew
from tasks.house import result_of


def check(options: ConvertOptions) -> None:
    """Refuse a datasplit that cannot be read, unknown classes, and a folder not to be made."""
    plan(options)
    ensure_folder(options.output_dir, "output_dir")


def run(options: ConvertOptions) -> ConvertResult:
    """Convert every crop; the ones that fail are listed and do not stop the others."""
    with crew("convert"):
        return result_of(convert_crops(options, return_state=True))


convert = auto3dseg(ConvertOptions, check)(run)

if __name__ == "__main__":
    sys.exit(shell(convert, ConvertOptions, check))

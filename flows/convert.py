"""Convert: the crops of a datasplit to NIfTI and a datalist."""

from __future__ import annotations

import sys

from cellmap_core.convert import plan as check
from cellmap_core.models import ConvertResult
from cellmap_core.options import ConvertOptions
from flows.house import auto3dseg, shell
from tasks.convert import convert_crops


def run(options: ConvertOptions) -> ConvertResult:
    """Convert every crop; the ones that fail are listed and do not stop the others."""
    return convert_crops(options, return_state=True).result()


convert = auto3dseg(ConvertOptions, check)(run)

if __name__ == "__main__":
    sys.exit(shell(convert, ConvertOptions, check))

"""Task: one Auto3DSeg bundle for each algorithm and fold."""

from __future__ import annotations

from pathlib import Path

from cellmap_core.folds import working_datalist
from cellmap_core.models import GenerateResult
from cellmap_core.options import GenerateOptions
from tasks.house import house_task


@house_task("generate")
def generate_bundles(
    datalist: Path, datastats: Path, work_dir: Path, options: GenerateOptions
) -> GenerateResult:
    """Lay the folds down in the work folder and generate the bundles that are not current."""
    # Imports MONAI and torch: only the process that generates pays for it.
    from cellmap_core.bundles.generate import generate

    working = working_datalist(datalist, work_dir, options.num_fold, options.fold_by)
    return generate(working, datastats, work_dir, options)

"""Task: predict the testing cases with all trained models together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cellmap_core.models import BundleRef, EnsembleResult
from cellmap_core.report.ensemble_page import ensemble_markdown, ensemble_table
from tasks.artifacts import publish_page, publish_table
from tasks.house import house_task


@house_task("ensemble")
def ensemble_models(datalist: Path, work_dir: Path, bundles: Sequence[BundleRef]) -> EnsembleResult:
    """Predict every testing case; see :mod:`cellmap_core.inference.ensemble`."""
    # Imports MONAI and torch: only the process that predicts pays for it.
    from cellmap_core.inference.ensemble import ensemble

    result = ensemble(datalist, work_dir, bundles)
    publish_page("ensemble", ensemble_markdown(result), "Predictions of all models together")
    publish_table("ensemble-cases", ensemble_table(result), "Each predicted case")
    return result

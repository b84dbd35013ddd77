"""Task: one training, one algorithm and fold, in a process of its own."""

from __future__ import annotations

from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from cellmap_core.models import BundleRef, TrainResult
from cellmap_core.report.training_page import fold_markdown
from cellmap_core.training.launch import read_epochs, train_bundle
from tasks.artifacts import artifact_key, publish_page
from tasks.house import house_task


@house_task("train", run_name="train {bundle.algo}_{bundle.fold}")
def train_fold(bundle: BundleRef, threads: int | None, gpu: str | None) -> TrainResult:
    """Train one bundle; its log lines and epochs show in the run while it goes on."""
    logger = get_run_logger()
    progress = create_progress_artifact(
        0.0, key=artifact_key(f"progress-{bundle.name}"), description=f"{bundle.name}: starting"
    )

    def on_epoch(epoch: dict[str, Any]) -> None:
        done = round(100 * epoch["epoch"] / epoch["epochs"], 1)
        description = f"{bundle.name}: epoch {epoch['epoch']}/{epoch['epochs']}"
        update_progress_artifact(progress, done, description=description)

    result = train_bundle(bundle, logger.info, on_epoch, threads=threads, gpu=gpu)
    update_progress_artifact(progress, 100.0, description=f"{bundle.name}: done")
    page = fold_markdown(result, read_epochs(bundle))
    publish_page(f"training-{bundle.name}", page, f"Training of {bundle.name}")
    return result

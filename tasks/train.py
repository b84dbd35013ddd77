"""Task: one training, one algorithm and fold, in a process of its own."""

from __future__ import annotations

from typing import Any

from prefect import get_run_logger

from cellmap_core.models import BundleRef, TrainResult
from cellmap_core.report.training_page import fold_markdown
from cellmap_core.training.launch import read_epochs, train_bundle
from tasks.artifacts import Progress, publish_page
from tasks.house import house_task


@house_task("train", run_name="train {bundle.algo}_{bundle.fold}")
def train_fold(bundle: BundleRef, threads: int | None, gpus: tuple[str, ...] = ()) -> TrainResult:
    """Train one bundle; its log lines and epochs show in the run while it goes on."""
    progress = Progress(f"progress-{bundle.name}", bundle.name)

    def on_epoch(epoch: dict[str, Any]) -> None:
        progress.show(epoch["epoch"] / epoch["epochs"], f"epoch {epoch['epoch']}/{epoch['epochs']}")

    result = train_bundle(bundle, get_run_logger().info, on_epoch, threads=threads, gpus=gpus)
    progress.show(1.0, "done")
    page = fold_markdown(result, read_epochs(bundle))
    publish_page(f"training-{bundle.name}", page, f"Training of {bundle.name}")
    return result

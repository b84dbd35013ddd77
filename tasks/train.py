"""Task: one training, one algorithm and fold, in a process of its own."""

from __future__ import annotations

from typing import Any

from prefect import get_run_logger

from cellmap_core.models import BundleRef, TrainResult
from cellmap_core.report.training_page import fold_markdown, running_markdown
from cellmap_core.training.launch import read_epochs, train_bundle
from tasks.artifacts import LivePage, Progress
from tasks.house import house_task


@house_task("train", run_name="train {bundle.algo}_{bundle.fold}")
def train_fold(bundle: BundleRef, threads: int | None, gpus: tuple[str, ...] = ()) -> TrainResult:
    """Train one bundle; its log lines and epochs show in the run while it goes on."""
    progress = Progress(f"progress-{bundle.name}", bundle.name)
    page = LivePage(f"training-{bundle.name}", f"Training of {bundle.name}")

    def on_epoch(epoch: dict[str, Any]) -> None:
        progress.show(epoch["epoch"] / epoch["epochs"], _said(epoch))
        page.show(lambda: running_markdown(bundle.name, read_epochs(bundle)))

    result = train_bundle(bundle, get_run_logger().info, on_epoch, threads=threads, gpus=gpus)
    progress.show(1.0, "done")
    page.show(lambda: fold_markdown(result, read_epochs(bundle)), last=True)
    return result


def _said(epoch: dict[str, Any]) -> str:
    """An epoch in few words."""
    numbers = {"loss": epoch["loss"], "mean Dice": epoch["mean_dice"]}
    said = "".join(f", {name} {v:.3f}" for name, v in numbers.items() if v is not None)
    return f"epoch {epoch['epoch']}/{epoch['epochs']}{said}"

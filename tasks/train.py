"""Task: one training, one algorithm and fold, in a process of its own."""

from __future__ import annotations

from typing import Any

from prefect import get_run_logger

from cellmap_core.cluster.here import AT_WALL_TIME, ending, place
from cellmap_core.errors import TrainingInterrupted
from cellmap_core.machine import cores
from cellmap_core.machine import gpus as gpus_there
from cellmap_core.models import BundleRef, TrainPause, TrainResult
from cellmap_core.report.training_page import fold_markdown, running_markdown
from cellmap_core.scores import Scores
from cellmap_core.training.launch import leave_place, places, read_epochs, train_bundle
from tasks.artifacts import LivePage, Progress
from tasks.house import house_task


@house_task("train", run_name="train {bundle.algo}_{bundle.fold}")
def train_fold(
    bundle: BundleRef, threads: int | None = None, gpus: tuple[str, ...] | None = ()
) -> TrainResult | TrainPause:
    """Train one bundle; its log lines and epochs show in the run while it goes on.

    In a job of a cluster (``gpus`` None) it takes all of the job, and ends in time before the
    wall time is over: another job goes on.
    """
    log = get_run_logger().info
    progress = Progress(f"progress-{bundle.name}", bundle.name)
    page = LivePage(f"training-{bundle.name}", f"Training of {bundle.name}")
    here = place() if gpus is None else None
    if here is not None:
        leave_place(bundle, here)

    def on_epoch(epoch: dict[str, Any]) -> None:
        progress.show(epoch["epoch"] / epoch["epochs"], _said(epoch))
        page.show(lambda: running_markdown(bundle.name, read_epochs(bundle)) + _where(bundle))

    mine = gpus_there() if gpus is None else gpus
    try:
        result = train_bundle(bundle, log, on_epoch, threads=threads or cores(), gpus=mine)
    except TrainingInterrupted:
        if here is None or not (why := ending()):
            raise
        return TrainPause(
            bundle=bundle,
            why=f"{here} {why}",
            job_id=here.job_id,
            at_wall_time=why == AT_WALL_TIME,
        )
    progress.show(1.0, "done")
    page.show(lambda: fold_markdown(result, read_epochs(bundle)) + _where(bundle), last=True)
    return result


def _where(bundle: BundleRef) -> str:
    """The job of a training, and how many it took so far."""
    jobs = places(bundle)
    if not jobs:
        return ""
    number = len({job.job_id for job in jobs})
    before = f"{number} jobs one after another; the last: " if number > 1 else ""
    return f"\n\nTrained in {before}{jobs[-1]}.\n"


def _said(epoch: dict[str, Any]) -> str:
    """An epoch in few words."""
    said = "" if epoch["loss"] is None else f", loss {epoch['loss']:.3f}"
    if epoch["dice"]:
        said += f", {Scores.of_record(epoch).brief()}"
    return f"epoch {epoch['epoch']}/{epoch['epochs']}{said}"

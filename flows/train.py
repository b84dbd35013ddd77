"""Train: every algorithm and fold at once as far as the machine goes; one failure stops none."""

from __future__ import annotations

import sys

from prefect import allow_failure

from cellmap_core.machine import cores, gpus
from cellmap_core.models import BundleRef, Failure, StageResult, TrainResult
from cellmap_core.options import TrainOptions
from cellmap_core.work import bundles_of
from flows.house import auto3dseg, shell
from tasks.leaderboard import publish_leaderboard
from tasks.train import train_fold


def check(options: TrainOptions) -> tuple[BundleRef, ...]:
    """The bundles to train; refuse what was not generated."""
    return bundles_of(options.work_dir, options.algos, options.num_fold, options.folds)


def run(options: TrainOptions) -> StageResult:
    """Train the bundles and publish the leaderboard of those that succeeded."""
    results, failures = train_all(check(options), options.gpus_per_training)
    if results:
        publish_leaderboard(results)
    return StageResult(failures=failures).and_then(*results)


def train_all(
    bundles: tuple[BundleRef, ...], gpus_per_training: int = 1
) -> tuple[tuple[TrainResult, ...], tuple[Failure, ...]]:
    """Train side by side in as many slots as there are GPUs, or cores where there is none.

    A training waits for the one before it in its slot, whether that succeeded or not.
    """
    devices = _shares(gpus(), gpus_per_training)
    slots = min(len(bundles), len(devices) or cores())
    threads = max(1, cores() // slots)
    futures = []
    for number, bundle in enumerate(bundles):
        mine = devices[number % slots] if devices else ()
        before = [allow_failure(futures[number - slots])] if number >= slots else None
        futures.append(train_fold.submit(bundle, threads, mine, wait_for=before))
    results, failures = [], []
    for bundle, future in zip(bundles, futures, strict=True):
        # .result(), not .wait(): only it tells of a worker lost with its task.
        outcome = future.result(raise_on_failure=False)
        if isinstance(outcome, TrainResult):
            results.append(outcome)
        else:
            failures.append(Failure(item=bundle.name, reason=str(outcome)))
    return tuple(results), tuple(failures)


def _shares(devices: tuple[str, ...], each: int) -> list[tuple[str, ...]]:
    """The devices by training; what is left over, and too few, make one smaller share."""
    whole = len(devices) // each * each
    shares = [devices[i : i + each] for i in range(0, whole, each)]
    return shares or ([devices] if devices else [])


train = auto3dseg(TrainOptions, check)(run)

if __name__ == "__main__":
    sys.exit(shell(train, TrainOptions, check))

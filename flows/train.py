"""Train: every algorithm and fold at once as far as the machine goes; one failure stops none."""

from __future__ import annotations

import sys
from collections import deque
from typing import Any

from prefect.futures import PrefectFuture, as_completed

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

    The next one begins as soon as a slot is free, however the one before it has ended.
    """
    devices = _shares(gpus(), gpus_per_training)
    slots = min(len(bundles), len(devices) or cores())
    threads = max(1, cores() // slots)
    free = [devices[n] if devices else () for n in range(slots)]
    waiting, running = deque(bundles), {}
    outcomes: dict[str, TrainResult | Failure] = {}
    while waiting or running:
        while waiting and free:
            bundle, mine = waiting.popleft(), free.pop()
            running[train_fold.submit(bundle, threads, mine)] = bundle, mine
        ended = next(as_completed(list(running)))
        bundle, mine = running.pop(ended)
        free.append(mine)
        outcomes[bundle.name] = _outcome(bundle, ended)
    # Told in the order asked for, not in that of their ends.
    told = [outcomes[bundle.name] for bundle in bundles]
    return (
        tuple(o for o in told if isinstance(o, TrainResult)),
        tuple(o for o in told if isinstance(o, Failure)),
    )


def _outcome(bundle: BundleRef, future: PrefectFuture[Any]) -> TrainResult | Failure:
    """What came of a training; one that was lost with its worker is a failure by name too."""
    try:
        outcome = future.result(raise_on_failure=False)
    except Exception as error:  # noqa: BLE001 - whatever was lost on the way is this one's alone
        outcome = error
    if isinstance(outcome, TrainResult):
        return outcome
    return Failure(item=bundle.name, reason=str(outcome))


def _shares(devices: tuple[str, ...], each: int) -> list[tuple[str, ...]]:
    """The devices by training; what is left over, and too few, make one smaller share."""
    whole = len(devices) // each * each
    shares = [devices[i : i + each] for i in range(0, whole, each)]
    return shares or ([devices] if devices else [])


train = auto3dseg(TrainOptions, check)(run)

if __name__ == "__main__":
    sys.exit(shell(train, TrainOptions, check))

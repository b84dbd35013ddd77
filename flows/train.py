"""Train: every algorithm and fold at once as far as the machine goes; one failure stops none."""

from __future__ import annotations

import sys
from collections import deque
from functools import partial
from typing import Any

from prefect import get_run_logger
from prefect.futures import PrefectFuture

from cellmap_core.cluster.attempts import Attempts, Loss
from cellmap_core.cluster.profiles import site_of
from cellmap_core.cluster.states import End
from cellmap_core.errors import is_lost
from cellmap_core.models import BundleRef, Failure, StageResult, TrainPause, TrainResult
from cellmap_core.options import TrainOptions
from cellmap_core.training.launch import progress_mark, read_result
from cellmap_core.work import bundles_of
from flows.house import auto3dseg, shell
from flows.plan import planned, refuse_too_big
from tasks.crew import Crew, crew
from tasks.house import result_of
from tasks.leaderboard import publish_leaderboard
from tasks.train import train_fold


def check(options: TrainOptions) -> None:
    """Refuse what was not generated, and on a cluster what would not fit."""
    _bundles(options)
    refuse_too_big(options)


def run(options: TrainOptions) -> StageResult:
    """Train the bundles, planned before and accounted for afterwards."""
    with planned(options):
        return train_and_rank(options)


def train_and_rank(options: TrainOptions) -> StageResult:
    """Train the bundles and publish the leaderboard of those that succeeded."""
    results, failures = _train_all(options)
    if results:
        publish_leaderboard(results, failures)
    return StageResult(failures=failures).and_then(*results)


def _bundles(options: TrainOptions) -> tuple[BundleRef, ...]:
    return bundles_of(options.work_dir, options.algos, options.num_fold, options.folds)


def _train_all(options: TrainOptions) -> tuple[tuple[TrainResult, ...], tuple[Failure, ...]]:
    """Train side by side in as many slots as there are; the next begins when one is free.

    One that was lost with its worker, or whose job had no time left, goes on from its
    checkpoint in another, as often as it gets on.
    """
    bundles = _bundles(options)
    outcomes: dict[str, TrainResult | Failure] = {
        b.name: result_of(train_fold(b, return_state=True))
        for b in bundles
        if read_result(b) is not None
    }
    waiting = deque(b for b in bundles if b.name not in outcomes)
    if waiting:
        each, folder = options.gpus_per_training, options.work_dir
        with crew("train", len(waiting), each, work_dir=folder) as workers:
            outcomes |= _train_in(workers, waiting)
    # Told in the order asked for, not in that of their ends.
    told = [outcomes[bundle.name] for bundle in bundles]
    return (
        tuple(o for o in told if isinstance(o, TrainResult)),
        tuple(o for o in told if isinstance(o, Failure)),
    )


def _train_in(workers: Crew, waiting: deque[BundleRef]) -> dict[str, TrainResult | Failure]:
    """Train in the slots of a crew until nothing is left."""
    running: dict[PrefectFuture[Any], BundleRef] = {}
    outcomes: dict[str, TrainResult | Failure] = {}
    attempts: dict[str, Attempts] = {}
    site, warn = site_of(), get_run_logger().warning
    while waiting or running:
        while waiting and len(running) < workers.slots:
            bundle = waiting.popleft()
            if bundle.name not in attempts:
                attempts[bundle.name] = Attempts("train", site, partial(progress_mark, bundle))
            running[workers.submit(train_fold, bundle=bundle)] = bundle
        ended = workers.next_ended(running, len(waiting) + len(running))
        bundle = running.pop(ended)
        outcome = _outcome(workers, bundle, ended)
        if isinstance(outcome, Loss):
            own = attempts[bundle.name]
            if (why := own.refusal(outcome)) is None:
                said = "%s: %s; it goes on from its checkpoint (for the %d. time)"
                warn(said, bundle.name, outcome.said, own.times)
                waiting.append(bundle)
                continue
            outcome = Failure(item=bundle.name, reason=why)
        outcomes[bundle.name] = outcome
    return outcomes


def _outcome(
    workers: Crew, bundle: BundleRef, future: PrefectFuture[Any]
) -> TrainResult | Loss | Failure:
    """Return what came of a training; one that was lost with its job may go on."""
    try:
        outcome = future.result(raise_on_failure=False)
    except Exception as error:  # noqa: BLE001 - whatever was lost on the way is this one's alone
        if not is_lost(error):
            return Failure(item=bundle.name, reason=str(error))
        return workers.lost(future, error)
    if isinstance(outcome, TrainPause):
        if outcome.job_id is not None:
            workers.dismiss(outcome.job_id)
        end = End.WALL_TIME if outcome.at_wall_time else End.CANCELLED
        return Loss(end=end, said=outcome.why)
    if isinstance(outcome, TrainResult):
        return outcome
    return Failure(item=bundle.name, reason=str(outcome))


train = auto3dseg(TrainOptions, check)(run)

if __name__ == "__main__":
    sys.exit(shell(train, TrainOptions, check))

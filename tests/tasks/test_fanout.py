"""Items over a real Dask cluster, one of them deadly."""

import os
import signal
import time
from pathlib import Path

import pytest
from distributed import Client, KilledWorker, LocalCluster, get_worker
from distributed.core import Status

from cellmap_core.cluster.attempts import Loss
from cellmap_core.cluster.profiles import Site
from cellmap_core.cluster.states import End
from cellmap_core.errors import lost_reason
from tasks.fanout import Spread
from tasks.hand_overs import HandOvers


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit=0, host="127.0.0.1",
            dashboard_address=None,
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        yield client


def double(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def double_at_second_sight(argument):
    number, folder = argument
    seen = Path(folder) / str(number)
    if number == 3 and not seen.exists():
        seen.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def test_results_come_in_the_order_of_the_items_and_each_is_told(client):
    told = []
    assert Spread(client)(str, range(20), done=told.append) == [str(i) for i in range(20)]
    assert sorted(told) == sorted(str(i) for i in range(20))


def test_an_item_that_kills_its_worker_is_lost_alone(client):
    def lost(item, error):
        return f"{item} lost: {type(error).__name__}"

    results = Spread(client)(double, range(8), lost=lost)
    assert results == [0, 2, 4, "3 lost: KilledWorker", 8, 10, 12, 14]


def test_without_a_word_for_it_a_lost_item_is_an_error(client):
    with pytest.raises(KilledWorker):
        Spread(client)(double, [3])


def test_a_worker_killed_once_costs_nothing(client, tmp_path):
    items = [(i, str(tmp_path)) for i in range(6)]
    assert Spread(client)(double_at_second_sight, items) == [0, 2, 4, 6, 8, 10]


class Jobs:
    """Stands for the jobs of a stage: workers whose end the cluster explains, one by one."""

    site, stage = Site(name="mine", restarts=1, fruitless_jobs=1), "convert"

    def __init__(self, ends=(), hand_overs=None):
        self.ends, self.times = list(ends), {} if hand_overs is None else hand_overs
        self.asked = []

    def check(self):
        pass

    def expect(self, items):
        pass

    def hand_overs(self):
        return self.times

    def loss_of(self, error):
        self.asked.append(error.last_worker.name)
        return Loss(end=self.ends.pop(0), said="job 7 ended")


@pytest.mark.parametrize(
    ("ends", "result"),
    [
        # Its node failed: nothing was wrong with the item. And so did the next one.
        ([End.LOST, End.LOST], "its worker was lost: job 7 ended"),
        (
            [End.OUT_OF_MEMORY],
            "its worker was lost: job 7 ended; "
            "raise stages.convert.memory_gb of the site profile mine (now 8)",
        ),
    ],
)
def test_a_lost_item_is_tried_again_by_the_cause(ends, result, client):
    jobs = Jobs(ends)
    found = Spread(client, jobs)(double, [3], lost=lambda _, error: lost_reason(error))
    assert found == [result]
    # Alone it died once for each end that was asked for; the first death is with the others.
    assert len(jobs.asked) == len(ends)
    assert jobs.ends == []


def outlasts_its_job(number):
    """Work until the worker has left the scheduler, as it does near the end of its wall time."""
    if number == 0:
        worker = get_worker()
        worker.loop.add_callback(worker.close_gracefully, restart=True)
        while worker.status is not Status.closing:
            time.sleep(0.05)
    return number


def test_an_item_that_outlasts_every_job_is_lost_and_the_rest_is_done(client):
    plugin = HandOvers()
    client.cluster.scheduler.add_plugin(plugin)
    # On a busy machine the nanny may kill a worker before it has left: that is a lost job.
    jobs = Jobs([End.LOST] * 20, hand_overs=plugin.times)
    jobs.site = Site(name="mine", restarts=20, fruitless_jobs=1)
    lost, *others = Spread(client, jobs)(
        outlasts_its_job, range(5), lost=lambda _, error: lost_reason(error)
    )
    assert others == [1, 2, 3, 4]
    assert lost == (
        "it takes longer than the wall time of its jobs; "
        "raise stages.convert.hours of the site profile mine (now 12)"
    )

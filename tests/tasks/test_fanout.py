"""Items over a real Dask cluster, one of them deadly."""

import os
import signal
from pathlib import Path

import dask
import pytest
from distributed import Client, KilledWorker, LocalCluster

from tasks.fanout import Spread


@pytest.fixture(scope="module")
def client():
    with (
        # As the environment that tasks.fanout sets has it, whoever imported distributed first.
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
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

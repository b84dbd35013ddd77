"""What the house's task retries, and how it ends."""

import logging

import httpx
import pytest
from distributed import LocalCluster
from prefect import flow, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Completed, Failed
from prefect_dask import DaskTaskRunner

from cellmap_core.errors import DatasplitError, StoreError, TrainingInterrupted
from cellmap_core.models import Failure, StageResult, serial
from flows.server import temporary_server
from tasks import artifacts
from tasks.artifacts import artifact_key
from tasks.convert import convert_crops
from tasks.fanout import mapper
from tasks.house import house_task, result_of
from tasks.train import train_fold


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The address of a cluster of one worker, with a Prefect server of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        with (
            temporary_server() as (address, auth),
            temporary_settings({PREFECT_API_URL: address, PREFECT_API_AUTH_STRING: auth}),
            LocalCluster(
                n_workers=1, threads_per_worker=1, memory_limit=0, host="127.0.0.1",
                dashboard_address=None,
            ) as one_worker,
        ):  # fmt: skip
            yield one_worker.scheduler_address
            APILogWorker.drain_all(timeout=10)
            EventsWorker.drain_all(timeout=10)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (TrainingInterrupted("ended by SLURM"), True),
        (OSError(5, "Input/output error"), True),
        (ConnectionResetError(), True),
        (httpx.ReadTimeout("slow"), True),
        (FileNotFoundError(2, "gone"), False),
        (PermissionError(13, "no"), False),
        (DatasplitError("empty"), False),
        (StoreError("truncated"), False),
        (KeyError("a bug"), False),
    ],
)
@pytest.mark.parametrize("task", [convert_crops, train_fold])
def test_only_what_may_pass_is_tried_again(task, error, again):
    assert task.retry_condition_fn(task, None, Failed(data=error)) is again


def test_retries_back_off():
    delays = convert_crops.retry_delay_seconds
    assert convert_crops.retries == len(delays) >= 2
    assert delays == sorted(delays)
    assert delays[0] < delays[-1]


@pytest.mark.parametrize(
    ("result", "name"),
    [
        (StageResult(done=0, current=3), "Cached"),
        (StageResult(done=1, current=3), "Completed"),
    ],
)
def test_a_task_that_found_everything_current_says_so(result, name):
    state = house_task("x")(lambda: result).fn()
    assert (state.name, state.message) == (name, result.tally())


FAILED = StageResult(done=2, failures=(Failure(item="a/crop1", reason="no array"),))


@house_task("half")
def half_of_it():
    return FAILED


@house_task("whole")
def all_of(before):
    return StageResult(done=before.done)


@pytest.mark.parametrize("in_a_job", [False, True])
def test_a_task_whose_items_failed_ends_failed_and_the_flow_goes_on(cluster, in_a_job):
    """Here, and where its state comes back from a worker."""

    @flow(task_runner=DaskTaskRunner(address=cluster) if in_a_job else None)
    def both():
        if in_a_job:
            future = half_of_it.submit()
            future.wait()
            state = future.state
        else:
            state = half_of_it(return_state=True)
        assert result_of(state) == FAILED
        return Completed(data=result_of(all_of(result_of(state), return_state=True)))

    state = both(return_state=True)
    assert state.result() == StageResult(done=2)
    with get_client(sync_client=True) as client:
        run = FlowRunFilter(id={"any_": [state.state_details.flow_run_id]})
        found = {t.name.split("-")[0]: t for t in client.read_task_runs(flow_run_filter=run)}
    assert found["half"].state.is_failed()
    assert found["half"].state.message == "2 made, 0 up to date, 1 failed - a/crop1: no array"
    assert found["half"].run_count == 1
    assert found["whole"].state.is_completed()


def test_what_a_task_raised_is_raised_where_its_result_is_asked_for():
    with pytest.raises(StoreError, match="truncated"):
        result_of(Failed(data=StoreError("truncated")))
    with pytest.raises(Exception, match="by hand"):
        result_of(Cancelled(message="by hand"))


def test_our_own_errors_are_logged_without_a_traceback(caplog):
    logger = logging.getLogger("prefect.task_runs")
    with caplog.at_level(logging.ERROR):
        for error in (DatasplitError("no rows"), KeyError("a bug")):
            logger.error("failed", exc_info=error)
    assert [bool(record.exc_info) for record in caplog.records] == [False, True]


def test_items_run_here_where_there_is_no_flow():
    assert mapper() is serial
    assert list(mapper()(str, [1, 2])) == ["1", "2"]


def test_a_silent_server_does_not_end_what_it_watches(monkeypatch, caplog):
    def refused(*_args, **_kwargs):
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(artifacts, "create_progress_artifact", refused)
    artifacts.Progress("progress-x", "x").show(1.0, "epoch 2/2")
    assert caplog.text.count("progress of x is not shown") == 2


def test_artifact_keys_are_prefects():
    assert artifact_key("training-SegResNet_0") == "training-segresnet-0"

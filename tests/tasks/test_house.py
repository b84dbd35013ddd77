"""What the house's task retries, and how it ends."""

import logging

import httpx
import pytest
from prefect.states import Failed

from cellmap_core.errors import DatasplitError, StoreError, TrainingInterrupted
from cellmap_core.models import Failure, StageResult, serial
from tasks import artifacts
from tasks.artifacts import artifact_key
from tasks.convert import convert_crops
from tasks.fanout import mapper
from tasks.house import house_task
from tasks.train import train_fold


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
        (StageResult(current=3, failures=(Failure(item="a", reason="b"),)), "Completed"),
    ],
)
def test_a_task_that_found_everything_current_says_so(result, name):
    state = house_task("x")(lambda: result).fn()
    assert (state.name, state.message) == (name, result.tally())


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

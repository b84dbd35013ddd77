"""How the GPUs of one machine are shared out."""

import pytest

from cellmap_core.machine import shares
from tasks.crew import LocalCrew


@pytest.mark.parametrize(
    ("devices", "each", "expected"),
    [
        ("0", 1, ["0"]),
        ("012", 2, ["01", "2"]),
        ("0123", 2, ["01", "23"]),
        ("01", 4, ["01"]),
        ("01234", 3, ["012", "34"]),
        ("", 2, []),
    ],
)
def test_every_gpu_is_in_a_share(devices, each, expected):
    assert shares(tuple(devices), each) == [tuple(share) for share in expected]


class Submitted:
    """A task that remembers the GPUs it was given."""

    def submit(self, **parameters):
        return parameters["gpus"]


def test_a_gpu_that_is_left_over_trains_too_and_is_told(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    told = []
    crew = LocalCrew(5, 2, told.append)
    assert crew.slots == 2
    assert [crew.submit(Submitted()) for _ in range(2)] == [("4", "5"), ("6",)]
    assert told == [
        "3 GPUs are there and 2 are asked for each training: one training at a time runs on 1 (6), "
        "with the same result in more time"
    ]
    # One training alone has a whole share, and nothing is left to tell.
    told.clear()
    crew = LocalCrew(1, 2, told.append)
    assert (crew.slots, crew.submit(Submitted()), told) == (1, ("4", "5"), [])

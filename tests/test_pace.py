from cellmap_core import pace
from cellmap_core.pace import Pace, duration


def test_part_speed_and_time_left(monkeypatch):
    clock = iter([0.0, 10.0, 20.0, 40.0])
    monkeypatch.setattr(pace, "monotonic", lambda: next(clock))
    told = []
    steps = Pace(3, lambda part, what: told.append((round(part, 2), what)))
    steps.step("a", "fine", 50_000_000)
    steps.step("b", "as it was", 0)
    steps.step("c", "fine", 50_000_000)
    assert told == [
        (0.33, "1 of 3, 5 Mvoxel/s, about 20 s left"),
        (0.67, "2 of 3, 2.5 Mvoxel/s, about 10 s left"),
        (1.0, "3 of 3, 2.5 Mvoxel/s"),
    ]


def test_durations():
    assert [duration(s) for s in (9.6, 200, 3700, 90_000)] == [
        "10 s",
        "3 min",
        "1 h 2 min",
        "25 h 0 min",
    ]

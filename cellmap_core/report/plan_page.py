"""The page of a plan: what a run would submit, what is there, what it used afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cellmap_core.cluster.plan import Plan, StagePlan
from cellmap_core.cluster.uses import JobUse
from cellmap_core.report.text import Cell, markdown_table

_GB, _HOUR = 10**9, 3600


def plan_markdown(plan: Plan) -> str:
    """The page of a plan, for the UI and a terminal."""
    parts = [
        f"# Plan for {plan.site}",
        _verdict(plan),
        markdown_table(_time_rows(plan)),
        "## What a job takes, and what it has",
        markdown_table([_size_row(s) for s in plan.stages]),
    ]
    if said := [f"- {s.name}: {text}" for s in plan.stages for text in s.findings]:
        parts.append("\n".join(said))
    if plan.doubts:
        parts += ["## What this rests on", "\n".join(f"- {d}" for d in plan.doubts)]
    return "\n\n".join(parts) + "\n"


def plan_table(plan: Plan) -> list[dict[str, Cell]]:
    """A row a stage, all figures in it."""
    return [{**t, **_size_row(s)} for t, s in zip(_time_rows(plan)[:-1], plan.stages, strict=True)]


def used_markdown(plan: Plan, uses: Sequence[JobUse]) -> str:
    """The page of a plan and of what the run used: the one beside the other, stage by stage."""
    if not uses:
        return plan_markdown(plan)
    stages = list(plan.stages)
    parts = [
        f"# Predicted and used on {plan.site}",
        "Planned / used. Times are those of all jobs of a stage added up; memory is the most that "
        "one took. – means that nobody told.",
        markdown_table([_both(_used_row(s, _of(s, uses))) for s in stages]),
        "## Jobs",
        markdown_table([_job_row(use) for use in uses]),
    ]
    return "\n\n".join(parts) + "\n\n" + plan_markdown(plan)


def used_table(plan: Plan, uses: Sequence[JobUse]) -> list[dict[str, Cell]]:
    """A row a stage: predicted beside used."""
    return [_used_row(s, _of(s, uses)) for s in plan.stages]


def _verdict(plan: Plan) -> str:
    total = (
        f"{plan.jobs} jobs with all of their chains, {_hours(plan.core_hours)} core hours, "
        f"{_hours(plan.gpu_hours)} GPU hours, {_gigabytes(plan.disk_bytes)} GB on disk."
    )
    if not plan.problems:
        return f"It fits: {total}"
    listed = "\n".join(f"- {p}" for p in plan.problems)
    return f"**It does not fit**: {total}\n\n{listed}"


def _time_rows(plan: Plan) -> list[dict[str, Cell]]:
    rows = [_time_row(s) for s in plan.stages]
    total: dict[str, Cell] = dict.fromkeys(rows[0])
    return [
        *rows,
        total
        | {
            "stage": "total",
            "jobs": sum(s.jobs for s in plan.stages),
            "core hours": _hours(plan.core_hours),
            "GPU hours": _hours(plan.gpu_hours),
            "disk GB": _gigabytes(plan.disk_bytes),
        },
    ]


def _time_row(stage: StagePlan) -> dict[str, Cell]:
    return {
        "stage": stage.name,
        "jobs": stage.jobs,
        "at once": stage.at_once,
        "hours each": _hours(stage.hours),
        "longest": _hours(stage.longest_hours),
        "wall time": "none" if stage.wall_hours is None else f"{stage.wall_hours:g}",
        "in a chain of": stage.chain,
        "core hours": _hours(stage.core_hours),
        "GPU hours": _hours(stage.gpu_hours),
        "disk GB": _gigabytes(stage.disk_bytes),
    }


def _size_row(stage: StagePlan) -> dict[str, Cell]:
    needed, there = stage.gpu_memory_needed_gib, stage.gpu_memory_gib
    return {
        "stage": stage.name,
        "cores": stage.cores,
        "RAM GB": f"{stage.memory_needed_gb:.1f}",
        "of GB": f"{stage.memory_gb:.1f}",
        "GPUs": stage.gpus,
        "GPU GiB": None if needed is None else f"{needed:.1f}",
        "of GiB": None if there is None else f"{there:.0f}",
    }


def _of(stage: StagePlan, uses: Iterable[JobUse]) -> list[JobUse]:
    """The jobs of a stage; of a training those of its algorithm."""
    return [
        use
        for use in uses
        if use.stage == stage.stage
        and (not stage.item or use.item.rpartition("_")[0] == stage.item)
    ]


def _used_row(stage: StagePlan, uses: Sequence[JobUse]) -> dict[str, Cell]:
    def added(each: Iterable[float]) -> str:
        return _clock(sum(each)) if uses else "–"

    peaks = [use.peak_host_bytes for use in uses if use.peak_host_bytes]
    predicted = None if stage.hours is None else stage.hours * stage.jobs
    return {
        "stage": stage.name,
        "jobs": stage.jobs * stage.chain,
        "jobs used": len({use.job_id or use.item for use in uses}) or None,
        "hours": _hours(predicted),
        "hours used": added(use.run_seconds for use in uses),
        "GPU hours": _hours(stage.gpu_hours),
        "GPU hours used": added(use.run_seconds * use.gpus for use in uses),
        "RAM GB": f"{stage.memory_needed_gb:.1f}",
        "RAM GB used": f"{max(peaks) / _GB:.1f}" if peaks else None,
        "in the queue": added(use.queue_seconds for use in uses),
    }


def _both(row: Mapping[str, Cell]) -> dict[str, Cell]:
    """A row in which planned and used share a cell."""
    told: dict[str, Cell] = {}
    for name, value in row.items():
        if not name.endswith(" used"):
            used = f"{name} used"
            told[name] = f"{_said(value)} / {_said(row[used])}" if used in row else value
    return told


def _said(value: Cell) -> str:
    return "–" if value is None else str(value)


def _job_row(use: JobUse) -> dict[str, Cell]:
    peak = use.peak_host_bytes
    return {
        "job": use.job_id or None,
        "stage": use.stage,
        "item": use.item or None,
        "node": use.node or None,
        "in the queue": _clock(use.queue_seconds),
        "running": _clock(use.run_seconds),
        "cores": use.cores,
        "GPUs": use.gpus,
        "RAM GB": f"{peak / _GB:.1f}" if peak else None,
        "end": use.end,
    }


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds of something that has been measured."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _hours(hours: float | None) -> str:
    """Hours with two digits that count: a plan is no more exact than that."""
    if hours is None:
        return "–"
    if 0 < hours < 0.01:
        return "< 0.01"
    return f"{hours:.0f}" if hours == 0 or hours >= 10 else f"{hours:.2g}"


def _gigabytes(size: int) -> str:
    return "< 0.1" if 0 < size < _GB / 10 else f"{size / _GB:.1f}"

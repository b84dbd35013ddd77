"""Tasks: what a run would submit, before it; and beside it what it used, afterwards."""

from __future__ import annotations

import contextlib
import logging
from datetime import datetime
from pathlib import Path

from cellmap_core.cluster.here import place
from cellmap_core.cluster.plan import (
    PLAN_NAME,
    Plan,
    plan_here,
    read_plan,
    trainings_of,
    write_plan,
)
from cellmap_core.cluster.profiles import site_of
from cellmap_core.cluster.slurm import Slurm
from cellmap_core.cluster.uses import JobUse, append_use, uses_of
from cellmap_core.errors import CellmapError
from cellmap_core.machine import cores, peak_memory_bytes
from cellmap_core.models import StageResult
from cellmap_core.options import PlanOptions, TrainOptions
from cellmap_core.provenance import write_text
from cellmap_core.report.plan_page import plan_markdown, plan_table, used_markdown, used_table
from tasks.artifacts import publish_page, publish_table
from tasks.house import house_task, result_of

logger = logging.getLogger(__name__)

#: The page of the plan, in the work folder.
PAGE_NAME = "plan.md"


@house_task("plan")
def plan_run(options: PlanOptions | TrainOptions) -> StageResult:
    """Plan a run, keep the plan in the work folder and publish it.

    Problems are in the plan, for whoever asked to refuse or to warn.
    """
    # The plan of an earlier run says nothing of this one.
    (options.work_dir / PLAN_NAME).unlink(missing_ok=True)
    plan = plan_here(options)
    write_plan(options.work_dir, plan)
    page = plan_markdown(plan)
    write_text(options.work_dir / PAGE_NAME, page)
    publish_page("plan", page, "What the run would submit, and what there is")
    publish_table("plan-stages", plan_table(plan), "The plan, stage by stage")
    return StageResult(done=len(plan.stages))


def publish_plan(options: PlanOptions | TrainOptions) -> Plan | None:
    """Plan a run that starts now; a plan that cannot be made is told, and ends no run."""
    try:
        result_of(plan_run(options, return_state=True))
        return read_plan(options.work_dir)
    except (CellmapError, OSError) as error:
        logger.warning("the run is not planned: %s", error)
        return None


def publish_used(work_dir: Path) -> None:
    """Publish the plan anew, with what the run used beside it; nothing where there is none."""
    plan = read_plan(work_dir)
    if plan is None:
        return
    try:
        result_of(_publish_used(plan, work_dir, return_state=True))
    except (CellmapError, OSError) as error:
        logger.warning("what the run used is not shown: %s", error)


def _note_own_job(work_dir: Path) -> None:
    """What the run's own job has taken so far; nothing where the run is in none."""
    here = place()
    if here is None or site_of() is None:
        return
    with contextlib.suppress(CellmapError):  # The cluster may not answer just now.
        if (record := Slurm().jobs().get(here.job_id)) and record.submitted and record.started:
            use = JobUse(
                stage="flow",
                job_id=here.job_id,
                node=here.node,
                queue_seconds=(record.started - record.submitted).total_seconds(),
                run_seconds=max(0.0, (datetime.now() - record.started).total_seconds()),
                cores=cores(),
                peak_host_bytes=peak_memory_bytes(),
                end="running",
            )
            append_use(work_dir, use)


@house_task("predicted and used")
def _publish_used(plan: Plan, work_dir: Path) -> StageResult:
    _note_own_job(work_dir)
    uses = uses_of(work_dir, trainings_of(work_dir, plan))
    page = used_markdown(plan, uses)
    write_text(work_dir / PAGE_NAME, page)
    publish_page("plan", page, "Predicted, and used")
    publish_table("plan-stages", used_table(plan, uses), "Predicted and used, stage by stage")
    return StageResult(done=len(uses))

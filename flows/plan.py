"""Plan: what a run would submit, compared with what there is; submits nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from prefect import get_run_logger

from cellmap_core.bundles.names import check_choice
from cellmap_core.cluster.plan import plan_here, read_plan
from cellmap_core.cluster.profiles import site_of
from cellmap_core.convert import check_crop_count
from cellmap_core.errors import CellmapError, OptionError
from cellmap_core.folds import check_fold_count
from cellmap_core.models import StageResult
from cellmap_core.options import ConvertOptions, PlanOptions, TrainOptions
from cellmap_core.work import datalist_of, ensure_folder
from flows.house import auto3dseg, shell
from tasks.house import result_of
from tasks.plan import PAGE_NAME, plan_run, publish_plan, publish_used


def check(options: PlanOptions) -> None:
    """Refuse what no run could do: no cases, fewer of them than folds, unknown algorithms."""
    check_choice(options)
    site_of()
    if options.datalist is not None:
        check_fold_count(datalist_of(options.datalist, options.output_dir), options.num_fold)
    elif options.datasplit is not None:
        names = ConvertOptions.model_fields
        check_crop_count(ConvertOptions(**{n: getattr(options, n) for n in names}))
    else:
        raise OptionError("neither a datasplit nor a datalist", "--datasplit or --datalist")
    ensure_folder(options.work_dir, "work_dir")


def run(options: PlanOptions) -> StageResult:
    """Make and publish the plan; a run that is too big ends here as it would be refused."""
    result = result_of(plan_run(options, return_state=True))
    if (plan := read_plan(options.work_dir)) is not None:
        plan.check()
    return result


def refuse_too_big(options: PlanOptions | TrainOptions) -> None:
    """On a cluster, refuse before anything is submitted what would not fit.

    Raises
    ------
    PlanError
        With every problem; nothing is raised where the work runs on this machine.
    """
    if site_of() is not None:
        plan_here(options).check()


@contextmanager
def planned(options: PlanOptions | TrainOptions) -> Iterator[None]:
    """Plan what runs in the block; beside the plan stands in the end what it used."""
    made = publish_plan(options)
    for problem in made.problems if made else ():
        get_run_logger().warning("the plan: %s", problem)
    try:
        yield
    except CellmapError:
        publish_used(options.work_dir)
        raise
    publish_used(options.work_dir)


def show(options: PlanOptions) -> None:
    """Print the plan."""
    from cellmap_core.report.terminal import print_page

    print_page(options.work_dir / PAGE_NAME)


plan = auto3dseg(PlanOptions, check)(run)

if __name__ == "__main__":
    sys.exit(shell(plan, PlanOptions, check, show=show))

"""Full: convert, analyze, generate, train and ensemble, or with ``mode`` one of them alone.

The run is planned before it starts, and beside the plan stands in the end what it used.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from prefect import get_run_logger

from cellmap_core.bundles.names import check_choice
from cellmap_core.convert import check_crop_count
from cellmap_core.datalist import read_datalist
from cellmap_core.errors import CellmapError, OptionError
from cellmap_core.folds import check_fold_count
from cellmap_core.models import ConvertResult, Failure, StageResult
from cellmap_core.options import MODELS, FullOptions
from cellmap_core.work import datalist_of, ensure_folder
from flows import analyze, convert, ensemble, generate, plan, train
from flows.house import auto3dseg, shell
from flows.plan import planned, refuse_too_big

STAGES: dict[str, Callable[[Any], StageResult]] = {
    "convert": convert.run,
    "analyze": analyze.run,
    "generate": generate.run,
    "train": train.train_and_rank,
    "ensemble": ensemble.run,
}
#: What can be asked for alone: each stage, and the plan of all of them.
MODES: dict[str, ModuleType] = {
    "convert": convert,
    "analyze": analyze,
    "generate": generate,
    "train": train,
    "ensemble": ensemble,
    "plan": plan,
}


def check(options: FullOptions) -> None:
    """Refuse, before anything is made, what some later stage could not do."""
    if options.mode != "full":
        MODES[options.mode].check(_for(options.mode, options))
        return
    check_choice(options)
    if options.datalist is not None:
        check_fold_count(datalist_of(options.datalist, options.output_dir), options.num_fold)
    elif options.datasplit is not None:
        check_crop_count(_for("convert", options))
    else:
        raise OptionError("neither a datasplit nor a datalist", "--datasplit or --datalist")
    ensure_folder(options.work_dir, "work_dir")
    if options.datalist is None:
        ensure_folder(options.output_dir, "output_dir")
    refuse_too_big(options)


def run(options: FullOptions) -> StageResult:
    """Run all stages, planned before and accounted for afterwards, or one of them."""
    if options.mode != "full":
        return MODES[options.mode].run(_for(options.mode, options))
    with planned(options):
        return _all(options)


def _all(options: FullOptions) -> StageResult:
    """Run the stages one after another; what fails in one is listed at the end of all."""
    stages = list(STAGES)
    if options.datalist is not None:
        stages.remove("convert")
    results: list[StageResult] = []
    for stage in stages:
        if stage == "ensemble" and not _testing(options):
            get_run_logger().warning("no testing case in the datalist: nothing to predict")
            break
        try:
            results.append(STAGES[stage](_for(stage, options)))
        except CellmapError as error:
            # What failed before must be told too, so the stage joins the list and ends the run.
            results.append(StageResult(failures=(Failure(item=stage, reason=str(error)),)))
            break
        get_run_logger().info("%s: %s", stage, results[-1].tally())
        if isinstance(results[-1], ConvertResult):
            options = options.model_copy(update={"datalist": results[-1].datalist})
    return StageResult().and_then(*results)


def _testing(options: FullOptions) -> bool:
    """Return whether there is any case to predict."""
    return bool(read_datalist(datalist_of(options.datalist, options.output_dir)).testing)


def _for(stage: str, options: FullOptions) -> Any:
    """The options of one stage, out of those of all."""
    model = MODELS[stage]
    return model(**{name: getattr(options, name) for name in model.model_fields})


def _show(options: FullOptions) -> None:
    """Print the plan, where that was asked for."""
    if options.mode == "plan":
        plan.show(_for("plan", options))


full = auto3dseg(FullOptions, check)(run)

if __name__ == "__main__":
    sys.exit(shell(full, FullOptions, check, show=_show))

"""Full: convert, analyze, generate, train and ensemble, or with ``mode`` one of them alone."""

from __future__ import annotations

import sys
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
from flows import analyze, convert, ensemble, generate, train
from flows.house import auto3dseg, shell

STAGES: dict[str, ModuleType] = {
    "convert": convert,
    "analyze": analyze,
    "generate": generate,
    "train": train,
    "ensemble": ensemble,
}


def check(options: FullOptions) -> None:
    """Refuse, before anything is made, what some later stage could not do."""
    if options.mode != "full":
        STAGES[options.mode].check(_for(options.mode, options))
        return
    check_choice(options)
    if options.datalist is not None:
        check_fold_count(datalist_of(options.datalist), options.num_fold)
    elif options.datasplit is not None:
        check_crop_count(_for("convert", options))
    else:
        raise OptionError("neither a datasplit nor a datalist", "--datasplit or --datalist")
    ensure_folder(options.work_dir, "work_dir")
    if options.datalist is None:
        ensure_folder(options.output_dir, "output_dir")


def run(options: FullOptions) -> StageResult:
    """Run the stages one after another; what fails in one is listed at the end of all."""
    if options.mode != "full":
        return STAGES[options.mode].run(_for(options.mode, options))
    stages = list(STAGES)
    if options.datalist is not None:
        stages.remove("convert")
    results: list[StageResult] = []
    for stage in stages:
        if stage == "ensemble" and not read_datalist(datalist_of(options.datalist)).testing:
            get_run_logger().warning("no testing case in the datalist: nothing to predict")
            break
        try:
            results.append(STAGES[stage].run(_for(stage, options)))
        except CellmapError as error:
            # What failed before must be told too, so the stage joins the list and ends the run.
            results.append(StageResult(failures=(Failure(item=stage, reason=str(error)),)))
            break
        get_run_logger().info("%s: %s", stage, results[-1].tally())
        if isinstance(results[-1], ConvertResult):
            options = options.model_copy(update={"datalist": results[-1].datalist})
    return StageResult().and_then(*results)


def _for(stage: str, options: FullOptions) -> Any:
    """The options of one stage, out of those of all."""
    model = MODELS[stage]
    return model(**{name: getattr(options, name) for name in model.model_fields})


full = auto3dseg(FullOptions, check)(run)

if __name__ == "__main__":
    sys.exit(shell(full, FullOptions, check))

"""Ensemble: predict the testing cases with all trained models together."""

from __future__ import annotations

import sys
from functools import partial

from cellmap_core.models import BundleRef, EnsembleResult
from cellmap_core.options import EnsembleOptions
from cellmap_core.work import bundles_of, saved_mark, working_datalist_of
from flows.house import auto3dseg, shell
from tasks.crew import crew
from tasks.ensemble import ensemble_models
from tasks.house import result_of


def check(options: EnsembleOptions) -> tuple[BundleRef, ...]:
    """The models to use; refuse what was not generated."""
    return bundles_of(options.work_dir, options.algos, options.num_fold, options.folds)


def run(options: EnsembleOptions) -> EnsembleResult:
    """Predict every testing case of the datalist."""
    datalist = options.datalist or working_datalist_of(options.work_dir)
    bundles = check(options)
    with crew("ensemble", 1, work_dir=options.work_dir) as workers:
        state = workers.run(
            ensemble_models,
            saved=partial(saved_mark, options.work_dir),
            datalist=datalist,
            work_dir=options.work_dir,
            bundles=bundles,
        )
    return result_of(state)


ensemble = auto3dseg(EnsembleOptions, check)(run)

if __name__ == "__main__":
    sys.exit(shell(ensemble, EnsembleOptions, check))

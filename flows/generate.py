"""Generate: one Auto3DSeg bundle for each algorithm and fold, from the statistics."""

from __future__ import annotations

import sys

from cellmap_core.bundles.names import check_choice
from cellmap_core.folds import check_fold_count
from cellmap_core.models import GenerateResult
from cellmap_core.options import GenerateOptions
from cellmap_core.work import datalist_of, datastats_of
from flows.house import auto3dseg, shell
from tasks.generate import generate_bundles
from tasks.house import result_of


def check(options: GenerateOptions) -> None:
    """Refuse unknown algorithms and overrides, too few crops, a work folder not analysed."""
    check_choice(options)
    check_fold_count(datalist_of(options.datalist, options.output_dir), options.num_fold)
    datastats_of(options.work_dir)


def run(options: GenerateOptions) -> GenerateResult:
    """Generate the bundles that are missing or made from other inputs."""
    datalist = datalist_of(options.datalist, options.output_dir)
    datastats = datastats_of(options.work_dir)
    state = generate_bundles(datalist, datastats, options.work_dir, options, return_state=True)
    return result_of(state)


generate = auto3dseg(GenerateOptions, check)(run)

if __name__ == "__main__":
    sys.exit(shell(generate, GenerateOptions, check))

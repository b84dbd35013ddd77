"""What earlier stages left, found by the names of the request's output structure."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from cellmap_core.errors import BundleError, DatalistError, OptionError, StageOrderError
from cellmap_core.models import BundleRef

#: Folder of the ensemble's predictions in a work folder, and of their receipts in it.
OUTPUT_NAME = "ensemble_output"
RECEIPTS_NAME = ".receipts"
#: Files that stages leave when a part of their work is done, by folders of a run.
_SAVED = (
    ".cache/*.json",
    ".cache/datastats/*.json",
    "*/algo_object.json",
    "*/model/*.pt",
    f"{OUTPUT_NAME}/{RECEIPTS_NAME}/*.json",
)


def datalist_of(given: Path | None, output_dir: Path) -> Path:
    """Return the datalist to use: the one given, else the one that conversion leaves.

    Parameters
    ----------
    given : Path, optional
        The option ``datalist``.
    output_dir : Path
        The option ``output_dir``, where conversion leaves its datalist.

    Raises
    ------
    DatalistError
        There is none.
    """
    path = given or output_dir / "datalist.json"
    if not path.is_file():
        raise DatalistError(
            f"no datalist at {path}", "a datalist.json", "convert first, or give --datalist"
        )
    return path


def working_datalist_of(work_dir: Path) -> Path:
    """The datalist with the folds in use, which ``generate`` leaves in the work folder."""
    return _left_by("generate", work_dir / "datalist.json")


def datastats_of(work_dir: Path) -> Path:
    """The report that ``analyze`` leaves in the work folder."""
    return _left_by("analyze", work_dir / "datastats.yaml")


def saved_mark(*folders: Path) -> int:
    """Return a number that changes whenever a stage has saved something in the folders.

    Only what a later run would not do again counts: receipts of crops, cases and predictions,
    bundles, checkpoints.
    """
    times = []
    for path in (p for folder in folders for pattern in _SAVED for p in folder.glob(pattern)):
        with contextlib.suppress(OSError):  # A checkpoint that is replaced just now.
            times.append(path.stat().st_mtime_ns)
    return max(times, default=0) + len(times)


def ensure_folder(folder: Path, option: str) -> None:
    """Make an output folder, so that one that cannot be is known before any work.

    Raises
    ------
    OptionError
        It cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError as error:
        raise OptionError(f"{option} {folder} cannot be made ({error})", "a folder") from error
    if not writable:
        raise OptionError(f"{option} {folder} may not be written to", "a folder of yours")


def _left_by(stage: str, path: Path) -> Path:
    if not path.is_file():
        raise StageOrderError(f"no {path}", f"what {stage} leaves there", f"run {stage} first")
    return path


def bundles_of(
    work_dir: Path, algos: Sequence[str], num_fold: int, folds: Sequence[int] | None
) -> tuple[BundleRef, ...]:
    """The bundles of some algorithms and folds, which must all be there.

    Raises
    ------
    OptionError
        A fold is asked for that ``num_fold`` does not have.
    BundleError
        A bundle was not generated.
    """
    chosen = tuple(range(num_fold)) if folds is None else tuple(folds)
    if beyond := [f for f in chosen if not 0 <= f < num_fold]:
        raise OptionError(f"fold {beyond[0]}", f"folds 0 to {num_fold - 1} (num_fold={num_fold})")
    bundles = []
    for algo in algos:
        for fold in chosen:
            bundle = BundleRef(algo=algo, fold=fold, folder=work_dir / f"{algo}_{fold}")
            if not bundle.folder.is_dir():
                there = sorted(p.parent.name for p in work_dir.glob("*_*/algo_object.json"))
                raise BundleError(
                    f"no bundle {bundle.name} in {work_dir}",
                    f"one of {', '.join(there)}" if there else "bundles",
                    "generate first",
                )
            bundles.append(bundle)
    return tuple(bundles)

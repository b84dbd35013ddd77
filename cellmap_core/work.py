"""What earlier stages left, found by the names of the request's output structure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cellmap_core.errors import BundleError, DatalistError, OptionError, StatisticsError
from cellmap_core.models import BundleRef
from cellmap_core.options import ConvertOptions


def datalist_of(given: Path | None, output_dir: Path | None = None) -> Path:
    """The datalist to use: the one given, else the one conversion leaves.

    Raises
    ------
    DatalistError
        There is none.
    """
    folder = output_dir or Path(ConvertOptions().output_dir)
    path = given or folder / "datalist.json"
    if not path.is_file():
        raise DatalistError(
            f"no datalist at {path}", "a datalist.json", "convert first, or give --datalist"
        )
    return path


def working_datalist_of(work_dir: Path) -> Path:
    """The datalist with the folds in use, which ``generate`` leaves in the work folder."""
    path = work_dir / "datalist.json"
    if not path.is_file():
        raise DatalistError(
            f"no datalist at {path}", "a work folder with bundles", "generate first"
        )
    return path


def datastats_of(work_dir: Path) -> Path:
    """The report that ``analyze`` leaves in the work folder."""
    path = work_dir / "datastats.yaml"
    if not path.is_file():
        raise StatisticsError(f"no statistics at {path}", "datastats.yaml", "analyze first")
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
                    f"one of {', '.join(there) or 'none'}",
                    "generate first",
                )
            bundles.append(bundle)
    return tuple(bundles)

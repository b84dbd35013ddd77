"""Which algorithms there are: the template folders, by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellmap_core.errors import BundleError, OptionError
from cellmap_core.options import GenerateOptions
from cellmap_core.training.config_files import check_overrides

#: The project's own templates; nothing is downloaded at run time.
OWN_TEMPLATES: Path = Path(__file__).resolve().parent / "templates"


def available_algos(templates: Path | None = None) -> tuple[str, ...]:
    """Names of the algorithms in a template folder.

    Parameters
    ----------
    templates : Path, optional
        An Auto3DSeg template folder (``<name>/scripts/algo.py``); by default our own.

    Returns
    -------
    tuple of str
        The names, sorted.

    Raises
    ------
    BundleError
        There is no such folder, or no algorithm in it.
    """
    folder = templates or OWN_TEMPLATES
    names = tuple(sorted(path.parents[1].name for path in folder.glob("*/scripts/algo.py")))
    if not names:
        raise BundleError(
            f"no algorithm template in {folder}", "<name>/scripts/algo.py", "check --templates"
        )
    return names


def check_algos(algos: Sequence[str], templates: Path | None = None) -> None:
    """Refuse algorithms that have no template, and names given twice.

    Raises
    ------
    OptionError
        Naming what is wrong and the algorithms there are.
    """
    available = available_algos(templates)
    if unknown := [a for a in algos if a not in available]:
        raise OptionError(
            f"unknown algorithm {', '.join(unknown)}", f"any of {', '.join(available)}"
        )
    if len(set(algos)) != len(algos):
        raise OptionError(f"algos {', '.join(algos)}", "each algorithm once")


def is_ours(folder: Path) -> bool:
    """Whether a template or bundle is built on this project, and not by others on MONAI alone."""
    path = folder / "scripts" / "algo.py"
    try:
        return "cellmap_core.bundles.algo" in path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        # Not generated yet, or damaged: ours to tell.
        return True


def check_choice(options: GenerateOptions) -> dict[str, Any]:
    """Algorithms and overrides of a run, checked; templates of others have values of their own.

    Returns
    -------
    dict
        The overrides, with values of the right types.

    Raises
    ------
    OptionError
        An algorithm, an override or its value is not valid.
    """
    check_algos(options.algos, options.templates)
    if not all(is_ours((options.templates or OWN_TEMPLATES) / algo) for algo in options.algos):
        return dict(options.overrides)
    return check_overrides(options.overrides, options.algos)

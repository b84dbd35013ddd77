"""The data source file of MONAI's runners: ``input.yaml`` of AutoRunner, ``data_src_cfg.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cellmap_core.datalist import Datalist, read_datalist
from cellmap_core.errors import BundleError, DatalistError
from cellmap_core.models import Frozen
from cellmap_core.training.algorithms import ALGORITHMS
from cellmap_core.training.config_files import overridable


class DataSource(Frozen):
    """What MONAI's runners know of the data.

    Attributes
    ----------
    datalist : Path
        The list of cases. AutoRunner copies the user's into its work_dir.
    dataroot : Path
        The folder to which the paths of the list are relative.
    sigmoid : bool
        Whether the ensemble takes each channel for itself; otherwise it takes the likeliest one.
    class_names : tuple of str or None
        Where the source names classes.
    overrides : dict
        Values of our algorithms that the source sets.
    """

    datalist: Path
    dataroot: Path
    sigmoid: bool = False
    class_names: tuple[str, ...] | None = None
    overrides: dict[str, Any] = {}

    @property
    def own_root(self) -> Path | None:
        """The dataroot where it is not the datalist's own folder, else None."""
        return None if self.dataroot == self.datalist.parent else self.dataroot

    def read(self) -> Datalist:
        """Read the datalist.

        Raises
        ------
        DatalistError
            It cannot be read, or has other classes than the source names.
        """
        cases = read_datalist(self.datalist, self.dataroot)
        if self.class_names is not None and self.class_names != cases.classes:
            raise DatalistError(
                f"class_names {', '.join(self.class_names)} in the runner's input",
                f"{', '.join(cases.classes)}, as {self.datalist} has them",
                "remove class_names from the input; the datalist holds them with their label ids",
            )
        return cases


def read_source(path: Path) -> DataSource:
    """Read a data source file.

    Raises
    ------
    BundleError
        It is missing, is no YAML mapping, or names no datalist.
    """
    expected = "the data source file of MONAI's runners with datalist and dataroot"
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise BundleError(f"{path} cannot be read ({error})", expected) from error
    if not isinstance(document, dict) or not isinstance(document.get("datalist"), str):
        raise BundleError(f"{path} names no datalist", expected)
    datalist = Path(document["datalist"]).resolve()
    root = document.get("dataroot")
    return DataSource(
        datalist=datalist,
        dataroot=datalist.parent if root is None else Path(str(root)).resolve(),
        sigmoid=bool(document.get("sigmoid", False)),
        class_names=_class_names(document.get("class_names")),
        overrides=_overrides(document),
    )


def _class_names(given: Any) -> tuple[str, ...] | None:
    """Plain names or MONAI's groups; the background is no class of a datalist."""
    if not isinstance(given, list) or not given:
        return None
    names = [str(g.get("name")) if isinstance(g, dict) else str(g) for g in given]
    return tuple(name for name in names if name.lower() != "background")


def _overrides(document: Mapping[str, Any]) -> dict[str, Any]:
    names = {name for algo in ALGORITHMS for name in overridable(algo)}
    return {key: value for key, value in document.items() if key.rpartition(".")[2] in names}

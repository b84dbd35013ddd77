"""``datastats.yaml`` and ``datastats_by_case.yaml``: written and read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cellmap_core.errors import StatisticsError
from cellmap_core.provenance import atomic_path

# libyaml is some ten times faster, where PyYAML was built with it.
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def write_report(
    path: Path, summary: dict[str, Any], cases: Sequence[dict[str, Any]], fmt: str = "yaml"
) -> None:
    """Write Auto3DSeg's report, whole or not at all, in the layout of MONAI's own export."""
    document = {"stats_summary": summary, "stats_by_cases": list(cases)}
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as sink:
        if fmt == "json":
            json.dump(document, sink, allow_nan=False)
        else:
            yaml.dump(document, sink, Dumper=_PlainDumper, default_flow_style=None, sort_keys=False)


def read_summary(path: Path) -> dict[str, Any]:
    """The ``stats_summary`` of a ``datastats.yaml``.

    Raises
    ------
    StatisticsError
        The file is missing or holds no summary.
    """
    advice = "make it with flows/analyze.py"
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise StatisticsError(
            f"{path} cannot be read ({error})", "a datastats.yaml", advice
        ) from error
    if not isinstance(document, dict) or not isinstance(document.get("stats_summary"), dict):
        raise StatisticsError(f"{path} holds no statistics", "the key stats_summary", advice)
    summary: dict[str, Any] = document["stats_summary"]
    return summary


class _PlainDumper(_Dumper):  # type: ignore[misc]
    """Writes a list that is shared by two keys twice: readers of YAML trip over aliases."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True

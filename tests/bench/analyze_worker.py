"""One measured process of the benchmarks: analyses a datalist and tells time and memory."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.worker import measure


def main() -> None:
    """Run what the command line says: ``who folder components``."""
    who, folder, components = sys.argv[1:]
    work = {"library": library, "stage": stage, "monai": monai}[who]
    measure(work(Path(folder), components == "yes"))


def library(folder: Path, do_ccp: bool) -> Callable[[], Any]:
    """Our call in the place of MONAI's."""
    from cellmap_core.datastats.analyzer import DataAnalyzer

    output = folder / "datastats.yaml"
    return DataAnalyzer(folder / "datalist.json", folder, output, do_ccp=do_ccp).get_all_case_stats


def stage(folder: Path, do_ccp: bool) -> Callable[[], Any]:
    """The stage: statistics by class, receipts, findings and pictures too."""
    from cellmap_core.datastats.analyze import analyze

    listed = json.loads((folder / "datalist.json").read_text())
    names = [f"class{i}" for i in range(1, 15)]
    (folder / "named.json").write_text(json.dumps({**listed, "class_names": names}))
    shutil.rmtree(folder / "work", ignore_errors=True)
    return lambda: analyze(folder / "named.json", folder / "work", do_ccp)


def monai(folder: Path, do_ccp: bool) -> Callable[[], Any]:
    """The peer."""
    from monai.apps.auto3dseg import DataAnalyzer

    analyzer = DataAnalyzer(
        str(folder / "datalist.json"),
        str(folder),
        output_path=str(folder / "monai.yaml"),
        do_ccp=do_ccp,
        device="cpu",
        worker=0,
    )
    return analyzer.get_all_case_stats


if __name__ == "__main__":
    main()

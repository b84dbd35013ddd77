"""`make bench`: the analysis against MONAI's DataAnalyzer, the same files, in one run.

Each timing is one process pinned to one core, its imports not counted; nothing is asserted.
The peer takes minutes, so that it runs once and ours three times, of which the slowest counts.
"""

from __future__ import annotations

from pathlib import Path

from tests.bench.cases import write_cases
from tests.bench.convert import run, table, told_by

CASES, EDGE = 8, 200
MEMORY_EDGES = (200, 400)


def main() -> None:
    """Run the parts asked for (all of them by default) and print their tables."""
    run({"speed": speed, "memory": memory}, __doc__)


def speed(folder: Path) -> None:
    """Seconds with and without components: the library call, and the stage with all it adds."""
    write_cases(folder, (EDGE,) * 3, CASES)
    rows = []
    for components in ("no", "yes"):
        peer = told("monai", folder, components)["seconds"]
        for who, what in (("library", "DataAnalyzer"), ("stage", "the stage, with its page")):
            ours = max(told(who, folder, components)["seconds"] for _ in range(3))
            rows.append([components, what, f"{peer:.1f}", f"{ours:.2f}", f"{peer / ours:.0f}"])
    title = f"Analysis of {CASES} × {EDGE}³, 15 labels, on one core"
    table(title, ["components", "ours", "MONAI s", "ours s", "times faster"], rows)


def memory(folder: Path) -> None:
    """Peak RSS over that after the imports, and seconds, by the size of a case."""
    rows = []
    for edge in MEMORY_EDGES:
        data = folder / f"{edge}"
        data.mkdir()
        write_cases(data, (edge,) * 3, 1)
        for components in ("no", "yes"):
            answer = told("library", data, components)
            size = [f"{edge}³", components, f"{answer['over_import_mb']:.0f}"]
            rows.append(
                [*size, f"{answer['seconds']:.2f}", f"{answer['seconds'] / edge**3 * 1e9:.1f}"]
            )
    columns = ["case", "components", "MB over imports", "s", "ns a voxel"]
    table("Memory of one case", columns, rows)


def told(who: str, folder: Path, components: str) -> dict[str, float]:
    """What one measured process tells."""
    return told_by("tests.bench.analyze_worker", who, folder, components, core=0)


if __name__ == "__main__":
    main()

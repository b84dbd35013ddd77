"""What a training reports while it runs: ``metrics.jsonl`` for us, ``progress.yaml`` for MONAI."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from cellmap_core.provenance import write_text
from cellmap_core.scores import Scores

METRICS_NAME = "metrics.jsonl"
PROGRESS_NAME = "progress.yaml"

Record = dict[str, Any]


def is_better(record: Record, best: Record | None) -> bool:
    """Whether an epoch beats the best one.

    One that was not validated never does; of those without any score the later one does.
    """
    if not record["dice"]:
        return False
    if best is None or best["mean_dice"] is None:
        return True
    return record["mean_dice"] is not None and record["mean_dice"] > best["mean_dice"]


def rewrite(folder: Path, records: Sequence[Record]) -> None:
    """Make ``metrics.jsonl`` say exactly what is in the checkpoint, before going on from it."""
    write_text(folder / METRICS_NAME, "".join(_line(r) for r in records))


def append(folder: Path, record: Record) -> None:
    """Add one line to ``metrics.jsonl``, on disk before this returns."""
    with (folder / METRICS_NAME).open("a", encoding="utf-8") as sink:
        sink.write(_line(record))
        sink.flush()
        os.fsync(sink.fileno())


def read_records(folder: Path) -> list[Record]:
    """The whole lines of ``metrics.jsonl``; a line still being written is left for later."""
    try:
        text = (folder / METRICS_NAME).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def write_progress(folder: Path, records: Iterable[Record]) -> None:
    """Write MONAI's ``progress.yaml``: an entry for each new best epoch, the best one last."""
    best: Record | None = None
    entries = []
    for record in records:
        if is_better(record, best):
            best = record
            score = {
                "best_avg_dice_score": best["mean_dice"],
                "best_avg_dice_score_epoch": best["epoch"],
            }
            entries.append({"epoch": best["epoch"], **score})
    write_text(folder / PROGRESS_NAME, yaml.safe_dump(entries, sort_keys=False))


def readable(name: str, record: Record) -> str:
    """One line of an epoch for people."""
    parts = [f"loss {_score(record['loss'], 4)}"]
    if record["dice"]:
        scores = ", ".join(f"{k} {_score(v)}" for k, v in record["dice"].items())
        parts.append(f"{Scores.of_record(record).brief()} ({scores})")
    parts.append(f"{record['seconds']:.1f} s")
    return f"{name} epoch {record['epoch']}/{record['epochs']}: {', '.join(parts)}"


def _score(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _line(record: Record) -> str:
    return json.dumps(record, allow_nan=False) + "\n"

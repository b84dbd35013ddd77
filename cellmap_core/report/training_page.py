"""Pages of ``train``: one algorithm × fold, and the leaderboard of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cellmap_core.models import TrainResult
from cellmap_core.report.figures import bar_plot, curves, embedded
from cellmap_core.report.text import Cell, markdown_table, mean_of, number, spread

_GIB = 1 << 30


def running_markdown(name: str, epochs: Sequence[dict[str, Any]]) -> str:
    """The page of a training that still runs.

    Parameters
    ----------
    name : str
        Of the bundle.
    epochs : sequence of dict
        See `fold_markdown`; at least one.
    """
    last = epochs[-1]
    best = best_epoch(epochs)
    left = (last["epochs"] - last["epoch"]) * mean_seconds(epochs)
    parts = [
        f"# {name}",
        f"Epoch {last['epoch']} of {last['epochs']}, loss {number(last['loss'], 4)}, "
        f"{left / 60:.0f} minutes left at this pace. "
        + (
            f"Best mean Dice so far **{number(best['mean_dice'])}**, at epoch {best['epoch']}."
            if best
            else "Not validated yet."
        ),
        embedded("Loss and Dice by epoch", _curves(epochs)),
    ]
    return "\n\n".join(parts) + "\n"


def best_epoch(epochs: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The epoch with the highest mean Dice; None where none was validated."""
    scored = [e for e in epochs if e.get("mean_dice") is not None]
    return max(scored, key=lambda e: e["mean_dice"]) if scored else None


def mean_seconds(epochs: Sequence[dict[str, Any]]) -> float:
    """Mean time of an epoch."""
    return float(sum(e["seconds"] for e in epochs) / len(epochs))


def fold_markdown(result: TrainResult, epochs: Sequence[dict[str, Any]]) -> str:
    """The page of one training.

    Parameters
    ----------
    result : TrainResult
        The best model and its scores.
    epochs : sequence of dict
        Records ``{"epoch", "epochs", "loss", "dice": {}, "mean_dice", "seconds"}``, in order.
        A Dice of None or absent means that no validation ran in that epoch.
    """
    parts = [
        f"# {result.bundle.name}",
        f"Mean Dice **{number(result.mean_dice)}** at epoch {result.best_epoch} of "
        f"{result.epochs}, {_used(result)}. Checkpoint `{result.checkpoint}`.",
    ]
    if epochs:
        parts.append(embedded("Loss and Dice by epoch", _curves(epochs)))
    if rows := _class_rows(result):
        parts += [
            "Trivial is the Dice of calling every known voxel foreground: a model that does "
            "not beat it has learned nothing of the class. – means no known voxel of the "
            "class in the validation fold.",
            markdown_table(rows),
        ]
    return "\n\n".join(parts) + "\n"


def leaderboard_table(results: Sequence[TrainResult]) -> list[dict[str, Cell]]:
    """Rows of algorithm × fold, best algorithm first.

    Each algorithm has a row ``mean`` (mean ± population deviation over its folds, over those
    where the class was scored; all its time, the most memory), followed by its folds.
    """
    classes = _classes(results)
    rows: list[dict[str, Cell]] = []
    for algo in ranked_algos(results):
        folds = sorted((r for r in results if r.bundle.algo == algo), key=lambda r: r.bundle.fold)
        rows.append(
            {
                "algo": algo,
                "fold": "mean",
                "mean Dice": spread(r.mean_dice for r in folds),
                **{c: spread(r.dice.get(c) for r in folds) for c in classes},
                **_costs(folds),
            }
        )
        rows += [
            {
                "algo": algo,
                "fold": r.bundle.fold,
                "mean Dice": _rounded(r.mean_dice),
                **{c: _rounded(r.dice.get(c)) for c in classes},
                **_costs([r]),
            }
            for r in folds
        ]
    return rows


def leaderboard_markdown(results: Sequence[TrainResult]) -> str:
    """The page of all trainings: who is best, the means, and the classes of the best one."""
    if not results:
        return "No training has finished.\n"
    ranked = ranked_algos(results)
    best = [r for r in results if r.bundle.algo == ranked[0]]
    classes = _classes(best)
    dice = [mean_of(r.dice.get(c) for r in best) for c in classes]
    trivial = [mean_of(r.trivial_dice.get(c) for r in best) for c in classes]
    table = leaderboard_table(results)
    parts = [
        "# Leaderboard",
        f"Best: **{ranked[0]}**, mean Dice {spread(r.mean_dice for r in best)} over "
        f"{len(best)} folds.",
        markdown_table([row for row in table if row["fold"] == "mean"]),
    ]
    if any(d is not None for d in dice):
        picture = bar_plot(
            classes, dice, f"Dice, {ranked[0]}", reference=trivial, reference_label="trivial"
        )
        parts += [f"## {ranked[0]} by class", embedded("Dice by class", picture)]
    parts += ["## All folds", markdown_table([row for row in table if row["fold"] != "mean"])]
    return "\n\n".join(parts) + "\n"


def ranked_algos(results: Sequence[TrainResult]) -> list[str]:
    """Algorithms by mean Dice over their folds, best first; those without a score last."""
    scores = {
        algo: mean_of(r.mean_dice for r in results if r.bundle.algo == algo)
        for algo in sorted({r.bundle.algo for r in results})
    }
    return sorted(scores, key=lambda a: 1.0 if (score := scores[a]) is None else -score)


def _classes(results: Sequence[TrainResult]) -> list[str]:
    """All classes scored, in the order first met."""
    return list(dict.fromkeys(c for r in results for c in r.dice))


def _class_rows(result: TrainResult) -> list[dict[str, Cell]]:
    rows: list[dict[str, Cell]] = []
    for name, dice in result.dice.items():
        trivial = result.trivial_dice.get(name)
        gain = None if dice is None or trivial is None else round(dice - trivial, 3)
        rows.append({"class": name, "Dice": dice, "trivial": trivial, "gain": gain})
    return sorted(rows, key=lambda r: str(r["class"]))


def _costs(results: Sequence[TrainResult]) -> dict[str, Cell]:
    """Time of all, and the most memory that one of them took."""
    gpu = max(r.device_bytes for r in results)
    return {
        "hours": round(sum(r.seconds for r in results) / 3600, 3),
        "RAM GiB": round(max(r.host_bytes for r in results) / _GIB, 2),
        "GPU GiB": round(gpu / _GIB, 2) if gpu else None,
    }


def _used(result: TrainResult) -> str:
    """Time and memory in words."""
    said = f"{result.seconds:.0f} s, {result.host_bytes / _GIB:.2f} GiB of RAM"
    return said + (f", {result.device_bytes / _GIB:.2f} GiB of GPU" if result.device_bytes else "")


def _curves(epochs: Sequence[dict[str, Any]]) -> bytes:
    # Only classes that were scored: a legend of absent curves hides those that are there.
    names = sorted({c for e in epochs for c, d in (e.get("dice") or {}).items() if d is not None})
    dice = {"mean": [e.get("mean_dice") for e in epochs]}
    dice |= {c: [(e.get("dice") or {}).get(c) for e in epochs] for c in names}
    return curves(
        [e["epoch"] for e in epochs],
        {"training loss": {"loss": [e.get("loss") for e in epochs]}, "validation Dice": dice},
        "epoch",
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)

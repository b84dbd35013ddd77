"""Pages of ``train``: one algorithm × fold, and the leaderboard of all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cellmap_core.models import Failure, TrainResult
from cellmap_core.report.comparison import compare, same_classes, scores_of
from cellmap_core.report.figures import bar_plot, curves, embedded
from cellmap_core.report.text import Cell, markdown_table, mean_of, number, spread
from cellmap_core.scores import Scores

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
            f"Best so far, at epoch {best['epoch']}: {Scores.of_record(best).brief('**')}. "
            f"{Scores.of_record(best).notes()}"
            if best
            else "Not validated yet."
        ).strip(),
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
        f"{_headline(result)}, at epoch {result.best_epoch} of {result.epochs}; {_used(result)}. "
        f"Checkpoint `{result.checkpoint}`.",
    ]
    if notes := scores_of(result).notes():
        parts.append(notes)
    if epochs:
        parts.append(embedded("Loss and Dice by epoch", _curves(epochs)))
    if rows := _class_rows(result):
        parts += [
            "Trivial is the Dice of calling every known voxel foreground: a model that does "
            "not beat it has learned nothing of the class. Where both are –, the class has no "
            "known voxel in the validation fold; where the Dice alone is –, no training case "
            "shows the class, so nothing was learned of it.",
            markdown_table(rows),
        ]
    return "\n\n".join(parts) + "\n"


def leaderboard_table(results: Sequence[TrainResult]) -> list[dict[str, Cell]]:
    """Rows of algorithm × fold, best algorithm first.

    Each algorithm has a row ``mean`` (mean ± population deviation over its folds, over those
    where the class was scored; all its time, the most memory), followed by its folds. Beside the
    mean Dice stand the mean gain over trivial, the number of classes scored, and, where rows
    are not scored on the same, their Dice on what all scored.
    """
    comparison = compare(results)
    rows: list[dict[str, Cell]] = []
    for algo in comparison.ranked:
        folds = sorted((r for r in results if r.bundle.algo == algo), key=lambda r: r.bundle.fold)
        row: dict[str, Cell] = {"algo": algo, "fold": "mean"}
        compared = {"compared Dice": _rounded(comparison.dice[algo])} if comparison.note else {}
        rows.append(row | _score_cells(folds, results, spread) | compared | _costs(folds))
        for result in folds:
            row = {"algo": algo, "fold": result.bundle.fold}
            cells = _score_cells([result], results, _only)
            rows.append(row | cells | dict.fromkeys(compared) | _costs([result]))
    return rows


def _score_cells(
    folds: Sequence[TrainResult],
    results: Sequence[TrainResult],
    of: Callable[[Iterable[float | None]], Cell],
) -> dict[str, Cell]:
    """The scores of some folds, put into one cell each by ``of``."""
    scores = [scores_of(r) for r in folds]
    cells: dict[str, Cell] = {
        "mean Dice": of(r.mean_dice for r in folds),
        "over trivial": of(s.gain for s in scores),
        "classes": ", ".join(dict.fromkeys(s.count for s in scores if s.dice)) or None,
    }
    same = same_classes(results)
    if any(scores_of(r).scored != same for r in results if r.mean_dice is not None):
        cells["Dice, same classes"] = of(s.mean_over(same) for s in scores)
    return cells | {c: of(s.dice.get(c) for s in scores) for c in _classes(results)}


def _only(values: Iterable[float | None]) -> Cell:
    """The one value there is, as a number, which sorts."""
    (value,) = values
    return _rounded(value)


def leaderboard_markdown(results: Sequence[TrainResult], failures: Sequence[Failure] = ()) -> str:
    """The page of all trainings: who is best, the means, and the classes of the best one.

    Parameters
    ----------
    results : sequence of TrainResult
        Of the trainings that have ended well.
    failures : sequence of Failure
        Trainings that have not, and so are in no mean.
    """
    if not results:
        return "No training has finished.\n"
    comparison = compare(results)
    first = comparison.ranked[0]
    best = [r for r in results if r.bundle.algo == first]
    parts = ["# Leaderboard", _best_of(first, best)]
    if comparison.note:
        parts.append(comparison.note)
    if failures:
        parts.append(f"In no mean, because they failed: {', '.join(f.item for f in failures)}.")
    parts += _left_out(results)
    table = leaderboard_table(results)
    parts.append(markdown_table([row for row in table if row["fold"] == "mean"]))
    classes = _classes(best)
    dice = [mean_of(r.dice.get(c) for r in best) for c in classes]
    trivial = [mean_of(r.trivial_dice.get(c) for r in best) for c in classes]
    if any(d is not None for d in dice):
        picture = bar_plot(
            classes, dice, f"Dice, {first}", reference=trivial, reference_label="trivial"
        )
        parts += [f"## {first} by class", embedded("Dice by class", picture)]
    parts += ["## All folds", markdown_table([row for row in table if row["fold"] != "mean"])]
    return "\n\n".join(parts) + "\n"


def _best_of(algo: str, results: Sequence[TrainResult]) -> str:
    """The first sentence of the leaderboard."""
    gain = spread(scores_of(r).gain for r in results)
    return (
        f"Best: **{algo}**, mean Dice {spread(r.mean_dice for r in results)} over "
        f"{len(results)} folds, {gain} over trivial."
    )


def _left_out(results: Sequence[TrainResult]) -> list[str]:
    """Sentences on classes that some mean leaves out, and on those that raise it for nothing."""
    scores = [s for r in results if (s := scores_of(r)).dice]
    sentences = []
    classes = dict.fromkeys(c for s in scores for c in s.dice)
    if never := [c for c in classes if not any(c in s.scored for s in scores)]:
        sentences.append(f"Scored in no fold, and in no mean: {', '.join(never)}.")
    # A training without any score shows as such in its row.
    scored = [s for s in scores if s.scored]
    if some := [c for c in classes if c not in never and any(c in s.unscored for s in scored)]:
        sentences.append(
            f"Scored in some folds only: {', '.join(some)}. Means of folds over other classes "
            "cannot be compared; `Dice, same classes` is over those that every fold scored."
        )
    if everywhere := dict.fromkeys(c for s in scores for c in s.everywhere):
        sentences.append(
            f"Present at every known voxel of a fold: {', '.join(everywhere)}. Calling everything "
            "foreground scores 1 there, which raises the mean Dice and not `over trivial`."
        )
    return [" ".join(sentences)] if sentences else []


def _classes(results: Sequence[TrainResult]) -> list[str]:
    """All classes scored, in the order first met."""
    return list(dict.fromkeys(c for r in results for c in r.dice))


def _class_rows(result: TrainResult) -> list[dict[str, Cell]]:
    rows: list[dict[str, Cell]] = []
    for name, dice in result.dice.items():
        trivial = result.trivial_dice.get(name)
        gain = scores_of(result).gain_of(name)
        gain = None if gain is None else round(gain, 3)
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


def _headline(result: TrainResult) -> str:
    """The mean Dice of a training, with what it is over."""
    if not result.dice:
        return f"Mean Dice **{number(result.mean_dice)}** (its template tells no Dice by class)"
    text = scores_of(result).brief("**")
    return text[0].upper() + text[1:]


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

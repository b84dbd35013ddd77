"""The page of ``ensemble``: what was predicted, by whom, and how good where there are labels."""

from __future__ import annotations

from cellmap_core.models import EnsembleResult
from cellmap_core.report.figures import bar_plot, embedded
from cellmap_core.report.text import Cell, details, markdown_table, mean_of, number


def ensemble_table(result: EnsembleResult) -> list[dict[str, Cell]]:
    """A row for each case: Dice by class where there are labels, else only what was found."""
    scored = list(dict.fromkeys(c for case in result.cases for c in case.dice))
    found = list(dict.fromkeys(c for case in result.cases for c in case.foreground_fraction))
    rows: list[dict[str, Cell]] = []
    for case in result.cases:
        fractions = {c: case.foreground_fraction.get(c) for c in found}
        row: dict[str, Cell] = {"case": case.case, "prediction": str(case.prediction)}
        if scored:
            row["mean Dice"] = _rounded(mean_of(case.dice.values()), 4)
        row |= {f"Dice {c}": _rounded(case.dice.get(c), 4) for c in scored}
        row |= {f"% {c}": None if f is None else _rounded(100 * f, 4) for c, f in fractions.items()}
        rows.append(row)
    return rows


def ensemble_markdown(result: EnsembleResult) -> str:
    """The page: members, Dice by class over the scored cases, every case, what failed."""
    scored = list(dict.fromkeys(c for case in result.cases for c in case.dice))
    dice = [mean_of(case.dice.get(c) for case in result.cases) for c in scored]
    parts = [
        "# Ensemble",
        f"{len(result.cases)} cases predicted by {len(result.members)} models "
        f"({', '.join(result.members)}): {result.tally()}. Predictions in `{result.folder}`.",
    ]
    if any(d is not None for d in dice):
        parts += [
            f"Mean Dice **{number(mean_of(dice))}** over the classes of the labelled cases.",
            embedded("Dice by class", bar_plot(scored, dice, "Dice, mean over cases")),
        ]
    else:
        parts.append("No case has labels, so there is no score.")
    if result.failures:
        rows = [{"case": f.item, "reason": f.reason} for f in result.failures]
        parts += [f"### {len(rows)} failed", markdown_table(rows)]
    parts.append(details("Every case", markdown_table(ensemble_table(result))))
    return "\n\n".join(parts) + "\n"


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)

"""The page of ``ensemble``: what was predicted, by whom, and how good where there are labels."""

from __future__ import annotations

from cellmap_core.models import CasePrediction, EnsembleResult
from cellmap_core.report.figures import bar_plot, embedded
from cellmap_core.report.text import Cell, details, markdown_table, mean_of
from cellmap_core.scores import Scores


def ensemble_table(result: EnsembleResult) -> list[dict[str, Cell]]:
    """A row for each case: Dice by class where there are labels, else only what was found."""
    scored = list(dict.fromkeys(c for case in result.cases for c in case.dice))
    found = list(dict.fromkeys(c for case in result.cases for c in case.foreground_fraction))
    rows: list[dict[str, Cell]] = []
    for case in result.cases:
        fractions = {c: case.foreground_fraction.get(c) for c in found}
        row: dict[str, Cell] = {"case": case.case, "prediction": str(case.prediction)}
        if scored:
            scores = _case_scores(result, case)
            row["mean Dice"] = _rounded(scores.mean, 4)
            row["over trivial"] = _rounded(scores.gain, 4)
            row["classes"] = scores.count if case.dice else None
        row |= {f"Dice {c}": _rounded(case.dice.get(c), 4) for c in scored}
        row |= {f"% {c}": None if f is None else _rounded(100 * f, 4) for c, f in fractions.items()}
        rows.append(row)
    return rows


def ensemble_markdown(result: EnsembleResult) -> str:
    """The page: members, files, Dice by class over the scored cases, every case, what failed."""
    parts = [
        "# Ensemble",
        f"{len(result.cases)} cases predicted by {len(result.members)} models "
        f"({', '.join(result.members)}): {result.tally()}.",
        _files(result),
    ]
    predicted = {c for case in result.cases for c in case.foreground_fraction}
    if result.cases and (never := [c for c in result.classes if c not in predicted]):
        parts.append(
            f"Not predicted, because no training case shows them: {', '.join(never)}. "
            "The predictions say nothing of them."
        )
    parts += _scores(result)
    if result.failures:
        rows = [{"case": f.item, "reason": f.reason} for f in result.failures]
        parts += [f"### {len(rows)} failed", markdown_table(rows)]
    parts.append(details("Every case", markdown_table(ensemble_table(result))))
    return "\n\n".join(parts) + "\n"


def _files(result: EnsembleResult) -> str:
    """Where the predictions are, and what their label ids are."""
    text = (
        f"Predictions in `{result.folder}`: `<case>.zarr` has a mask for each class, "
        "`<case>.nii.gz` a label id for each voxel, `<case>.labels.json` the classes of each id."
    )
    if further := sum(case.further_ids > 0 for case in result.cases):
        text += (
            f" {further} of the cases hold combinations of classes that the datalist's label "
            "table lacks; these have further ids, which differ from case to case."
        )
    return text


def _scores(result: EnsembleResult) -> list[str]:
    """Mean Dice over the cases, by class, with what it is over."""
    labelled = [case for case in result.cases if case.dice]
    if not any(d is not None for case in labelled for d in case.dice.values()):
        what = "no class of a labelled case could be scored" if labelled else "no case has labels"
        return [f"There is no score: {what}."]
    each = [_case_scores(result, case) for case in labelled]
    names = dict.fromkeys(name for s in each for name in s.dice)
    of = {name: [s for s in each if name in s.scored] for name in names}
    scores = Scores(
        dice={name: mean_of(s.dice[name] for s in some) for name, some in of.items()},
        trivial={name: mean_of(s.trivial.get(name) for s in some) for name, some in of.items()},
    )
    text = scores.brief("**")
    headline = (
        f"{text[0].upper()}{text[1:]}, over the {len(labelled)} of {len(result.cases)} cases "
        "with labels."
    )
    rows = [
        {
            "class": name,
            "Dice": scores.dice[name],
            "trivial": scores.trivial[name],
            "over trivial": scores.gain_of(name),
            "cases": f"{len(some)} of {len(labelled)}",
        }
        for name, some in of.items()
    ]
    return [
        f"{headline} {scores.notes()}".strip(),
        embedded("Dice by class", _plot(scores)),
        markdown_table(rows),
    ]


def _plot(scores: Scores) -> bytes:
    trivial = [scores.trivial[name] for name in scores.scored]
    return bar_plot(
        scores.scored,
        [scores.dice[name] for name in scores.scored],
        "Dice, mean over cases",
        # Predictions of earlier versions have none.
        reference=trivial if any(t is not None for t in trivial) else None,
        reference_label="trivial",
    )


def _case_scores(result: EnsembleResult, case: CasePrediction) -> Scores:
    """The scores of a case, with every class that was asked for."""
    return Scores(dice=dict.fromkeys(result.classes) | case.dice, trivial=case.trivial_dice)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)

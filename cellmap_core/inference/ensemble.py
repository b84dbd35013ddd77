"""The ensemble: mean of the members' probabilities, case by case and block by block."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cellmap_core.datalist import Datalist, Entry, read_datalist
from cellmap_core.errors import CellmapError, EnsembleError
from cellmap_core.inference.members import Member, Networks, open_members
from cellmap_core.inference.predict import predict_case, set_aside
from cellmap_core.inference.predicted_labels import labels_path, table_path
from cellmap_core.models import BundleRef, CasePrediction, EnsembleResult, Failure
from cellmap_core.nifti_names import files_of
from cellmap_core.provenance import (
    file_digest,
    key_of,
    read_receipt,
    sweep,
    write_json,
    write_receipt,
)
from cellmap_core.training.volumes import CACHE_NAME, open_case
from cellmap_core.work import OUTPUT_NAME, RECEIPTS_NAME

logger = logging.getLogger(__name__)

_RESULT_NAME = "ensemble.json"
# Part of every key: raise it when what is written changes, so that old predictions do not stay.
_VERSION = 2


def ensemble(datalist: Path, work_dir: Path, bundles: Sequence[BundleRef]) -> EnsembleResult:
    """Predict every case of the testing list with the mean of the trained models.

    Parameters
    ----------
    datalist : Path
        ``datalist.json``.
    work_dir : Path
        Predictions go to ``ensemble_output`` in it: ``<case>.zarr/<class>/s0`` masks,
        ``<case>.nii.gz`` with a label id a voxel, ``<case>.labels.json`` with the table of these
        ids, and ``ensemble.json``.
    bundles : sequence of BundleRef
        The members; each counts for the classes that it could learn.

    Returns
    -------
    EnsembleResult
        Predictions, with Dice where a case has labels. Cases that cannot be predicted and
        bundles without a model are failures by name; the rest is done.

    Raises
    ------
    EnsembleError
        There is no case to predict, no model, or no class that any model could learn.
    """
    cases = read_datalist(datalist)
    _check_cases(datalist, cases)
    members, failures = open_members(bundles, cases.classes)
    classes = _known_classes(cases, members)
    job = _Job(cases, work_dir.resolve(), members, classes, Networks())
    output = job.work_dir / OUTPUT_NAME
    for folder in (output, output / RECEIPTS_NAME, job.work_dir / CACHE_NAME):
        sweep(folder)
    done, predictions = 0, []
    for entry in cases.testing:
        try:
            prediction, made = _predict_once(job, entry)
        except (CellmapError, OSError) as error:
            failures.append(_failed(entry, output, str(error)))
        except Exception as error:
            # One case must not end the others, whatever a reader or a network comes up with.
            logger.exception("%s failed unexpectedly", entry.name)
            failures.append(_failed(entry, output, f"unexpected {error!r}"))
        else:
            done += made
            predictions.append(prediction)
    result = EnsembleResult(
        done=done,
        current=len(predictions) - done,
        failures=tuple(failures),
        folder=output,
        classes=cases.classes,
        members=tuple(m.name for m in members),
        cases=tuple(predictions),
    )
    write_json(result.folder / _RESULT_NAME, result.model_dump(mode="json"))
    return result


def _failed(entry: Entry, output: Path, reason: str) -> Failure:
    """Return a case that is not predicted; an earlier prediction of it is moved aside."""
    logger.warning("%s cannot be predicted: %s", entry.name, reason)
    if (aside := set_aside(output / f"{entry.stem}.zarr")) is not None:
        logger.warning("the earlier prediction of %s is now in %s", entry.name, aside)
    return Failure(item=entry.name, reason=reason)


@dataclass(frozen=True)
class _Job:
    cases: Datalist
    work_dir: Path
    members: Sequence[Member]
    classes: tuple[str, ...]
    networks: Networks


def _check_cases(path: Path, cases: Datalist) -> None:
    if not cases.testing:
        raise EnsembleError(
            f"{path} has no testing case",
            "cases to predict in its list 'testing'",
            "convert again with validate rows in the datasplit, or with test_manifest",
        )


def _known_classes(cases: Datalist, members: Sequence[Member]) -> tuple[str, ...]:
    """The classes that some member could learn; the others are said, and not predicted."""
    known = tuple(name for c, name in enumerate(cases.classes) if any(m.learnt[c] for m in members))
    if not known:
        raise EnsembleError("no member could learn any class", "annotated and present classes")
    if missing := [name for name in cases.classes if name not in known]:
        logger.warning(
            "no prediction of %s: not annotated and present in any training case",
            ", ".join(missing),
        )
    return known


def _predict_once(job: _Job, entry: Entry) -> tuple[CasePrediction, bool]:
    """Predict a case, or find it predicted with the same models from the same voxels."""
    folder = job.work_dir / OUTPUT_NAME
    receipt_path = folder / RECEIPTS_NAME / f"{entry.stem}.json"
    named = [entry.image, entry.label] if entry.label else [entry.image]
    files = [file for name in named for file in files_of(job.cases.path(name))]
    for path in files:
        if not path.is_file():
            raise EnsembleError(f"no file {path}", "the file that the datalist names")
    key = key_of(
        "ensemble",
        _VERSION,
        [file_digest(f) for f in files],
        entry.annotated_classes,
        job.cases.table.to_json(),
        job.classes,
        sorted(m.digest for m in job.members),
    )
    target = folder / f"{entry.stem}.zarr"
    if (receipt := read_receipt(receipt_path, key)) is not None:
        return CasePrediction.model_validate({**receipt.result, "prediction": target}), False
    case = open_case(job.cases, entry, job.work_dir / CACHE_NAME)
    logger.info("predicting %s with %d models", entry.name, len(job.members))
    prediction = predict_case(
        job.cases, entry, case, job.members, job.classes, job.networks, target
    )
    outputs = [p for p in sorted(target.rglob("*")) if p.is_file()]
    outputs += [labels_path(target), table_path(target)]
    if prediction.further_ids:
        logger.warning(
            "%s: %d predicted combinations of classes have no id in the datalist's label table; "
            "%s gives theirs",
            entry.name, prediction.further_ids, table_path(target),
        )  # fmt: skip
    write_receipt(receipt_path, key, outputs, prediction.model_dump(mode="json"))
    return prediction, True

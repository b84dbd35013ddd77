"""Bundles of other people's templates: trained as their authors wrote them.

``python -m cellmap_core.bundles.foreign <bundle>`` is the process that trains one. It loads the
bundle's algorithm by MONAI's ``algo_object.json``, which runs code of the template: the user
has named that folder, and trusts it.
"""

from __future__ import annotations

import functools
import logging
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellmap_core.errors import BundleError, CellmapError, TrainingError
from cellmap_core.models import BundleRef, TrainResult
from cellmap_core.provenance import Receipt
from cellmap_core.training.launch import ERROR_MARK
from cellmap_core.training.result import GENERATED_NAME, write_result

logger = logging.getLogger(__name__)

# Where Auto3DSeg's templates keep a model, in the order of preference.
_MODELS = ("**/best*.pt", "**/*best*.pt", "**/model*.pt", "**/*.pt", "**/*.pth")


def main(arguments: Sequence[str]) -> int:
    """Train the bundle of a folder; give its exit code back."""
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s", force=True)
    try:
        train(Path(arguments[0]))
    except CellmapError as error:
        logger.error("%s%s", ERROR_MARK, error)  # noqa: TRY400 - one clear line, no traceback
        return error.exit_code
    return 0


def train(folder: Path) -> TrainResult:
    """Train a bundle as MONAI's AutoRunner does, and write down what came out.

    Parameters
    ----------
    folder : Path
        Of the bundle.

    Returns
    -------
    TrainResult
        With the bundle's own score as mean Dice; such templates tell no Dice by class.

    Raises
    ------
    TrainingError
        It failed, or left no score or no model.
    """
    from monai.auto3dseg.utils import algo_from_json

    algo, _ = algo_from_json(str(folder / "algo_object.json"))
    # MONAI calls whatever ``python`` is on the PATH, and splits its command on spaces.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    if " " in str(folder):
        raise BundleError(
            f"{folder} has a space in its path",
            "none: MONAI's runner splits the command of foreign templates on spaces",
            "choose another work_dir for them",
        )
    _let_it_speak()
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    started = time.monotonic()
    try:
        algo.train(train_parameters(folder), {"CUDA_VISIBLE_DEVICES": devices} if devices else None)
        score = algo.get_score()
    # What other people's code raises is not ours to know; its own log says why.
    except Exception as error:
        raise TrainingError(f"{folder.name}: {type(error).__name__}: {error}") from error
    name, _, fold = folder.name.rpartition("_")
    usage = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
    result = TrainResult(
        done=1,
        bundle=BundleRef(algo=name, fold=int(fold), folder=folder),
        checkpoint=_model(folder),
        best_epoch=0,
        epochs=0,
        mean_dice=None if score is None else float(score),
        dice={},
        trivial_dice={},
        seconds=time.monotonic() - started,
        host_bytes=usage,
    )
    write_result(result)
    return result


def _let_it_speak() -> None:
    """Let the log of a training come as it is written: MONAI keeps it until it has failed."""
    from monai.apps.auto3dseg import bundle_gen
    from monai.auto3dseg import utils

    for module in (bundle_gen, utils):
        speaking = functools.partial(module.run_cmd, capture_output=False)
        module.run_cmd = speaking  # type: ignore[attr-defined]


def train_parameters(folder: Path) -> dict[str, Any]:
    """What ``generate`` was asked to pass on: epochs and overrides."""
    try:
        receipt = Receipt.model_validate_json((folder / GENERATED_NAME).read_bytes())
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{folder} has no {GENERATED_NAME}", "a generated bundle", "generate it again"
        ) from error
    return dict(receipt.result.get("train_parameters", {}))


def _model(folder: Path) -> Path:
    for pattern in _MODELS:
        if found := sorted(folder.glob(pattern), key=lambda p: p.stat().st_mtime):
            return found[-1]
    raise TrainingError(f"{folder.name} left no model in {folder}", "a .pt file")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

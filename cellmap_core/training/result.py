"""The result of a finished training, and whether it is still what it was made from."""

from __future__ import annotations

from pathlib import Path

from cellmap_core.errors import BundleError, OptionError
from cellmap_core.models import BundleRef, TrainResult
from cellmap_core.provenance import file_digest, key_of, read_receipt, write_json, write_receipt
from cellmap_core.training.config import TrainConfig
from cellmap_core.training.config_files import read_bundle_config

MODEL_FOLDER = "model"
BEST_NAME = "best.pt"
LAST_NAME = "last.pt"
#: The checkpoint before the last.
PREVIOUS_NAME = "previous.pt"
_RESULT_NAME = "result.json"
_RECEIPT_NAME = "receipt.json"


def best_checkpoint(bundle: Path) -> Path:
    """Where a bundle's best model is."""
    return bundle / MODEL_FOLDER / BEST_NAME


def write_result(result: TrainResult, config: TrainConfig) -> None:
    """Write the result and its receipt; call it last."""
    folder = result.checkpoint.parent
    document = result.model_dump(mode="json", exclude={"bundle": {"folder"}, "checkpoint": True})
    write_json(folder / _RESULT_NAME, document)
    outputs = [result.checkpoint, folder / _RESULT_NAME]
    write_receipt(folder / _RECEIPT_NAME, _key(config), outputs, document)


def read_result(bundle: BundleRef) -> TrainResult | None:
    """The result of a bundle's training, if it is finished and still current.

    Returns
    -------
    TrainResult or None
        With ``done=0, current=1``; None where the bundle is not trained, or where its
        configuration, its datalist or its best model is no longer what it was.
    """
    try:
        key = _key(read_bundle_config(bundle.folder))
    except (BundleError, OptionError, OSError):
        return None
    receipt = read_receipt(bundle.folder / MODEL_FOLDER / _RECEIPT_NAME, key)
    if receipt is None:
        return None
    own = {"bundle": bundle, "checkpoint": best_checkpoint(bundle.folder), "done": 0, "current": 1}
    return TrainResult.model_validate({**receipt.result, **own})


def _key(config: TrainConfig) -> str:
    return key_of("train", config.digest, file_digest(config.datalist))

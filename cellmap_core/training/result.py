"""The result of a finished training, and whether it is still what it was made from."""

from __future__ import annotations

import os
from pathlib import Path

from cellmap_core.bundles.names import is_ours
from cellmap_core.errors import BundleError, OptionError
from cellmap_core.models import BundleRef, TrainResult
from cellmap_core.provenance import (
    Receipt,
    file_digest,
    key_of,
    read_receipt,
    write_json,
    write_receipt,
)
from cellmap_core.training.config import TrainConfig
from cellmap_core.training.config_files import MODEL_FOLDER, read_bundle_config

BEST_NAME = "best.pt"
LAST_NAME = "last.pt"
#: The checkpoint before the last.
PREVIOUS_NAME = "previous.pt"
#: The receipt of a bundle's generation, in its folder.
GENERATED_NAME = "generate.json"
_RESULT_NAME = "result.json"
_RECEIPT_NAME = "receipt.json"


def best_checkpoint(bundle: Path) -> Path:
    """Where a bundle's best model is."""
    return bundle / MODEL_FOLDER / BEST_NAME


def write_result(result: TrainResult, config: TrainConfig | None = None) -> None:
    """Write the result and its receipt; call it last.

    Parameters
    ----------
    result : TrainResult
        What came out.
    config : TrainConfig, optional
        Of the training; bundles of others' templates have none of ours.
    """
    bundle = result.bundle.folder
    folder = bundle / MODEL_FOLDER
    document = result.model_dump(mode="json", exclude={"bundle": {"folder"}, "checkpoint": True})
    document["checkpoint"] = os.path.relpath(result.checkpoint, bundle)
    write_json(folder / _RESULT_NAME, document)
    outputs = [result.checkpoint, folder / _RESULT_NAME]
    key = _key(config) if config is not None else _foreign_key(bundle)
    write_receipt(folder / _RECEIPT_NAME, key, outputs, document)


def is_finished(bundle: Path) -> bool:
    """Whether a bundle's training has come to a result, current or not."""
    return (bundle / MODEL_FOLDER / _RESULT_NAME).is_file()


def read_result(bundle: BundleRef) -> TrainResult | None:
    """The result of a bundle's training, if it is finished and still current.

    Returns
    -------
    TrainResult or None
        With ``done=0, current=1``; None where the bundle is not trained, or where its
        configuration, its datalist or its best model is no longer what it was.
    """
    try:
        ours = is_ours(bundle.folder)
        key = _key(read_bundle_config(bundle.folder)) if ours else _foreign_key(bundle.folder)
    except (BundleError, OptionError, OSError, ValueError):
        return None
    receipt = read_receipt(bundle.folder / MODEL_FOLDER / _RECEIPT_NAME, key)
    if receipt is None:
        return None
    checkpoint = bundle.folder / receipt.result["checkpoint"]
    own = {"bundle": bundle, "checkpoint": checkpoint, "done": 0, "current": 1}
    return TrainResult.model_validate({**receipt.result, **own})


def _foreign_key(bundle: Path) -> str:
    """Of what a bundle of another template was generated from."""
    generated = Receipt.model_validate_json((bundle / GENERATED_NAME).read_bytes())
    return key_of("train foreign", generated.key)


def _key(config: TrainConfig) -> str:
    return key_of("train", config.digest, file_digest(config.datalist))

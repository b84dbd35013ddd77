"""The prediction parameters that MONAI's ensemble hands to ``InferClass``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from monai.transforms.io.array import SaveImage

from cellmap_core.errors import OptionError
from cellmap_core.training.config_files import check_overrides, overrides_for

#: Values that a prediction may use instead of those of the training.
PREDICTION_VALUES = ("patch_size_vox", "overlap", "sw_batch_size", "precision")
# MONAI's EnsembleRunner keeps what it, the ensemble and the writer of images take in one mapping
# and passes all of it on to every model: the process's rank, the number of models to choose, and
# the writer with its arguments. None of them is for the model but the rank.
_OF_RUNNER = {"rank", "n_best", "image_save_func"} | {
    name for name in inspect.signature(SaveImage.__init__).parameters if name != "self"
}


def prediction_values(algo: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of one algorithm's prediction among what MONAI's ensemble passes on.

    Parameters
    ----------
    algo : str
        The model's algorithm.
    given : mapping
        Any of `PREDICTION_VALUES`, perhaps with the algorithm and a dot before it; what is the
        ensemble runner's own is left out.

    Raises
    ------
    OptionError
        A name is unknown or cannot change once the model is trained, or a value is not valid.
    """
    values = {name: value for name, value in given.items() if name not in _OF_RUNNER}
    if wrong := [n for n in values if n.rpartition(".")[2] not in PREDICTION_VALUES]:
        raise OptionError(
            f"prediction parameter {', '.join(wrong)}",
            f"any of {', '.join(PREDICTION_VALUES)}; all others are fixed by the training",
        )
    return overrides_for(algo, check_overrides(values))

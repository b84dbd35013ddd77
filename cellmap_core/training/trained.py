"""A trained model with the configuration that it was trained with."""

from __future__ import annotations

from pathlib import Path

from cellmap_core.training.algorithms import with_architecture
from cellmap_core.training.checkpoint import Model, check_configuration, read_model
from cellmap_core.training.config import TrainConfig
from cellmap_core.training.config_files import with_training_params


def load_trained(path: Path, written: TrainConfig) -> tuple[TrainConfig, Model]:
    """Read a best model, and the configuration that builds and feeds its network.

    Values may be given to a training in place of the written ones, as MONAI's AutoRunner does
    after ``set_training_params``. The checkpoint keeps them, so prediction uses what the network
    was trained with.

    Parameters
    ----------
    path : Path
        ``best.pt``; its weights stay on disk until they are copied.
    written : TrainConfig
        What the bundle's ``hyper_parameters.yaml`` says now.

    Returns
    -------
    TrainConfig, Model
        The written configuration with the model's training parameters and architecture; the
        model.

    Raises
    ------
    CheckpointError
        The file is missing or damaged, or the written configuration is not the one that the
        model was trained from.
    OptionError
        The written values and the model's training parameters do not go together.
    """
    model = read_model(path)
    config = with_training_params(written, model.training_params)
    check_configuration(model, path, config.digest)
    return with_architecture(config, model.architecture), model

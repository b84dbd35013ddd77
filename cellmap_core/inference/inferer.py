"""``InferClass``: one bundle's prediction in memory, as MONAI's AlgoEnsemble asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from numpy.typing import NDArray

from cellmap_core.inference.blocks import plan_blocks, predict_block
from cellmap_core.inference.prediction_params import prediction_values
from cellmap_core.nifti import read_geometry, read_volume
from cellmap_core.paths import expand_path
from cellmap_core.training.algorithms import build_network
from cellmap_core.training.config import TrainConfig
from cellmap_core.training.config_files import make_config, read_config
from cellmap_core.training.result import best_checkpoint
from cellmap_core.training.trained import load_trained


class InferClass:
    """Predict with the best model of the bundle that the configuration belongs to.

    Parameters
    ----------
    config_file : path or sequence of paths
        ``hyper_parameters.yaml`` in the bundle's ``configs``.
    **override
        Values to use instead of the training's (``overlap``, ``sw_batch_size``, …), and what
        MONAI's ensemble runner passes on; see `prediction_values`.

    Raises
    ------
    OptionError
        A name or a value of ``override`` is not valid.
    CheckpointError
        The bundle has no model, or one of another configuration.
    """

    def __init__(self, config_file: str | Path | Sequence[str | Path], **override: Any) -> None:
        files = [config_file] if isinstance(config_file, str | Path) else list(config_file)
        # MONAI lists the files in the order of the file system, and trains with them sorted.
        paths = sorted(expand_path(f) for f in files)
        written = read_config(paths)
        values = prediction_values(written.algo, override)
        trained, model = load_trained(best_checkpoint(paths[0].resolve().parents[1]), written)
        self.config = make_config({**trained.model_dump(), **values})
        self.network = build_network(trained)
        self.network.load_state_dict(model.model)
        # A channel that was never trained says nothing; noise would pass for a prediction.
        self._learnt = np.array([name in model.trained_classes for name in trained.classes])
        self.network.to(_device(override.get("rank", 0))).eval()

    def infer(self, image_path: str | Path | Mapping[str, Any]) -> torch.Tensor:
        """Predict a whole image.

        Parameters
        ----------
        image_path : path or mapping
            The file, or an entry of a datalist with its ``image``.

        Returns
        -------
        Tensor
            Probabilities (C, x, y, z), in the axes of the file, with its affine; one more for
            the background before them where the configuration has ``background_channel``.
        """
        given = image_path["image"] if isinstance(image_path, Mapping) else image_path
        path = expand_path(given)
        affine = torch.from_numpy(read_geometry(path).matrix)
        image = read_volume(path)
        first = int(self.config.background_channel)
        out = np.empty((first + len(self.config.classes), *image.shape), dtype=np.float32)
        classes = out[first:]
        for block in plan_blocks(image.shape, [self.config]):
            z, y, x = block.core
            classes[:, z, y, x] = predict_block(self.network, image, block, self.config)
        classes[~self._learnt] = 0
        if first:
            out[0] = background(classes, self.config)
        probabilities: torch.Tensor = MetaTensor(
            torch.from_numpy(np.ascontiguousarray(out.transpose(0, 3, 2, 1))),
            affine=affine,
            meta={"filename_or_obj": str(path), "original_affine": affine, "space": "RAS"},
        )
        return probabilities


def background(classes: NDArray[np.float32], config: TrainConfig) -> NDArray[np.float32]:
    """Probability (z, y, x) that a voxel belongs to no class, from those of the classes (C, …).

    Where each class is predicted for itself, a class is likelier than the background from the
    threshold of 0.5 on.
    """
    exclusive = config.activation == "softmax"
    taken = classes.sum(axis=0) if exclusive else classes.max(axis=0)
    left: NDArray[np.float32] = np.clip(1 - taken, 0, 1)
    return left


def _device(rank: int) -> torch.device:
    """The device of one process of an ensemble: each has a GPU of its own."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", rank % torch.cuda.device_count())

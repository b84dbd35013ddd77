"""``InferClass``: one bundle's prediction in memory, as MONAI's AlgoEnsemble asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor

from cellmap_core.inference.blocks import plan_blocks, predict_block
from cellmap_core.nifti import read_volume
from cellmap_core.paths import expand_path
from cellmap_core.training.algorithms import build_network, with_architecture
from cellmap_core.training.checkpoint import load_model
from cellmap_core.training.config_files import read_config
from cellmap_core.training.result import best_checkpoint


class InferClass:
    """Predict with the best model of the bundle that the configuration belongs to.

    Parameters
    ----------
    config_file : path or sequence of paths
        ``hyper_parameters.yaml`` in the bundle's ``configs``.
    **override
        Values to use instead of the configuration's (``overlap``, ``sw_batch_size``, …).
    """

    def __init__(self, config_file: str | Path | Sequence[str | Path], **override: Any) -> None:
        files = [config_file] if isinstance(config_file, str | Path) else list(config_file)
        paths = [expand_path(f) for f in files]
        trained = read_config(paths)
        self.config = read_config(paths, override)
        path = best_checkpoint(paths[0].resolve().parents[1])
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = load_model(path, trained.digest)
        self.network = build_network(with_architecture(trained, model.architecture))
        self.network.load_state_dict(model.model)
        # A channel that was never trained says nothing; noise would pass for a prediction.
        self._learnt = np.array([name in model.trained_classes for name in trained.classes])
        self.network.to(device).eval()

    def infer(self, image_path: str | Path | Mapping[str, Any]) -> torch.Tensor:
        """Predict a whole image.

        Parameters
        ----------
        image_path : path or mapping
            The file, or an entry of a datalist with its ``image``.

        Returns
        -------
        Tensor
            Probabilities (C, x, y, z), in the axes of the file, with its affine.
        """
        given = image_path["image"] if isinstance(image_path, Mapping) else image_path
        path = expand_path(given)
        image = read_volume(path)
        out = np.empty((len(self.config.classes), *image.shape), dtype=np.float32)
        for block in plan_blocks(image.shape, [self.config]):
            z, y, x = block.core
            out[:, z, y, x] = predict_block(self.network, image, block, self.config)
        out[~self._learnt] = 0
        affine = torch.from_numpy(np.asarray(nib.load(path).affine))  # type: ignore[attr-defined]
        probabilities: torch.Tensor = MetaTensor(
            torch.from_numpy(np.ascontiguousarray(out.transpose(0, 3, 2, 1))),
            affine=affine,
            meta={"filename_or_obj": str(path), "original_affine": affine, "space": "RAS"},
        )
        return probabilities

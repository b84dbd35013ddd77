"""The Auto3DSeg algorithm that all our templates share."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.apps.auto3dseg.bundle_gen import BundleAlgo

from cellmap_core.datalist import read_datalist
from cellmap_core.training.config_files import CONFIG_NAME, MODEL_FOLDER, write_config
from cellmap_core.training.history import PROGRESS_NAME
from cellmap_core.training.launch import command
from cellmap_core.training.rules import derive

# What BundleGen, AutoRunner and MONAI's own templates agree on; AutoRunner's default.
_DEFAULT_EPOCHS = 100


class CellmapAlgo(BundleAlgo):
    """A bundle whose values come from our rules, and which trains without a shell.

    Subclasses need nothing of their own: the algorithm is their template's name.
    """

    def fill_template_config(
        self, data_stats_filename: str, algo_path: str, **kwargs: Any
    ) -> dict[str, Any]:
        """Write ``hyper_parameters.yaml``: every value, each rule with its reason.

        Parameters
        ----------
        data_stats_filename : str
            ``datastats.yaml``.
        algo_path : str
            The new bundle's folder.
        **kwargs
            ``fold``; optionally ``num_epochs``, ``overrides`` and ``memory``.

        Returns
        -------
        dict
            MONAI's record of what was filled: file name → values.
        """
        source = yaml.safe_load(Path(self.data_list_file).read_text(encoding="utf-8"))
        datalist = Path(source["datalist"]).resolve()
        folder = Path(algo_path).resolve()
        identity = {
            "algo": self.name,
            "fold": int(kwargs["fold"]),
            "datalist": datalist,
            "ckpt_path": folder / MODEL_FOLDER,
            "num_epochs": int(kwargs.get("num_epochs", _DEFAULT_EPOCHS)),
        }
        config = derive(
            Path(data_stats_filename),
            read_datalist(datalist),
            identity,
            kwargs.get("overrides", {}),
            kwargs.get("memory"),
        )
        write_config(folder / CONFIG_NAME, config)
        return {Path(CONFIG_NAME).name: config.model_dump(mode="json", exclude={"rules"})}

    def train(
        self,
        train_params: dict[str, Any] | None = None,
        device_setting: dict[str, Any] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Train as MONAI's AutoRunner asks for it.

        MONAI splits its command on spaces and takes ``python`` from the PATH; ours is an
        argument list for this interpreter.
        """
        self.device_setting.update(device_setting or {})
        visible = str(self.device_setting["CUDA_VISIBLE_DEVICES"])
        processes = (
            len([d for d in visible.split(",") if d.strip()]) if torch.cuda.is_available() else 1
        )
        return subprocess.run(
            command(Path(self.output_path), train_params, processes=max(1, processes)),
            check=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": visible},
        )

    def get_score(self, *_args: Any, **_kwargs: Any) -> float | None:
        """Best mean Dice; read beside the bundle, so that a copied work_dir reads its own."""
        path = Path(self.output_path) / MODEL_FOLDER / PROGRESS_NAME
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        score: float | None = entries[-1]["best_avg_dice_score"]
        return score

"""The Auto3DSeg algorithm that all our templates share."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.apps.auto3dseg.bundle_gen import BundleAlgo

from cellmap_core.bundles.retraining import set_old_model_aside, with_params
from cellmap_core.bundles.source import DataSource, read_source
from cellmap_core.datalist import read_datalist
from cellmap_core.errors import BundleError
from cellmap_core.models import BundleRef
from cellmap_core.training.config import TrainConfig
from cellmap_core.training.config_files import (
    CONFIG_NAME,
    MODEL_FOLDER,
    read_bundle_config,
    write_config,
)
from cellmap_core.training.history import PROGRESS_NAME
from cellmap_core.training.launch import command, run_training
from cellmap_core.training.rules import derive

logger = logging.getLogger(__name__)

# What BundleGen, AutoRunner and MONAI's own templates agree on; AutoRunner's default.
_DEFAULT_EPOCHS = 100
# What generators pass besides values: ours, then MONAI's, of which our rules need none.
_NO_VALUES = {"fold", "num_epochs", "overrides", "memory"} | {
    "bundle_root",
    "fill_with_datastats",
    "gpu_customization",
    "gpu_customization_specs",
}


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
            ``fold`` (default: that of the bundle this one is a copy of); optionally
            ``num_epochs``, ``overrides`` and ``memory``. Other names are overrides too.

        Returns
        -------
        dict
            MONAI's record of what was filled: file name → values.
        """
        source = read_source(Path(self.data_list_file))
        cases = source.read()
        folder = Path(algo_path).resolve()
        if kwargs.get("gpu_customization"):
            logger.warning("gpu_customization has no effect: rules fit all values to the GPU")
        of_source = {n: value for n, value in source.overrides.items() if n not in kwargs}
        given = {n: value for n, value in kwargs.items() if n not in _NO_VALUES}
        config = derive(
            Path(data_stats_filename),
            cases,
            self._identity(source, folder, kwargs),
            {**of_source, **given, **kwargs.get("overrides", {})},
            kwargs.get("memory"),
        )
        if config.background_channel and not cases.table.exclusive:
            logger.warning(
                "classes of %s overlap, but an ensemble without sigmoid keeps one class a voxel; "
                "set sigmoid: true in the runner's input for a channel of each class",
                source.datalist,
            )
        write_config(folder / CONFIG_NAME, config)
        return {Path(CONFIG_NAME).name: config.model_dump(mode="json", exclude={"rules"})}

    def _identity(self, source: DataSource, folder: Path, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What the bundle is about, before any rule."""
        return {
            "algo": self.name,
            "fold": self._fold(kwargs),
            "datalist": source.datalist,
            "dataroot": source.own_root,
            "ckpt_path": folder / MODEL_FOLDER,
            "num_epochs": int(kwargs.get("num_epochs", _DEFAULT_EPOCHS)),
            "background_channel": not source.sigmoid,
        }

    def _fold(self, kwargs: dict[str, Any]) -> int:
        """The fold; generators of a search copy a bundle and do not say it again."""
        filled = self.fill_records.get(Path(CONFIG_NAME).name, {})
        fold = kwargs.get("fold", filled.get("fold"))
        if fold is None:
            raise BundleError(f"no fold for {self.name}", "export_to_disk(…, fold=…)")
        return int(fold)

    def train(
        self,
        train_params: dict[str, Any] | None = None,
        device_setting: dict[str, Any] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Train as MONAI's AutoRunner asks for it.

        MONAI splits its command on spaces and takes ``python`` from the PATH; ours is an
        argument list for this interpreter. A model that was trained with other values is kept
        beside the new one.

        Parameters
        ----------
        train_params : dict, optional
            Values to set; what follows from them by rule changes too. They are kept in the model.
        device_setting : dict, optional
            MONAI's; ``CUDA_VISIBLE_DEVICES`` is used.

        Raises
        ------
        OptionError
            A name or value is not valid.
        TrainingError, TrainingInterrupted
            The training failed, or was ended from outside.
        """
        self.device_setting.update(device_setting or {})
        folder = Path(self.output_path)
        config = self._config(folder, dict(train_params or {}))
        set_old_model_aside(folder, config)
        visible = str(self.device_setting["CUDA_VISIBLE_DEVICES"])
        gpus = [d for d in visible.split(",") if d.strip()] if torch.cuda.is_available() else []
        given = dict(config.training_params)
        if config.dataroot is not None:
            given["dataroot"] = str(config.dataroot)
        arguments = command(folder, given, processes=max(1, len(gpus)))
        bundle = BundleRef(algo=config.algo, fold=config.fold, folder=folder)
        run_training(
            bundle, arguments, self._environment(visible), lambda line: print(line, flush=True)
        )
        return subprocess.CompletedProcess(arguments, 0)

    def _config(self, folder: Path, params: dict[str, Any]) -> TrainConfig:
        """The configuration of a training with parameters, and with the data where they are."""
        if "CUDA_VISIBLE_DEVICES" in params:
            params.pop("CUDA_VISIBLE_DEVICES")
            logger.warning(
                "CUDA_VISIBLE_DEVICES is no training parameter; use AutoRunner.set_device_info"
            )
        config = read_bundle_config(folder)
        if config.dataroot is not None and (source := self._source_beside(folder)) is not None:
            config = config.model_copy(update={"dataroot": source.dataroot})
        if not params:
            return config
        cases = read_datalist(config.datalist, config.dataroot)
        return with_params(config, self._beside(folder, self.data_stats_files), cases, params)

    def _source_beside(self, folder: Path) -> DataSource | None:
        """The data source of this work_dir: AutoRunner writes it anew when it is moved."""
        path = self._beside(folder, self.data_list_file)
        return read_source(path) if path.is_file() else None

    @staticmethod
    def _beside(folder: Path, path: str) -> Path:
        """A file of the work_dir, which may have been moved since the bundle was generated."""
        here = folder.parent / Path(path).name
        return here if here.is_file() else Path(path)

    def _environment(self, visible: str) -> dict[str, str]:
        """Variables of the training's process; what cannot be followed is logged."""
        if int(self.device_setting.get("NUM_NODES") or 1) > 1:
            logger.warning("%s is trained on this node alone", Path(self.output_path).name)
        if prefix := str(self.device_setting.get("CMD_PREFIX") or "").strip():
            logger.warning("CMD_PREFIX %s is not used: this interpreter trains", prefix)
        environment = {"CUDA_VISIBLE_DEVICES": visible}
        if self.mlflow_tracking_uri:
            environment["MLFLOW_TRACKING_URI"] = self.mlflow_tracking_uri
        if self.mlflow_experiment_name:
            environment["MLFLOW_EXPERIMENT_NAME"] = self.mlflow_experiment_name
        return environment

    def get_score(self, *_args: Any, **_kwargs: Any) -> float:
        """Best mean Dice; read beside the bundle, so that a copied work_dir reads its own.

        Returns
        -------
        float
            0 for a model whose validation cases hold no class that can be scored: MONAI takes a
            bundle without a number for an untrained one.

        Raises
        ------
        BundleError
            The bundle has no score yet.
        """
        path = Path(self.output_path) / MODEL_FOLDER / PROGRESS_NAME
        name = Path(self.output_path).name
        try:
            entries = yaml.safe_load(path.read_text(encoding="utf-8"))
            score = entries[-1]["best_avg_dice_score"]
        except (OSError, yaml.YAMLError, LookupError, TypeError) as error:
            raise BundleError(f"{name} has no score in {path}", "", "train it first") from error
        if score is None:
            logger.warning("%s: its validation cases have no class to score; counted as 0", name)
        return float(score or 0)

"""``hyper_parameters.yaml``: read, written, and with values that the user sets."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import TypeAdapter, ValidationError

from cellmap_core.errors import BundleError, OptionError
from cellmap_core.paths import expand
from cellmap_core.provenance import write_text
from cellmap_core.training.algorithms import ALGORITHMS, algorithm
from cellmap_core.training.config import TrainConfig

#: Where a bundle keeps its model.
MODEL_FOLDER = "model"
#: Where a bundle keeps its configuration.
CONFIG_NAME = "configs/hyper_parameters.yaml"

# What a bundle is and where it lies is not for the user to set.
_FIXED = {
    "algo",
    "fold",
    "datalist",
    "dataroot",
    "ckpt_path",
    "classes",
    "background_channel",
    "training_params",
    "rules",
    "architecture",
}
#: What ``hyper_parameters.yaml`` never holds: it belongs to a model.
OF_MODEL = {"architecture", "training_params"}
# Names that MONAI's own templates have for values like these.
_MONAI_NAMES = {
    "num_images_per_batch": "batch_size",
    "num_epochs_per_validation": "validate_every",
    "num_warmup_epochs": "warmup_steps",
    "num_sw_batch_size": "sw_batch_size",
    "num_patches_per_iter": "micro_batch",
    "roi_size": "patch_size_vox",
    "overlap_ratio": "overlap",
    "amp": "precision",
}


def overridable(algo: str) -> tuple[str, ...]:
    """Names of the values of an algorithm that ``overrides`` may set."""
    return tuple(n for n in algorithm(algo).config.model_fields if n not in _FIXED)


def check_overrides(
    overrides: Mapping[str, Any], algos: Iterable[str] = tuple(ALGORITHMS)
) -> dict[str, Any]:
    """Overrides by known names with checked values; texts of a command line are read as YAML.

    Parameters
    ----------
    overrides : mapping
        ``name`` (for every algorithm that has it) or ``algo.name`` → value.
    algos : iterable of str
        The algorithms that are asked for; those of other templates have values of their own.

    Raises
    ------
    OptionError
        A name is unknown (the message lists the valid ones), or a value is out of range.
    """
    own = [a for a in algos if a in ALGORITHMS]
    return {name: _checked(own, name, value) for name, value in overrides.items()}


def overrides_for(algo: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides that one algorithm takes, by plain name; its own before those of all."""
    names = overridable(algo)
    common = {n: v for n, v in overrides.items() if n in names}
    own = {n.removeprefix(f"{algo}."): v for n, v in overrides.items() if n.startswith(f"{algo}.")}
    return common | own


def _checked(algos: Sequence[str], name: str, value: Any) -> Any:
    prefix, dot, plain = name.rpartition(".")
    # A file may hold values of algorithms that this run does not ask for.
    asked = [prefix] if dot and prefix in ALGORITHMS else [] if dot else algos
    takers = [a for a in asked if plain in overridable(a)]
    if not takers:
        valid = dict.fromkeys(n for a in algos for n in overridable(a))
        raise OptionError(
            f"unknown override {name}",
            f"any of {', '.join(valid)}, with the algorithm and a dot before it to set it for "
            f"that one alone ({', '.join(algos)})",
            f"MONAI's {plain} is {like} here" if (like := _MONAI_NAMES.get(plain)) else "",
        )
    field = algorithm(takers[0]).config.model_fields[plain]
    kind: Any = Annotated[(field.annotation, *field.metadata, plain)]
    try:
        given = yaml.safe_load(value) if isinstance(value, str) else value
        return TypeAdapter(kind).validate_python(given)
    except (ValidationError, yaml.YAMLError) as error:
        line = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "not YAML"
        raise OptionError(
            f"override {name} = {value!r}: {line}", "", "correct its value"
        ) from error


def make_config(values: Mapping[str, Any]) -> TrainConfig:
    """Check values and freeze them.

    Raises
    ------
    OptionError
        A value is missing, unknown or out of range; the message names it.
    """
    try:
        return algorithm(str(values.get("algo"))).config.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "hyper_parameters"
        found = f"{where} = {first['input']!r}" if first["loc"] else "hyper_parameters"
        message = first["msg"].removeprefix("Value error, ")
        raise OptionError(f"{found}: {message}", "", "set it right in the overrides") from error


def write_config(path: Path, config: TrainConfig) -> None:
    """Write ``hyper_parameters.yaml``, whole or not at all; the reasons come last."""
    values = config.model_dump(mode="json", exclude=OF_MODEL)
    # Relative to the bundle, so that a folder with data and bundles can be moved or copied.
    values["datalist"] = os.path.relpath(config.datalist, path.parent.parent)
    values["rules"] = values.pop("rules")
    write_text(path, yaml.safe_dump(values, sort_keys=False, width=100))


def read_config(paths: Sequence[Path], overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """Read one or more YAML files, later ones over earlier ones, and overrides over all.

    Parameters
    ----------
    paths : sequence of Path
        The files; the first one lies in the bundle's ``configs``.
    overrides : mapping, optional
        See `check_overrides`; and ``dataroot``, where the data were moved.

    Returns
    -------
    TrainConfig
        Its ``training_params`` are the values in which the overrides made it differ from the
        files.

    Raises
    ------
    BundleError
        A file is missing or is not a YAML mapping.
    OptionError
        A value is not what the schema says.
    """
    values: dict[str, Any] = {}
    for path in paths:
        try:
            document = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise BundleError(f"{path} cannot be read ({error})", CONFIG_NAME) from error
        if not isinstance(document, dict):
            raise BundleError(f"{path} holds no mapping", "name: value lines", "generate it again")
        values |= document
    if paths:
        _place(values, paths[0].resolve().parents[1])
    given = dict(overrides or {})
    if "dataroot" in given:
        values["dataroot"] = given.pop("dataroot")
    written = make_config(values)
    if not given:
        return written
    given = check_overrides(given, [written.algo])
    config = make_config(values | overrides_for(written.algo, given))
    return config.model_copy(update={"training_params": differing(config, written)})


def differing(config: TrainConfig, other: TrainConfig) -> dict[str, Any]:
    """Names and values (as in YAML) that a user may set and in which a configuration differs."""
    names = set(overridable(config.algo))
    here, there = (c.model_dump(mode="json", include=names) for c in (config, other))
    return {name: value for name, value in here.items() if value != there[name]}


def with_training_params(written: TrainConfig, params: Mapping[str, Any]) -> TrainConfig:
    """The configuration that `read_config` made of these parameters.

    Raises
    ------
    OptionError
        The written values and the parameters do not go together.
    """
    if not params:
        return written
    return make_config({**written.model_dump(), **params, "training_params": dict(params)})


def _place(values: dict[str, Any], bundle: Path) -> None:
    """Paths as they are now: relative ones begin at the bundle, and the model is in it."""
    if isinstance(values.get("datalist"), str):
        values["datalist"] = Path(os.path.normpath(bundle / expand(values["datalist"])))
    values["ckpt_path"] = bundle / MODEL_FOLDER


def read_bundle_config(folder: Path) -> TrainConfig:
    """The configuration of the bundle in ``folder``."""
    return read_config([folder / CONFIG_NAME])

"""``hyper_parameters.yaml``: every value that a training depends on, in one frozen model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from cellmap_core.errors import BundleError, OptionError
from cellmap_core.grid import Triple
from cellmap_core.models import Frozen
from cellmap_core.provenance import key_of, write_text

#: Where a bundle keeps its configuration.
CONFIG_NAME = "configs/hyper_parameters.yaml"

_Positive = Annotated[int, Field(ge=1)]


class Normalisation(Frozen):
    """Intensities: clip to the range of the data, then subtract the mean, divide by stdev."""

    clip_low: float
    clip_high: float
    mean: float
    stdev: Annotated[float, Field(gt=0)]

    def apply(self, image: NDArray[Any]) -> NDArray[np.float32]:
        """Normalise an array of any type and shape to float32."""
        out = np.clip(image.astype(np.float32), self.clip_low, self.clip_high)
        out -= np.float32(self.mean)
        out /= np.float32(self.stdev)
        return out


class Rule(Frozen):
    """Why a value is what it is.

    Attributes
    ----------
    reason : str
        One sentence for the person who reads the configuration.
    inputs : dict
        The measured numbers the value follows from.
    """

    reason: str
    inputs: dict[str, Any] = {}


class TrainConfig(Frozen):
    """The values of one training; sizes are z, y, x.

    Attributes
    ----------
    patch_size_vox : tuple of int
        Size of a training patch and of an inference window; divisible by
        ``2 ** (len(blocks_down) - 1)``.
    num_steps_per_epoch : int
        Optimizer steps in an epoch, each of ``batch_size`` patches.
    dsdepth : int
        Decoder levels that have an output and a loss (deep supervision).
    overlap : float
        Overlap of neighbouring windows in validation and inference, as a part of the window.
    amp : bool
        Mixed precision, where there is a GPU.
    rules : dict
        Field name → why it has its value.
    """

    algo: str
    fold: Annotated[int, Field(ge=0)]
    datalist: Path
    ckpt_path: Path
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    voxel_nm: Triple
    patch_size_vox: tuple[_Positive, _Positive, _Positive]
    blocks_down: Annotated[tuple[_Positive, ...], Field(min_length=1)]
    dsdepth: _Positive
    init_filters: Annotated[int, Field(ge=8)]
    batch_size: _Positive
    num_epochs: _Positive
    num_steps_per_epoch: _Positive
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5
    normalisation: Normalisation
    augment: bool = True
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.25
    sw_batch_size: _Positive = 1
    amp: bool = True
    seed: int = 0
    rules: dict[str, Rule] = {}

    @model_validator(mode="after")
    def _fits_the_network(self) -> TrainConfig:
        divisor = 2 ** (len(self.blocks_down) - 1)
        if any(n % divisor for n in self.patch_size_vox):
            raise ValueError(
                f"patch_size_vox {self.patch_size_vox} with {len(self.blocks_down)} levels; "
                f"expected sizes divisible by {divisor}"
            )
        return self

    @property
    def digest(self) -> str:
        """Digest of all values that change the model; where files lie does not."""
        places = {"datalist", "ckpt_path", "rules"}
        return key_of(self.model_dump(mode="json", exclude=places))


#: What may be set by ``overrides``: every value, but not what a bundle is or where it lies.
OVERRIDABLE: tuple[str, ...] = tuple(
    name
    for name in TrainConfig.model_fields
    if name not in {"algo", "fold", "datalist", "ckpt_path", "classes", "rules"}
)


def check_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides by known names with checked values; texts of a command line are read as YAML.

    Raises
    ------
    OptionError
        A name is unknown (the message lists the valid ones), or a value is out of range.
    """
    if unknown := sorted(set(overrides) - set(OVERRIDABLE)):
        raise OptionError(
            f"unknown override {', '.join(unknown)}", f"any of {', '.join(OVERRIDABLE)}"
        )
    return {name: _checked(name, value) for name, value in overrides.items()}


def _checked(name: str, value: Any) -> Any:
    field = TrainConfig.model_fields[name]
    kind: Any = Annotated[(field.annotation, *field.metadata, name)]
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
        return TrainConfig.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "hyper_parameters"
        found = f"{where} = {first['input']!r}" if first["loc"] else "hyper_parameters"
        message = first["msg"].removeprefix("Value error, ")
        raise OptionError(
            f"{found}: {message}", "", f"set it right in the overrides ({where})"
        ) from error


def write_config(path: Path, config: TrainConfig) -> None:
    """Write ``hyper_parameters.yaml``, whole or not at all."""
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=100))


def read_config(paths: Sequence[Path], overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """Read one or more YAML files, later ones over earlier ones, and overrides over all.

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
    values |= check_overrides(overrides or {})
    return make_config(values)


def read_bundle_config(folder: Path) -> TrainConfig:
    """The configuration of the bundle in ``folder``."""
    return read_config([folder / CONFIG_NAME])

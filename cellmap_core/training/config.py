"""The values of one training, in one frozen model; each algorithm adds its own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cellmap_core.models import Frozen
from cellmap_core.provenance import key_of

Positive = Annotated[int, Field(ge=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
_AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
#: ``sigmoid``: each class for itself, overlaps welcome; ``softmax``: one class a voxel at most.
Activation = Literal["sigmoid", "softmax"]


class Normalisation(Frozen):
    """Intensities: clip to the range of the data, then subtract the mean, divide by stdev."""

    clip_low: Finite
    clip_high: Finite
    mean: Finite
    stdev: Annotated[float, Field(gt=0, allow_inf_nan=False)]

    @model_validator(mode="after")
    def _has_a_range(self) -> Normalisation:
        if self.clip_low >= self.clip_high:
            raise ValueError(
                f"clip_low {self.clip_low} and clip_high {self.clip_high}; expected a range"
            )
        return self

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
    """The values that all algorithms share; sizes are z, y, x.

    Attributes
    ----------
    patch_size_vox : tuple of int
        Size of a training patch and of an inference window; divisible by `divisor`.
    batch_size : int
        Patches of a step of the optimizer, over all processes together.
    micro_batch : int
        Patches that go through the network at once; their gradients add up to the batch's.
    num_steps_per_epoch : int
        Optimizer steps in an epoch.
    validate_every : int
        Epochs from one validation to the next; the last epoch is always validated.
    warmup_steps : int
        Steps over which the learning rate rises; then it falls to 0 along a cosine.
    gradient_clip : float
        Largest norm of a step's gradient.
    ema_decay : float
        Of the moving average of the weights, which is what is validated and kept; 0: none.
    early_stop_epochs : int
        End after so many epochs without a better mean Dice; 0: never.
    class_weighting : str
        ``equal``, or ``rare``: by median frequency, so that rare classes count more.
    class_weights : tuple of float
        What each class counts in the loss.
    overlap : float
        Overlap of neighbouring windows in validation and inference, as a part of the window.
    sw_batch_size : int
        Windows that are predicted at once.
    precision : str
        ``auto``: bf16 on GPUs that compute in it, fp16 on older ones, fp32 on a CPU.
    compile : bool
        Whether torch compiles the network: minutes at the start, faster steps afterwards.
    cache : str
        ``mapped``: volumes stay on disk, and what is read in the system's page cache;
        ``memory``: they are read into memory at the start.
    dataroot : Path or None
        Folder to which the datalist's paths are relative, where it is not the datalist's own.
    background_channel : bool
        Whether `InferClass` returns a channel of the background before those of the classes, as
        MONAI's ensemble needs it where it takes the likeliest channel (``sigmoid: false``).
    training_params : dict
        Values that were given when the training began and differ from
        ``hyper_parameters.yaml``. They are never in that file, but in the best model.
    rules : dict
        Field name → why it has its value.
    """

    algo: str
    fold: Annotated[int, Field(ge=0)]
    datalist: Path
    ckpt_path: Path
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    voxel_nm: tuple[_AboveZero, _AboveZero, _AboveZero]
    patch_size_vox: tuple[Positive, Positive, Positive]
    batch_size: Positive
    micro_batch: Positive
    num_epochs: Positive
    num_steps_per_epoch: Positive
    validate_every: Positive
    learning_rate: _AboveZero
    warmup_steps: Annotated[int, Field(ge=0)]
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5
    gradient_clip: _AboveZero = 12.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    early_stop_epochs: Annotated[int, Field(ge=0)]
    activation: Activation
    class_weighting: Literal["equal", "rare"]
    class_weights: tuple[_AboveZero, ...]
    normalisation: Normalisation
    augment: bool = True
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.25
    sw_batch_size: Positive
    precision: Precision = "auto"
    compile: bool = False
    cache: Literal["mapped", "memory"]
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    dataroot: Path | None = None
    background_channel: bool = False
    training_params: dict[str, Any] = {}
    rules: dict[str, Rule] = {}

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        if any(n % self.divisor for n in self.patch_size_vox):
            raise ValueError(
                f"patch_size_vox {self.patch_size_vox} with {self.algo}; expected sizes divisible "
                f"by {self.divisor}"
            )
        if self.divisor > 1 and math.prod(n // self.divisor for n in self.patch_size_vox) < 2:
            raise ValueError(
                f"patch_size_vox {self.patch_size_vox} with {self.algo}: one voxel is left at the "
                f"lowest level; expected an edge of {2 * self.divisor} at least"
            )
        if self.batch_size % self.micro_batch:
            raise ValueError(
                f"micro_batch {self.micro_batch}; expected a divisor of batch_size "
                f"{self.batch_size}"
            )
        if len(self.class_weights) != len(self.classes):
            raise ValueError(
                f"{len(self.class_weights)} class_weights; expected one for each of "
                f"{len(self.classes)} classes"
            )
        return self

    @property
    def divisor(self) -> int:
        """What the network's down-sampling wants patch sizes to be divisible by."""
        return 1

    @property
    def output_levels(self) -> int:
        """Outputs of the network while it trains, each half the size of the one before."""
        return 1

    @property
    def channels(self) -> int:
        """Channels of an output: the classes, and with softmax the background before them."""
        return len(self.classes) + (self.activation == "softmax")

    @property
    def network_key(self) -> str:
        """The same for configurations whose networks are alike."""
        own = set(type(self).model_fields) - set(TrainConfig.model_fields)
        values = self.model_dump(mode="json", include=own | {"algo", "activation"})
        return key_of(values, len(self.classes))

    @property
    def digest(self) -> str:
        """Digest of all values that change the model; places and ways to compute do not."""
        return key_of(self.model_dump(mode="json", exclude=_WITHOUT_EFFECT))


_WITHOUT_EFFECT = {
    "datalist",
    "dataroot",
    "ckpt_path",
    "background_channel",
    "training_params",
    "rules",
    "micro_batch",
    "sw_batch_size",
    "compile",
    "use_checkpoint",
    "cache",
    "architecture",
}

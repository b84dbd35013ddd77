"""The options of every mode: the request's names, one frozen model a stage.

Flow parameters, command-line flags and the YAML config file are all made from these
models; an option is added here and nowhere else. No module imported here is slow.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from cellmap_core.models import Frozen
from cellmap_core.paths import Location, Place

Mode = Literal["full", "convert", "analyze", "generate", "train", "ensemble", "plan"]


def _native_or_triple(value: Any) -> Any:
    """Take ``native`` or one or three numbers, as a shell, a YAML file or Prefect gives them."""
    if isinstance(value, str):
        value = value.replace(",", " ").split()
    if isinstance(value, int | float):
        value = [value]
    if isinstance(value, list | tuple) and len(value) == 1:
        value = "native" if value[0] == "native" else [value[0]] * 3
    if value != "native" and not (isinstance(value, list | tuple) and len(value) == 3):
        raise ValueError("give native, one size in nm, or three (z y x)")
    return value


def _level_name(value: str) -> str:
    if value != "auto" and not re.fullmatch(r"s\d+", value):
        raise ValueError("give s0, s1, … or auto")
    return value


_Nm = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Spacing = Annotated[
    Literal["native"] | tuple[_Nm, _Nm, _Nm],
    BeforeValidator(_native_or_triple, json_schema_input_type=str | float | list[float]),
]


class _FoldOptions(Frozen):
    num_fold: int = Field(5, ge=2, description="number of cross-validation folds")
    fold_by: Literal["auto", "dataset", "crop"] = Field(
        "auto",
        description="what stays together in a fold; auto: the dataset where there are at least as "
        "many datasets as folds, unless few datasets leave many classes in one fold alone",
    )


class _OutputOptions(Frozen):
    output_dir: Place = Field(
        Path("auto3dseg/nifti_data"), description="where images, labels and datalist.json go"
    )


class ConvertOptions(_FoldOptions, _OutputOptions):
    """Options of ``convert``: from a datasplit of OME-Zarr crops to NIfTI and a datalist."""

    datasplit: Place | None = Field(
        None,
        description="crops: a CSV of split, raw, labels[classes], a crop manifest CSV, a data "
        "folder in CellMap layout, or a glob of crop folders",
    )
    data_root: Location | None = Field(
        None,
        description="where the relative paths of a CSV start: a folder, s3://bucket[/prefix] or "
        "http(s)://… (default: the CSV's folder)",
    )
    scale: Annotated[str, AfterValidator(_level_name)] = Field(
        "s0",
        description="scale level of the EM to read (s0 is the finest), or auto: the coarsest level "
        "not coarser than the target spacing; labels are always read at their finest",
    )
    target_spacing: Spacing = Field(
        (8.0, 8.0, 8.0),
        description="voxel size of the output in nm, z y x; or native: that of the labels",
    )
    max_crops: int = Field(0, ge=0, description="convert only the first N crops (0 = all)")
    classes: list[str] | None = Field(
        None,
        description="classes to convert, in the order of their ids, or a set of them "
        "(challenge48, atoms; default: those the datasplit lists, else those the crops store)",
    )
    empty_class: Literal["absent", "unannotated"] = Field(
        "absent", description="what a listed class without any stored label means in a crop"
    )
    min_coverage: float = Field(
        0.5, ge=0, le=1, description="exclude a crop with less of its EM downloaded than this"
    )
    compression: Literal["gzip", "none"] = Field(
        "gzip", description="gzip writes .nii.gz; none writes .nii, which trains from disk"
    )
    test_manifest: Place | None = Field(
        None, description="CSV of unlabelled crops to predict (the challenge's test_crop_manifest)"
    )
    on_bad_crop: Literal["fail", "exclude"] = Field(
        "fail", description="whether a run with crops that cannot be converted ends as failed"
    )


class _WorkOptions(Frozen):
    work_dir: Place = Field(
        Path("auto3dseg/work_dir"), description="where reports, bundles and predictions go"
    )
    datalist: Place | None = Field(
        None, description="datalist.json (default: the one in the output or the work folder)"
    )


class AnalyzeOptions(_WorkOptions, ConvertOptions):
    """Options of ``analyze``: statistics of all cases, of a datalist or straight of a datasplit."""

    do_ccp: bool = Field(False, description="count connected components of each label too")


class _AlgoOptions(_WorkOptions):
    algos: list[str] = Field(
        ["segresnet"],
        min_length=1,
        description="algorithms to run: segresnet, swinunetr, dints, or those of --templates",
    )
    num_fold: int = Field(5, ge=2, description="number of cross-validation folds")


class GenerateOptions(_AlgoOptions, _FoldOptions, _OutputOptions):
    """Options of ``generate``: one bundle for each algorithm and fold."""

    num_epochs: int = Field(100, ge=1, description="epochs of each training")
    templates: Place | None = Field(
        None, description="another Auto3DSeg template folder (default: the project's own)"
    )
    overrides: dict[str, Any] = Field(
        {},
        description="values of hyper_parameters.yaml to set, as name=value, or algo.name=value for "
        "one algorithm alone",
    )
    gpu_memory_gb: float | None = Field(
        None,
        gt=0,
        description="memory of the GPUs to train on, which batch and patch sizes follow (default: "
        "what this machine has)",
    )


class TrainOptions(_AlgoOptions):
    """Options of ``train``: the bundles that ``generate`` made."""

    folds: list[int] | None = Field(None, description="train only these folds (default: all)")
    gpus_per_training: int = Field(
        1, ge=1, description="GPUs that share each training's batches (by torchrun)"
    )


class EnsembleOptions(_AlgoOptions):
    """Options of ``ensemble``: predict the testing cases with the trained models."""

    folds: list[int] | None = Field(None, description="use only these folds' models")


class PlanOptions(AnalyzeOptions, GenerateOptions, TrainOptions):
    """Options of ``plan``: those of ``full``, of which it says what the run would submit."""


class FullOptions(PlanOptions):
    """Options of ``full``: everything, from the datasplit or from a datalist."""

    mode: Mode = Field("full", description="which part of the pipeline to run")


#: The options of each mode that a user can ask for.
MODELS: dict[str, type[Frozen]] = {
    "full": FullOptions,
    "convert": ConvertOptions,
    "analyze": AnalyzeOptions,
    "generate": GenerateOptions,
    "train": TrainOptions,
    "ensemble": EnsembleOptions,
    "plan": PlanOptions,
}

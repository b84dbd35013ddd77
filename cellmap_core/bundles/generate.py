"""Auto3DSeg bundles, one for each algorithm and fold; made only where they are stale."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from cellmap_core.bundles.names import OWN_TEMPLATES, check_choice, is_ours
from cellmap_core.datalist import Datalist, read_datalist
from cellmap_core.errors import BundleError, DatalistError, StatisticsError
from cellmap_core.folds import crops_lacking
from cellmap_core.models import BundleRef, GenerateResult
from cellmap_core.options import GenerateOptions
from cellmap_core.provenance import (
    Receipt,
    file_digest,
    key_of,
    read_receipt,
    write_receipt,
    write_text,
)
from cellmap_core.training.config_files import MODEL_FOLDER
from cellmap_core.training.facts import Memory, memory_there
from cellmap_core.training.result import GENERATED_NAME
from cellmap_core.training.rules import derive

logger = logging.getLogger(__name__)

_SOURCE_NAME = "data_src_cfg.yaml"


def generate(
    datalist: Path,
    datastats: Path,
    work_dir: Path,
    options: GenerateOptions,
    folds: Sequence[int] | None = None,
) -> GenerateResult:
    """Make the bundles that are missing or stale; leave the current ones untouched.

    A stale bundle is made anew and loses its checkpoints: they are of another configuration.

    Parameters
    ----------
    datalist, datastats : Path
        The cases with their folds, and Auto3DSeg's report on them.
    work_dir : Path
        Bundles go to ``<algo>_<fold>`` in it, templates to ``algorithm_templates``.
    options : GenerateOptions
        Algorithms, folds, epochs, overrides, templates.
    folds : sequence of int, optional
        Make only these folds (default: all of ``num_fold``).

    Returns
    -------
    GenerateResult
        All bundles asked for, made or current.

    Raises
    ------
    OptionError
        An algorithm, an override or its value is not valid.
    DatalistError
        There are more folds than cases, or a fold has nothing to validate or to train on.
    """
    overrides = check_choice(options)
    if not datastats.is_file():
        raise StatisticsError(f"no {datastats}", "Auto3DSeg's report", "run the analysis first")
    wanted = tuple(folds) if folds is not None else tuple(range(options.num_fold))
    cases = read_datalist(datalist)
    _check_folds(datalist, cases, options.num_fold, wanted)
    work_dir = work_dir.resolve()
    bundles = [
        BundleRef(algo=algo, fold=fold, folder=work_dir / f"{algo}_{fold}")
        for algo in options.algos
        for fold in wanted
    ]
    # Cases to predict do not make a model: a new one must not cost days of training.
    document = cases.model_copy(update={"testing": (), "notes": ()}).to_json()
    inputs = [document, file_digest(datastats)]

    @functools.cache
    def here() -> Memory:
        return memory_there(options.gpu_memory_gb)

    def memory_of(bundle: BundleRef) -> Memory:
        """What a bundle was made for: a look from a login node must not make it stale."""
        before = made_for(bundle) if options.gpu_memory_gb is None else None
        return before or here()

    templates = options.templates or OWN_TEMPLATES
    extra = {"num_epochs": options.num_epochs, "overrides": overrides}

    def key(bundle: BundleRef) -> str:
        """Of the values that come out: neither more memory nor another's override matter."""
        if not is_ours(templates / bundle.algo):
            return _key(bundle, [*inputs, options.num_epochs, overrides], templates)
        config = derive(
            datastats, cases, _identity(bundle, datalist, options), overrides, memory_of(bundle)
        )
        return _key(bundle, [*inputs, config.digest], templates)

    keys = {bundle.name: key(bundle) for bundle in bundles}
    stale = [b for b in bundles if not _is_current(b, keys[b.name])]
    _write_source(work_dir, datalist)
    if stale:
        _export(stale, keys, work_dir, datastats, templates, extra, memory_of)
    return GenerateResult(
        done=len(stale), current=len(bundles) - len(stale), bundles=tuple(bundles)
    )


def _identity(bundle: BundleRef, datalist: Path, options: GenerateOptions) -> dict[str, Any]:
    """What a bundle's configuration is about, before any rule."""
    return {
        "algo": bundle.algo,
        "fold": bundle.fold,
        "datalist": datalist,
        "ckpt_path": bundle.folder / MODEL_FOLDER,
        "num_epochs": options.num_epochs,
    }


def _check_folds(path: Path, datalist: Datalist, num_fold: int, wanted: Sequence[int]) -> None:
    if lacking := crops_lacking(path, len(datalist.training), num_fold):
        raise DatalistError(*lacking)
    for fold in wanted:
        training, validation = datalist.split(fold)
        if not training or not validation:
            raise DatalistError(
                f"{path}: fold {fold} has {len(training)} training and {len(validation)} "
                "validation cases",
                f"at least one of each in every fold; the list has folds {list(datalist.folds())}",
                "generate again with another num_fold or fold_by, or ask for the folds it has",
            )


def _key(bundle: BundleRef, inputs: list[Any], templates: Path) -> str:
    folder = templates / bundle.algo
    files = sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    content = [[p.relative_to(folder).as_posix(), file_digest(p)] for p in files]
    return key_of("bundle", bundle.algo, bundle.fold, inputs, content)


def _is_current(bundle: BundleRef, key: str) -> bool:
    if read_receipt(bundle.folder / GENERATED_NAME, key) is not None:
        return True
    if bundle.folder.exists():
        logger.warning("%s is stale: it is made anew, without its old model", bundle.name)
    return False


def made_for(bundle: BundleRef) -> Memory | None:
    """The memory that a bundle's values were derived for, where it was generated before."""
    try:
        receipt = Receipt.model_validate_json((bundle.folder / GENERATED_NAME).read_bytes())
        return Memory.model_validate(receipt.result["memory"])
    except (OSError, ValueError, KeyError):
        return None


def _write_source(work_dir: Path, datalist: Path) -> None:
    """Write the description of the data that MONAI's runners read, where it changed."""
    source = {
        "name": "cellmap",
        "task": "segmentation",
        # Auto3DSeg knows CT and MRI; MRI means intensities without an absolute scale, as in EM.
        "modality": "MRI",
        "datalist": str(datalist.resolve()),
        "dataroot": str(datalist.resolve().parent),
        "sigmoid": True,
    }
    path, text = work_dir / _SOURCE_NAME, yaml.safe_dump(source, sort_keys=False)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def _export(
    bundles: Sequence[BundleRef],
    keys: dict[str, str],
    work_dir: Path,
    datastats: Path,
    templates: Path,
    extra: dict[str, Any],
    memory_of: Callable[[BundleRef], Memory],
) -> None:
    """What BundleGen.generate does, but for these bundles only: it deletes what it finds."""
    from monai.apps.auto3dseg.bundle_gen import BundleGen
    from monai.auto3dseg.utils import algo_to_json

    with _own_imports({b.algo for b in bundles}):
        maker = BundleGen(
            algo_path=str(work_dir),
            algos=sorted({b.algo for b in bundles}),
            templates_path_or_url=str(templates),
            data_stats_filename=str(datastats.resolve()),
            data_src_cfg_name=str(work_dir / _SOURCE_NAME),
        )
        by_name = {algo.name: algo for algo in maker.algos}
        for bundle in bundles:
            algo = deepcopy(by_name[bundle.algo])
            algo.set_data_stats(maker.get_data_stats())
            algo.set_data_source(maker.get_data_src())
            memory = memory_of(bundle)
            algo.export_to_disk(
                str(work_dir), bundle.name, fold=bundle.fold, memory=memory, **extra
            )
            algo_to_json(algo, template_path=algo.template_path)
            _seal(bundle, keys[bundle.name], extra, memory)


def _seal(bundle: BundleRef, key: str, extra: dict[str, Any], memory: Memory) -> None:
    """Write the receipt. MONAI's runners rewrite algo_object.json, so it is not in it."""
    configs = sorted(p for p in (bundle.folder / "configs").glob("*") if p.is_file())
    if not configs:
        raise BundleError(f"{bundle.folder} has no configs", "a template that writes them")
    # Others' templates take these when they train, ours have them in their configuration.
    asked = {
        "train_parameters": {"num_epochs": extra["num_epochs"], **extra["overrides"]},
        "memory": memory.model_dump(),
    }
    scripts = sorted((bundle.folder / "scripts").glob("*.py"))
    write_receipt(bundle.folder / GENERATED_NAME, key, [*configs, *scripts], asked)


@contextmanager
def _own_imports(algos: set[str]) -> Iterator[None]:
    """Let BundleGen import template modules, and forget them: another folder has its own."""
    path = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = path
        for name in list(sys.modules):
            if name.split(".")[0] in algos:
                del sys.modules[name]

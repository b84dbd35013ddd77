"""One measured process of the training's benchmark."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from cellmap_core.bundles.generate import generate
from cellmap_core.datalist import read_datalist
from cellmap_core.datastats.analyze import analyze
from cellmap_core.machine import keep_memory
from cellmap_core.models import BundleRef
from cellmap_core.options import GenerateOptions
from cellmap_core.training import learner as learner_module
from cellmap_core.training.config import TrainConfig
from cellmap_core.training.config_files import read_bundle_config
from cellmap_core.training.data import open_fold
from cellmap_core.training.metrics import mean_dice
from cellmap_core.training.patches import images_of, targets_of
from cellmap_core.training.run import make_trainer, train
from cellmap_core.training.team import alone
from cellmap_core.training.validation import validate
from tests.bench.worker import peak_bytes

PATCH = (96, 96, 96)
SMALL = {"init_filters": 8, "blocks_down": [1, 1, 1], "batch_size": 2}
#: Patches of real EM, small enough for its crops at 16 nm.
REAL = {**SMALL, "patch_size_vox": [32, 32, 32], "batch_size": 4, "learning_rate": 2e-3}


def main() -> None:
    """Run what the command line says: ``who folder …``."""
    who, folder, *more = sys.argv[1:]
    torch.set_num_threads(len(__import__("os").sched_getaffinity(0)))
    numbers = [float(m) for m in more]
    if not who.startswith("monai"):
        # As the process of a training does.
        keep_memory()
    answer = {
        "monai": peer_patches, "monai-cached": cached_patches, "cut": cut_patches,
        "ours": our_patches, "augmented": augmented_patches, "train": train_steps,
        "timed": timed_steps, "real-ours": real_ours, "real-monai": real_monai,
    }[who](Path(folder), *numbers)  # fmt: skip
    print(json.dumps(answer))


def bundle_of(folder: Path, fold: int = 0, **overrides: Any) -> BundleRef:
    """A bundle of the datalist in a folder; its own work folder is made anew."""
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    analyze(folder / "datalist.json", work)
    options = GenerateOptions(
        num_fold=2, num_epochs=int(overrides.pop("num_epochs", 1)), overrides=overrides
    )
    return generate(
        folder / "datalist.json", work / "datastats.yaml", work, options, [fold]
    ).bundles[0]


def rate(
    batches: Callable[[], Iterator[Any]], count: float, batch_size: int = 1
) -> dict[str, float]:
    """Patches a second after the first, its start, and memory over what is imported."""
    imported, begun = peak_bytes(), time.perf_counter()
    found = batches()
    next(found)
    started = time.perf_counter()
    steps = int(count) // batch_size
    for _ in range(steps):
        next(found)
    return {
        "rate": steps * batch_size / (time.perf_counter() - started),
        "start_s": started - begun,
        "over_import_mb": (peak_bytes() - imported) / 1e6,
    }


def rows_of(folder: Path) -> list[dict[str, str]]:
    """The cases as MONAI wants them."""
    listed = json.loads((folder / "datalist.json").read_text())["training"]
    return [{k: str(folder / row[k]) for k in ("image", "label")} for row in listed]


def forever(loader: Any) -> Iterator[Any]:
    """Epoch after epoch."""
    while True:
        yield from loader


def peer_patches(folder: Path, count: float) -> dict[str, float]:
    """MONAI's transforms as its tutorials chain them."""
    from monai.data.dataset import Dataset
    from monai.data.utils import list_data_collate
    from monai.transforms import (
        AsDiscreted,
        Compose,
        EnsureChannelFirstd,
        LoadImaged,
        RandCropByLabelClassesd,
    )
    from torch.utils.data import DataLoader

    chain = Compose(
        [
            LoadImaged(["image", "label"]),
            EnsureChannelFirstd(["image", "label"]),
            RandCropByLabelClassesd(
                ["image", "label"], label_key="label", spatial_size=PATCH, num_classes=15
            ),
            AsDiscreted("label", to_onehot=15),
        ]
    )
    rows = rows_of(folder)
    return rate(
        lambda: forever(
            DataLoader(
                Dataset(rows, chain), batch_size=1, shuffle=True, collate_fn=list_data_collate
            )
        ),
        count,
    )


def cached_patches(folder: Path, count: float) -> dict[str, float]:
    """The same with everything before the crop kept in memory."""
    from monai.data.dataset import CacheDataset
    from monai.data.utils import list_data_collate
    from monai.transforms import (
        AsDiscreted,
        ClassesToIndicesd,
        Compose,
        EnsureChannelFirstd,
        LoadImaged,
        RandCropByLabelClassesd,
    )
    from torch.utils.data import DataLoader

    chain = Compose(
        [
            LoadImaged(["image", "label"]),
            EnsureChannelFirstd(["image", "label"]),
            ClassesToIndicesd("label", num_classes=15, max_samples_per_class=3000),
            RandCropByLabelClassesd(
                ["image", "label"],
                label_key="label",
                spatial_size=PATCH,
                num_classes=15,
                indices_key="label_cls_indices",
            ),
            AsDiscreted("label", to_onehot=15),
        ]
    )
    rows = rows_of(folder)

    def batches() -> Iterator[Any]:
        data = CacheDataset(rows, chain, progress=False, num_workers=1)
        return forever(DataLoader(data, batch_size=1, shuffle=True, collate_fn=list_data_collate))

    return rate(batches, count)


def _config(folder: Path, **overrides: Any) -> tuple[TrainConfig, Path]:
    bundle = bundle_of(
        folder, patch_size_vox=list(PATCH), **{**SMALL, "batch_size": 1, **overrides}
    )
    return read_bundle_config(bundle.folder), bundle.folder.parent / ".cache"


def _ours(folder: Path, count: float, expanded: bool, augment: bool) -> dict[str, float]:
    config, cache = _config(folder, augment=augment)
    shutil.rmtree(cache, ignore_errors=True)

    def batches() -> Iterator[Any]:
        data = open_fold(config, cache)
        states = torch.from_numpy(data.look_up)
        for step in range(int(count) + 2):
            batch = data.sampler.batch(step)
            if expanded:
                image = images_of(batch, slice(None), config.normalisation, states.device)
                yield image, *targets_of(batch, states)
            else:
                yield batch

    return rate(batches, count)


def cut_patches(folder: Path, count: float) -> dict[str, float]:
    """What is left to the host where a GPU does the rest."""
    return _ours(folder, count, expanded=False, augment=False)


def our_patches(folder: Path, count: float) -> dict[str, float]:
    """Image, target and mask of all classes."""
    return _ours(folder, count, expanded=True, augment=False)


def augmented_patches(folder: Path, count: float) -> dict[str, float]:
    """The same with all augmentation."""
    return _ours(folder, count, expanded=True, augment=True)


def train_steps(folder: Path, steps: float) -> dict[str, float]:
    """A short training, from cold."""
    bundle = bundle_of(folder, patch_size_vox=list(PATCH), num_steps_per_epoch=int(steps), **SMALL)
    config = read_bundle_config(bundle.folder)
    imported, begun = peak_bytes(), time.perf_counter()
    train(config, bundle.folder)
    seconds = time.perf_counter() - begun
    return {"over_import_mb": (peak_bytes() - imported) / 1e6, "seconds": seconds}


def timed_steps(folder: Path, steps: float) -> dict[str, Any]:
    """Where the time of an epoch goes, validation left out."""
    bundle = bundle_of(
        folder, patch_size_vox=list(PATCH), num_steps_per_epoch=int(steps), num_epochs=2, **SMALL
    )
    config = read_bundle_config(bundle.folder)
    trainer = make_trainer(config, bundle.folder, lambda: False, alone())
    spent = {"images": 0.0, "targets": 0.0, "average": 0.0}

    def watched(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                spent[part] += time.perf_counter() - begun

        return call

    learner_module.images_of = watched(learner_module.images_of, "images")
    learner_module.targets_of = watched(learner_module.targets_of, "targets")
    average = trainer.learner.average
    average.update_parameters = watched(average.update_parameters, "average")
    begun = time.perf_counter()
    trainer.run()
    whole = time.perf_counter() - begun
    said = {
        part: sum(r["timing"][part] for r in trainer.records)
        for part in ("data", "step", "save", "validation")
    }
    epochs = whole - said["validation"]
    parts = {
        "waiting for data": said["data"],
        "normalising and augmenting": spent["images"],
        "expanding to classes": spent["targets"],
        "moving average": spent["average"],
        "checkpoints, reports, the rest": epochs - said["data"] - said["step"],
    }
    parts["all overhead"] = sum(parts.values())
    parts["forward, loss, backward, optimizer"] = epochs - parts["all overhead"]
    return {"epochs": epochs, "parts": parts}


def real_ours(folder: Path, steps: float, fold: float, seed: float) -> dict[str, float]:
    """Ours, for so many steps in five epochs; only the last is validated."""
    bundle = bundle_of(
        folder, int(fold), num_epochs=5, num_steps_per_epoch=int(steps) // 5, validate_every=5,
        seed=int(seed), **REAL,
    )  # fmt: skip
    config = read_bundle_config(bundle.folder)
    trainer = make_trainer(config, bundle.folder, lambda: False, alone())
    begun = time.process_time()
    trainer.run()
    validation = sum(r["timing"]["validation"] for r in trainer.records)
    return {
        "cpu_s": time.process_time() - begun - validation,
        "mean_dice": trainer.best["mean_dice"],
    }


def real_monai(folder: Path, cpu_s: float, fold: float, seed: float) -> dict[str, float]:
    """The loop of MONAI's tutorials with the same network, for as much CPU time.

    Overlapping and unknown voxels are what the label table makes of them in one-hot form, as
    MONAI knows no unknown; the score is ours, of known voxels.
    """
    from monai.data.dataset import CacheDataset
    from monai.data.utils import list_data_collate
    from monai.losses import DeepSupervisionLoss, DiceCELoss
    from monai.networks.nets.segresnet_ds import SegResNetDS
    from monai.transforms import (
        Compose,
        EnsureChannelFirstd,
        LoadImaged,
        NormalizeIntensityd,
        RandCropByLabelClassesd,
        RandFlipd,
        RandGaussianNoised,
        RandScaleIntensityd,
        RandShiftIntensityd,
        SpatialPadd,
    )
    from torch.utils.data import DataLoader

    bundle = bundle_of(folder, int(fold), seed=int(seed), **REAL)
    config = read_bundle_config(bundle.folder)
    data = open_fold(config, bundle.folder.parent / ".cache")
    listed = read_datalist(folder / "datalist.json")
    training, _ = listed.split(int(fold))
    rows = [
        {"image": str(listed.path(e.image)), "label": str(listed.path(e.label))} for e in training
    ]
    both, patch = ["image", "label"], config.patch_size_vox
    scale = config.normalisation
    ids = len(listed.table.states())
    chain = Compose(
        [
            LoadImaged(both),
            EnsureChannelFirstd(both),
            NormalizeIntensityd("image", subtrahend=scale.mean, divisor=scale.stdev),
            SpatialPadd(both, patch),
            RandCropByLabelClassesd(
                both, label_key="label", spatial_size=patch, num_classes=ids, num_samples=4
            ),
            *(RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(3)),
            RandScaleIntensityd("image", factors=0.1, prob=0.5),
            RandShiftIntensityd("image", offsets=0.1, prob=0.5),
            RandGaussianNoised("image", prob=0.2, std=0.1),
        ]
    )
    torch.manual_seed(int(seed))
    network = SegResNetDS(
        init_filters=8, blocks_down=(1, 1, 1), in_channels=1, out_channels=len(config.classes),
        dsdepth=2, norm="instance",
    )  # fmt: skip
    loss_of = DeepSupervisionLoss(DiceCELoss(sigmoid=True))
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=1e-5)
    present = torch.from_numpy(listed.table.states() == 1)
    cached = CacheDataset(rows, chain, progress=False, num_workers=1)
    batches = forever(DataLoader(cached, batch_size=1, shuffle=True, collate_fn=list_data_collate))
    begun, steps = time.process_time(), 0
    while (done := (time.process_time() - begun) / cpu_s) < 1:
        batch = next(batches)
        label = batch["label"].as_tensor()[:, 0].long()
        target = present[label].movedim(-1, 1).float()
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * 0.5 * (1 + torch.cos(torch.tensor(done * 3.14159)))
        loss = loss_of(network(batch["image"].as_tensor().float()), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    spent = time.process_time() - begun
    counts = validate(network, data.validation, data.states, config, alone(), lambda: None)
    score = mean_dice(counts.dice(), data.learnable)
    return {"cpu_s": spent, "steps": steps, "mean_dice": score}


if __name__ == "__main__":
    main()

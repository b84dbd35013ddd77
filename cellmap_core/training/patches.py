"""Training patches: drawn by class, cropped from the disk, expanded after cropping.

A batch holds voxels as they are on disk and label ids; normalised images, targets and masks
of all classes are made of it by `images_of` and `targets_of`, where the network is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cellmap_core.errors import TrainingError
from cellmap_core.label_table import PRESENT, UNKNOWN, LabelTable
from cellmap_core.training.augment import (
    Change,
    alter,
    draw_change,
    draw_orientation,
    planes,
    section_axes,
)
from cellmap_core.training.config import Normalisation, TrainConfig
from cellmap_core.training.presence import Presence, presence_of
from cellmap_core.training.volumes import Case

if TYPE_CHECKING:
    import torch

#: Draws of the network's weights; the search for an architecture has draws of its own.
TRAINING_STREAM, SEARCH_STREAM = 0, 1


@dataclass(frozen=True)
class Batch:
    """Patches of one step.

    Attributes
    ----------
    image : ndarray of uint8 or float32
        Shape (B, z, y, x), as on disk; the training's mean where a patch reaches beyond its case.
    label : ndarray of uint8 or int32
        Shape (B, z, y, x), label ids; beyond the case the id after the last, unknown to all.
    annotated : ndarray of bool
        Shape (B, C).
    changes : tuple of Change or None
        What is to happen to each patch's intensities.
    places : tuple of str
        Case and first voxel of each, for messages.
    """

    image: NDArray[Any]
    label: NDArray[Any]
    annotated: NDArray[np.bool_]
    changes: tuple[Change | None, ...]
    places: tuple[str, ...]


def look_up(table: LabelTable) -> NDArray[np.uint8]:
    """States by label id, with one more row, all unknown, for padding: (ids + 1, C)."""
    padding = np.full((1, len(table.classes)), UNKNOWN, dtype=np.uint8)
    return np.concatenate([table.states(), padding])


def expand(
    label: torch.Tensor, annotated: torch.Tensor, states: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Target and mask of all classes by one look-up.

    Parameters
    ----------
    label : Tensor
        Shape (B, z, y, x), label ids.
    annotated : Tensor of bool
        Shape (B, C).
    states : Tensor of uint8
        Shape (ids + 1, C), see `look_up`.

    Returns
    -------
    target, mask : Tensor of bool
        Shape (B, C, z, y, x): present, where it is known; and known, which is annotated and not
        unknown.
    """
    import torch

    size = (*label.shape, states.shape[1])
    target = torch.empty(size, dtype=torch.bool, device=label.device)
    mask = torch.empty_like(target)
    present, known = states == PRESENT, states != UNKNOWN
    for b, ids in enumerate(label):
        # Whole rows are copied, some thirty times faster than indexing by a volume.
        flat = ids.flatten().int()
        torch.index_select(present & annotated[b], 0, flat, out=target[b].view(-1, size[-1]))
        torch.index_select(known & annotated[b], 0, flat, out=mask[b].view(-1, size[-1]))
    return target.movedim(-1, 1), mask.movedim(-1, 1)


def targets_of(batch: Batch, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Target and mask of a batch, on the device where ``states`` is; see `expand`."""
    import torch

    annotated = torch.from_numpy(batch.annotated).to(states.device)
    return expand(_moved(batch.label, states.device), annotated, states)


def counts_of(batch: Batch, states: torch.Tensor, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Known and present voxels (depth, B, C) of a batch at every output level.

    They are counted by label id, which takes a fraction of the time of counting masks.

    Parameters
    ----------
    batch : Batch
        The patches.
    states : Tensor of uint8
        Shape (ids + 1, C), see `look_up`.
    depth : int
        Output levels; level i has every 2ⁱ-th voxel.
    """
    import torch

    rows = [
        np.bincount(ids[(slice(None, None, 2**level),) * 3].ravel(), minlength=len(states))
        for level in range(depth)
        for ids in batch.label
    ]
    ids = torch.from_numpy(np.stack(rows)).view(depth, len(batch.label), -1).to(states.device)
    annotated = torch.from_numpy(batch.annotated).to(states.device)
    # Counts are exact in float64, which every device multiplies.
    known = (ids.double() @ (states != UNKNOWN).double()).long() * annotated
    present = (ids.double() @ (states == PRESENT).double()).long() * annotated
    return known, present


def images_of(
    batch: Batch, rows: slice, normalisation: Normalisation, device: torch.device
) -> torch.Tensor:
    """Normalised and augmented images (B, 1, z, y, x), float32, of some patches of a batch.

    Parameters
    ----------
    batch : Batch
        The patches.
    rows : slice
        Which of them.
    normalisation : Normalisation
        Of the intensities.
    device : device
        Where they are to be, and where they are changed.
    """
    image = _moved(batch.image[rows], device).float()
    scale = normalisation
    image.clamp_(scale.clip_low, scale.clip_high).sub_(scale.mean).div_(scale.stdev)
    black = (scale.clip_low - scale.mean) / scale.stdev
    for patch, change in zip(image, batch.changes[rows], strict=True):
        if change is not None:
            alter(patch, change, black)
    return image[:, None]


def _moved(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    import torch

    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.clone()


class PatchSampler:
    """Draws patches from cases; a patch depends on seed, step and its number in it alone.

    A patch is drawn for a class: each class that can be learnt is as likely as any other, and
    "anywhere at all" as likely as a class. Then a case where the class is present, each as
    likely; then a voxel of the class in it, each as likely; the patch lies around it anyhow.

    Parameters
    ----------
    cases : sequence of Case
        The training cases.
    table : LabelTable
        Classes and ids.
    config : TrainConfig
        Patch and batch size, voxel size, normalisation, seed.

    Raises
    ------
    TrainingError
        No class is both annotated and present in any case.
    """

    def __init__(self, cases: Sequence[Case], table: LabelTable, config: TrainConfig) -> None:
        self._cases = cases
        self._config = config
        self._states = table.states()
        self._padding = len(self._states)
        self._planes = planes(config.patch_size_vox, config.voxel_nm)
        self._sections = section_axes(config.voxel_nm)
        self._presence: list[Presence] = [presence_of(case, self._padding) for case in cases]
        # Padding is of the mean, which is beyond 8 bits where other cases have 16.
        bytes_only = 0 <= config.normalisation.mean <= 255 and all(
            case.image.dtype == np.uint8 for case in cases
        )
        self._image_dtype = np.dtype(np.uint8 if bytes_only else np.float32)
        self._label_dtype = np.dtype(np.uint8 if self._padding < 256 else np.int32)
        # (cases, classes): voxels a class can be learnt from.
        self._voxels = np.array(
            [
                p.classes(self._states) * c.annotated
                for p, c in zip(self._presence, cases, strict=True)
            ]
        ).reshape(len(cases), len(table.classes))
        self._learnable = np.flatnonzero(self._voxels.sum(axis=0))
        if not len(self._learnable):
            raise TrainingError(
                f"fold {config.fold}: no class is annotated and present in its training cases",
                f"at least one voxel of {', '.join(table.classes)}",
                "check the conversion and the folds",
            )

    @property
    def learnable(self) -> tuple[int, ...]:
        """Numbers of the classes that are annotated and present somewhere in the cases."""
        return tuple(int(c) for c in self._learnable)

    def batch(
        self, step: int, numbers: Sequence[int] | None = None, stream: int = TRAINING_STREAM
    ) -> Batch:
        """The patches of a step, the same whenever and wherever they are drawn.

        Parameters
        ----------
        step : int
            From the start of the training.
        numbers : sequence of int, optional
            Which of the batch's patches (default: all).
        stream : int
            Another one has other patches.
        """
        wanted = range(self._config.batch_size) if numbers is None else numbers
        shape = (len(wanted), *self._config.patch_size_vox)
        image = np.empty(shape, dtype=self._image_dtype)
        label = np.empty(shape, dtype=self._label_dtype)
        annotated = np.zeros((len(wanted), self._states.shape[1]), dtype=bool)
        changes, places = [], []
        for i, number in enumerate(wanted):
            rng = np.random.default_rng([self._config.seed, stream, step, number])
            chosen, voxel = self._draw(rng)
            case = self._cases[chosen]
            annotated[i] = case.annotated
            places.append(self._cut(rng, case, voxel, image[i], label[i]))
            changes.append(self._change(rng))
            case.let_go()
        return Batch(image, label, annotated, tuple(changes), tuple(places))

    def _change(self, rng: np.random.Generator) -> Change | None:
        if not self._config.augment:
            return None
        return draw_change(rng, self._config.patch_size_vox, self._sections)

    def _draw(self, rng: np.random.Generator) -> tuple[int, tuple[int, ...]]:
        """A case and a voxel: of a class drawn fairly, or (as if of one more class) anywhere."""
        chosen = int(rng.integers(len(self._learnable) + 1))
        if chosen == len(self._learnable):
            number = int(rng.integers(len(self._cases)))
            return number, tuple(int(rng.integers(n)) for n in self._cases[number].image.shape)
        klass = int(self._learnable[chosen])
        number = int(rng.choice(np.flatnonzero(self._voxels[:, klass])))
        return number, self._presence[number].draw(rng, klass, self._states)

    def _cut(
        self,
        rng: np.random.Generator,
        case: Case,
        voxel: tuple[int, ...],
        image: NDArray[Any],
        label: NDArray[Any],
    ) -> str:
        """Fill one patch in which the voxel lies anywhere, within the case where it can."""
        source, target = [], []
        for at, size, extent in zip(voxel, image.shape, case.image.shape, strict=True):
            start = at - int(rng.integers(size))
            start = min(max(start, 0), max(extent - size, 0))
            room = max(size - extent, 0) // 2
            source.append(slice(start, min(start + size, extent)))
            target.append(slice(room, room + min(size, extent)))
        where, inside = tuple(source), tuple(target)
        if any(n < size for n, size in zip(case.image.shape, image.shape, strict=True)):
            image[:], label[:] = self._config.normalisation.mean, self._padding
        turned_image, turned_label = image, label
        if self._config.augment:
            # Written through turned views of the patch: the voxels are copied only once.
            turn = draw_orientation(rng, self._planes)
            turned_image, turned_label = turn.apply(image), turn.apply(label)
        assert case.label is not None
        turned_image[inside] = case.image[where]
        turned_label[inside] = case.label[where]
        return f"{case.name} at {', '.join(str(s.start) for s in where)}"


@contextmanager
def drawn_ahead(
    sampler: PatchSampler,
    steps: Iterable[int],
    numbers: Sequence[int] | None = None,
    stream: int = TRAINING_STREAM,
) -> Iterator[Iterator[Batch]]:
    """The batches of some steps; the next is cut while the network works on one."""
    with ThreadPoolExecutor(1) as ahead:

        def batches() -> Iterator[Batch]:
            waiting: Future[Batch] | None = None
            for step in steps:
                coming = ahead.submit(sampler.batch, step, numbers, stream)
                if waiting is not None:
                    yield waiting.result()
                waiting = coming
            if waiting is not None:
                yield waiting.result()

        yield batches()

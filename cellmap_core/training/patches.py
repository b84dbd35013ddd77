"""Training patches: drawn by class, cropped from the disk, expanded after cropping.

A batch holds images, label ids and which classes are annotated; targets and masks of all
classes are made of it by one table look-up (`expand`), where the network is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cellmap_core.errors import TrainingError
from cellmap_core.label_table import PRESENT, UNKNOWN, LabelTable
from cellmap_core.training.augment import draw_orientation, planes
from cellmap_core.training.config import TrainConfig
from cellmap_core.training.presence import Presence, find_presence
from cellmap_core.training.volumes import Case

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Batch:
    """Patches of one step.

    Attributes
    ----------
    image : ndarray of float32
        Shape (B, 1, z, y, x), normalised; 0 where a patch reaches beyond its case.
    label : ndarray of int32
        Shape (B, z, y, x), label ids; beyond the case the id after the last, unknown to all.
    annotated : ndarray of bool
        Shape (B, C).
    """

    image: NDArray[np.float32]
    label: NDArray[np.int32]
    annotated: NDArray[np.bool_]


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
        Shape (B, C, z, y, x): present; and known, which is annotated and not unknown.
    """
    voxels = states[label.long()].movedim(-1, 1)
    mask = (voxels != UNKNOWN) & annotated[:, :, None, None, None]
    return voxels == PRESENT, mask


class PatchSampler:
    """Draws patches from cases; a batch depends on seed and step alone.

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
        self._presence = [self._look(number, case) for number, case in enumerate(cases)]
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

    def _look(self, number: int, case: Case) -> Presence:
        assert case.label is not None
        return find_presence(case.label, self._padding, self._config.seed + number, case.name)

    def batch(self, step: int) -> Batch:
        """The patches of a step, the same whenever and wherever they are drawn."""
        rng = np.random.default_rng([self._config.seed, step])
        size, patch = self._config.batch_size, self._config.patch_size_vox
        image = np.zeros((size, 1, *patch), dtype=np.float32)
        label = np.full((size, *patch), self._padding, dtype=np.int32)
        annotated = np.zeros((size, self._states.shape[1]), dtype=bool)
        for i in range(size):
            number, voxel = self._draw(rng)
            annotated[i] = self._cases[number].annotated
            self._cut(rng, self._cases[number], voxel, image[i, 0], label[i])
        return Batch(image, label, annotated)

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
        image: NDArray[np.float32],
        label: NDArray[np.int32],
    ) -> None:
        """Fill one patch in which the voxel lies anywhere, within the case where it can."""
        source, target = [], []
        for at, size, extent in zip(voxel, image.shape, case.image.shape, strict=True):
            start = at - int(rng.integers(size))
            start = min(max(start, 0), max(extent - size, 0))
            room = max(size - extent, 0) // 2
            source.append(slice(start, min(start + size, extent)))
            target.append(slice(room, room + min(size, extent)))
        assert case.label is not None
        raw = np.asarray(case.image[tuple(source)])
        image[tuple(target)] = self._config.normalisation.apply(raw)
        label[tuple(target)] = case.label[tuple(source)]
        if self._config.augment:
            turn = draw_orientation(rng, self._planes)
            image[:], label[:] = turn.apply(image).copy(), turn.apply(label).copy()


@contextmanager
def drawn_ahead(sampler: PatchSampler, steps: Iterable[int]) -> Iterator[Iterator[Batch]]:
    """The batches of some steps; the next is cut while the network works on one."""
    with ThreadPoolExecutor(1) as ahead:

        def batches() -> Iterator[Batch]:
            waiting: Future[Batch] | None = None
            for step in steps:
                coming = ahead.submit(sampler.batch, step)
                if waiting is not None:
                    yield waiting.result()
                waiting = coming
            if waiting is not None:
                yield waiting.result()

        yield batches()

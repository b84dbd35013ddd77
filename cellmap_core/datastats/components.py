"""Connected components of every label id, slab by slab, in flat memory.

Each slab is labelled alone; components that touch through the plane between two slabs are
joined at the end, so that a volume's components never need the volume in memory.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

_Ints = NDArray[np.int64]


def _overlap(shift: int) -> tuple[slice, slice]:
    """Slices of one axis that pair each index with the one ``shift`` further."""
    return slice(max(0, -shift), -shift if shift > 0 else None), slice(
        max(0, shift), shift if shift < 0 else None
    )


class Components:
    """26-connected components of equal label ids, id 0 included (as Auto3DSeg counts them)."""

    def __init__(self) -> None:
        self._depth = 0
        self._count = 0
        self._ids: list[_Ints] = []
        self._boxes: list[_Ints] = []
        self._edges: list[_Ints] = []
        self._last: tuple[NDArray[Any], _Ints] | None = None

    def add(self, labels: NDArray[Any]) -> None:
        """Take the next slab (n, y, x) of label ids."""
        # cc3d takes 0 for background, and here background has components too.
        wide = np.min_scalar_type(int(labels.max()) + 1)
        parts = cc3d.connected_components(labels.astype(wide) + wide.type(1), connectivity=26)
        boxes = cc3d.statistics(parts, no_slice_conversion=True)["bounding_boxes"][1:]
        ids = np.zeros(len(boxes) + 1, dtype=np.int64)
        ids[parts.ravel()] = labels.ravel()
        shifted = np.asarray(boxes, dtype=np.int64).reshape(-1, 3, 2)
        shifted[:, 0] += self._depth
        if self._last is not None:
            self._join(*self._last, labels[0], parts[0].astype(np.int64) - 1 + self._count)
        self._last = (labels[-1].copy(), parts[-1].astype(np.int64) - 1 + self._count)
        self._ids.append(ids[1:])
        self._boxes.append(shifted)
        self._depth += len(labels)
        self._count += len(boxes)

    def shapes(self) -> dict[int, list[list[int]]]:
        """Bounding box (x, y, z) in voxels of each component, by label id."""
        ids, boxes = np.concatenate(self._ids), np.concatenate(self._boxes)
        group = self._groups()
        merged = int(group.max()) + 1
        low = np.full((merged, 3), np.iinfo(np.int64).max)
        high = np.full((merged, 3), -1)
        np.minimum.at(low, group, boxes[:, :, 0])
        np.maximum.at(high, group, boxes[:, :, 1])
        id_of = np.zeros(merged, dtype=np.int64)
        id_of[group] = ids
        size = (high - low + 1)[:, ::-1]
        order = np.argsort(id_of, kind="stable")
        found, starts = np.unique(id_of[order], return_index=True)
        parts = np.split(size[order], starts[1:])
        return {int(i): part.tolist() for i, part in zip(found, parts, strict=True)}

    def _join(
        self, above_labels: NDArray[Any], above_parts: _Ints, labels: NDArray[Any], parts: _Ints
    ) -> None:
        """Note which components of the last plane touch one of the next plane's."""
        for dy, dx in product((-1, 0, 1), repeat=2):
            (ya, yb), (xa, xb) = _overlap(dy), _overlap(dx)
            same = above_labels[ya, xa] == labels[yb, xb]
            pairs = np.stack([above_parts[ya, xa][same], parts[yb, xb][same]])
            # Neighbours mostly repeat the pair: dropping repeats in passing beats sorting all.
            fresh = np.ones(pairs.shape[1], dtype=np.bool_)
            fresh[1:] = (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)
            self._edges.append(pairs[:, fresh])

    def _groups(self) -> NDArray[np.int32]:
        """The final component of each slab's component."""
        edges = np.concatenate(self._edges, axis=1) if self._edges else np.empty((2, 0), np.int64)
        ones = np.ones(edges.shape[1], dtype=np.int8)
        graph = coo_array((ones, (edges[0], edges[1])), shape=(self._count, self._count))
        group: NDArray[np.int32] = connected_components(graph, directed=False)[1]
        return group

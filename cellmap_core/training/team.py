"""The processes that train one model together, as torchrun starts them; or one alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

# The others wait for rank 0 while it decompresses volumes at the start.
_TIMEOUT = timedelta(hours=1)


_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Team:
    """The processes of a training.

    Attributes
    ----------
    rank, size : int
        This process, and how many there are.
    device : torch.device
        This process's own.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = _CPU

    @property
    def leads(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def add_up(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of a tensor over the processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        if self.size == 1:
            return flag
        return bool(self.add_up(torch.tensor(int(flag), device=self.device)).item())

    def share(self, items: int) -> range:
        """Numbers of the items that are this process's."""
        return range(self.rank, items, self.size)

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()


def alone() -> Team:
    """One process, on the GPU if it has one."""
    return Team(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@contextmanager
def team() -> Iterator[Team]:
    """Join the other processes, if torchrun started any."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield alone()
        return
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else None
    if device is not None:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=_TIMEOUT)
    try:
        yield Team(dist.get_rank(), size, device or torch.device("cpu"))
    finally:
        dist.destroy_process_group()

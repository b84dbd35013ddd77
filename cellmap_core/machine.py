"""What this process may use of the machine: cores, by affinity and cgroup."""

from __future__ import annotations

import os
from pathlib import Path


def cores(cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Number of cores this process may use, at least 1.

    The least of its affinity mask (which SLURM sets) and the cgroup v2 quota, which a
    container has while it still sees every core of the host.
    """
    available = len(os.sched_getaffinity(0))
    try:
        quota, period = cpu_max.read_text(encoding="ascii").split()
        limited = available if quota == "max" else int(quota) // int(period)
    except (OSError, ValueError):
        limited = available
    return max(1, min(available, limited))


def gpus(driver: Path = Path("/proc/driver/nvidia/gpus")) -> tuple[str, ...]:
    """Names of the NVIDIA devices this process may use, without importing torch.

    Those of ``CUDA_VISIBLE_DEVICES`` where it is set (SLURM sets it), else all the driver has.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(name for name in visible.split(",") if name.strip() not in ("", "-1"))
    try:
        return tuple(str(i) for i, _ in enumerate(driver.iterdir()))
    except OSError:
        return ()

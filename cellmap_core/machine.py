"""What this process may use of the machine: cores, memory and devices."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

logger = logging.getLogger(__name__)

# glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 32 << 20
# More than any stage has open; some programs take longer the higher the limit is.
_MOST_FILES = 1 << 16
# Linux's prctl.h.
_PR_SET_PDEATHSIG = 1

# Printed by a process of its own: a CUDA context would keep part of the memory for good.
_TORCH_SIZES = """
from torch import cuda
print(*(cuda.get_device_properties(n).total_memory for n in range(cuda.device_count())))
"""
_TORCH_SECONDS = 120

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def cores(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Number of cores this process may use, at least 1.

    The least of its affinity mask, the cgroup quota (which a container has while it still
    sees every core of the host) and the SLURM job's cores for a task.
    """
    limits = [len(os.sched_getaffinity(0))]
    for text in _cgroup_values("cpu.max", proc, cgroups):
        quota, period = text.split()
        if quota != "max":
            limits.append(int(quota) // int(period))
    quotas = _cgroup1_values("cpu", "cpu.cfs_quota_us", proc, cgroups)
    periods = _cgroup1_values("cpu", "cpu.cfs_period_us", proc, cgroups)
    limits += [int(q) // int(p) for q, p in zip(quotas, periods, strict=False) if int(q) > 0]
    if (asked := os.environ.get("SLURM_CPUS_PER_TASK", "")).isdigit():
        limits.append(int(asked))
    return max(1, min(limits))


def memory_bytes(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Memory this process may use: of the machine, its cgroups and its SLURM job the least."""
    total = re.search(r"MemTotal:\s+(\d+) kB", (proc / "meminfo").read_text(encoding="ascii"))
    limits = [int(total.group(1)) << 10] if total else []
    limits += [int(t) for t in _cgroup_values("memory.max", proc, cgroups) if t != "max"]
    # Version 1 has no word for "no limit": its number is beyond any machine's memory.
    limits += map(int, _cgroup1_values("memory", "memory.limit_in_bytes", proc, cgroups))
    if node := _megabytes("SLURM_MEM_PER_NODE"):
        limits.append(node)
    elif share := _megabytes("SLURM_MEM_PER_CPU"):
        limits.append(share * cores(proc, cgroups))
    return min(limits)


def oom_kills(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int:
    """Return how many processes of this process's cgroup the kernel killed for want of memory.

    Children count: they are in the same cgroup. 0 where the kernel does not tell.
    """
    told = _cgroup_values("memory.events", proc, cgroups)
    told += _cgroup1_values("memory", "memory.oom_control", proc, cgroups)
    found = re.search(r"^oom_kill (\d+)$", told[0], re.MULTILINE) if told else None
    return int(found.group(1)) if found else 0


def _cgroup_values(name: str, proc: Path, cgroups: Path) -> list[str]:
    """A limit of this process's cgroup (version 2) and of all that hold it."""
    own = next((row[3:] for row in _cgroup_rows(proc) if row.startswith("0::")), "/")
    return _values_up(cgroups, own, name)


def _cgroup1_values(controller: str, name: str, proc: Path, cgroups: Path) -> list[str]:
    """The same of version 1, where each controller has a tree of its own."""
    for row in _cgroup_rows(proc):
        _, names, own = row.split(":", 2)
        if controller in names.split(","):
            return _values_up(cgroups / controller, own, name)
    return []


def _cgroup_rows(proc: Path) -> list[str]:
    try:
        return (proc / "self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return []


def _values_up(tree: Path, own: str, name: str) -> list[str]:
    """A limit of a cgroup and of all that hold it, up to the root of its tree."""
    folder = tree / own.strip("/")
    values = []
    for place in (folder, *folder.parents):
        if place.is_relative_to(tree):
            with contextlib.suppress(OSError):
                values.append((place / name).read_text(encoding="ascii").strip())
    return values


def _megabytes(variable: str) -> int:
    """A SLURM variable in megabytes, as bytes; 0 where it is not set (or is 0: all of it)."""
    text = os.environ.get(variable, "")
    return int(text) << 20 if text.isdigit() else 0


def keep_memory() -> None:
    """Let this process keep the memory it frees for its next array.

    The C library gives large blocks back at once, and the kernel hands them out again page by
    page, zeroed: for work that makes one large array after another that is half of the time.
    The peak stays what it was.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, 4 * _KEPT_BYTES)


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


def shares(devices: tuple[str, ...], each: int) -> list[tuple[str, ...]]:
    """Divide devices into shares of ``each``; the last one has what is left over.

    Returns
    -------
    list of tuple of str
        The larger shares first; empty where there is no device.
    """
    return [devices[i : i + each] for i in range(0, len(devices), each)]


def gpu_memory_bytes() -> int | None:
    """Return the memory of the smallest NVIDIA device this process may use.

    ``nvidia-smi`` is asked first. It tells nothing of a MIG instance, nor of memory that a GPU
    shares with its host; then torch is asked, in a process of its own, which takes seconds.

    Returns
    -------
    int or None
        0 where there is no device, or torch, which was asked, sees none; None where neither
        could be asked.
    """
    devices = gpus()
    if not devices:
        return 0
    sizes = _sizes_by_driver(devices)
    if sizes is None:
        sizes = _sizes_by_torch(devices)
    return None if sizes is None else min(sizes, default=0)


def _sizes_by_driver(devices: tuple[str, ...]) -> tuple[int, ...] | None:
    """Bytes of each device, as nvidia-smi tells; None where it does not tell them all."""
    ask = ["nvidia-smi", "--query-gpu=memory.total,mig.mode.current"]
    try:
        rows = subprocess.run(
            [*ask, "--format=csv,noheader,nounits", f"--id={','.join(devices)}"],
            capture_output=True, text=True, check=True, timeout=30,
        ).stdout.splitlines()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    cells = [[cell.strip() for cell in row.split(",")] for row in rows if row.strip()]
    # Of a GPU in MIG mode it tells the whole, of which a process has one instance.
    if len(cells) != len(devices) or any(not c[0].isdigit() or "Enabled" in c for c in cells):
        return None
    return tuple(int(cell[0]) << 20 for cell in cells)


@functools.lru_cache(maxsize=8)
def _sizes_by_torch(devices: tuple[str, ...]) -> tuple[int, ...] | None:
    """Bytes of each of the devices that torch sees; None where it cannot be asked."""
    try:
        sizes = subprocess.run(
            [sys.executable, "-P", "-c", _TORCH_SIZES],
            capture_output=True, text=True, check=True, timeout=_TORCH_SECONDS,
        ).stdout.split()  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        why = said.strip().splitlines()[-1]
        logger.warning("torch cannot be asked about GPU %s (%s)", ",".join(devices), why)
        return None
    return tuple(int(size) for size in sizes)


def raise_file_limit() -> int:
    """Raise this process's limit of open files as far as it may, and return it.

    Systems often allow 1024 at first and far more on demand.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return _MOST_FILES if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        return soft
    return wanted


def peak_memory_bytes() -> int:
    """Most memory this process has taken so far, mapped files that it read included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def end_with_parent() -> None:
    """Have the kernel end this process when its parent is gone, however that ended (Linux).

    For ``preexec_fn`` of a child: it gets SIGTERM then.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

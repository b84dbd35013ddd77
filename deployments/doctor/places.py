"""Folders of a run: whether they can be written to, are shared, and have room."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

from deployments.doctor.finding import Finding, failed, hop, ok, warning

_MOUNTS = Path("/proc/self/mounts")
# By the names of Linux; what runs in user space (fuse.…) is shared as a rule.
_NETWORK = re.compile(
    r"nfs\d*|lustre|gpfs|beegfs|cifs|smb3?|ceph|afs|9p|glusterfs|panfs|pvfs2|orangefs|wekafs|"
    r"quobyte|daos|fuse\..+"
)
_LEAST_GB, _USUAL_GB = 1, 50


def kind_of(path: Path, mounts: Path = _MOUNTS) -> str:
    """The type of the file system that a path is on; empty where the system does not tell."""
    place = path.resolve()
    found: tuple[int, str] = (-1, "")
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        _, point, kind, *_ = line.split(" ")
        folder = Path(re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), point))
        # What is mounted later over the same folder hides what was there.
        if place.is_relative_to(folder) and len(folder.parts) >= found[0]:
            found = (len(folder.parts), kind)
    return found[1]


def is_network(kind: str) -> bool:
    """Whether a type of file system is one that several hosts share."""
    return _NETWORK.fullmatch(kind) is not None


@hop("folder")
def check_folder(name: str, folder: Path, elsewhere: Collection[str]) -> Finding:
    """It can be written to, other nodes see it, and there is room."""
    hop_name = f"{name} {folder}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        finding = failed(f"cannot be written to ({error})", "mend it, or choose another")
        return finding.model_copy(update={"hop": hop_name})
    return _of_writable(folder, elsewhere).model_copy(update={"hop": hop_name})


def _of_writable(folder: Path, elsewhere: Collection[str]) -> Finding:
    free_gb = shutil.disk_usage(folder).free / 1e9
    kind = kind_of(folder)
    said = f"writable, {free_gb:.0f} GB free, {kind or 'unknown file system'}"
    if free_gb < _LEAST_GB:
        return failed(f"only {free_gb:.2f} GB free", "free some space")
    if elsewhere and not is_network(kind):
        return warning(
            f"{said}, which other nodes do not share as a rule",
            "take a folder that all nodes see; --from-node tells for sure of log_dir",
        )
    if free_gb < _USUAL_GB:
        return warning(said, "converted crops and models of a real data set need more")
    return ok(said)

"""The doctor on a compute node: what a job finds there, written to a file that the host reads."""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cellmap_core.models import Frozen
from cellmap_core.provenance import write_text
from deployments.doctor import api as apis
from deployments.doctor.cluster import check_interface
from deployments.doctor.finding import Finding, failed, hop, ok, warning
from deployments.service import ROOT

#: What the host's listener says, so that no other program is taken for it.
GREETING = b"auto3dseg doctor\n"

_NEEDED = ("prefect", "prefect_dask", "dask_jobqueue", "cellmap_core", "deployments")
_CONNECT_SECONDS = 10


class Report(Frozen):
    """All findings of one node."""

    host: str
    findings: tuple[Finding, ...]


class Asked(Frozen):
    """What a probe is to look at.

    Attributes
    ----------
    report : Path
        File to write.
    listener : str
        ``host:port`` of the doctor that waits for it.
    gpus : int
        How many the job asked for.
    interface : str or None
        Over which the jobs of a run talk.
    marker : Path or None
        A file that the doctor has made in the work folder.
    scratch : Path or None
        Node-local folder that the profile names.
    """

    report: Path
    listener: str
    gpus: int = 0
    interface: str | None = None
    marker: Path | None = None
    scratch: Path | None = None


def main(asked: Asked) -> int:
    """Look, and report."""
    api = apis.configured()
    findings = [check_project(), apis.check_api(api)] if api else [check_project()]
    findings += [check_way_back(asked.listener), check_interface(asked.interface)]
    if asked.marker is not None:
        findings.append(check_shared(asked.marker))
    if asked.scratch is not None:
        findings.append(check_scratch(asked.scratch))
    if asked.gpus:
        findings.append(check_gpus(asked.gpus))
    report = Report(host=socket.gethostname(), findings=tuple(findings))
    write_text(asked.report, report.model_dump_json())
    return 0


@hop("the project and its Python")
def check_project(needed: Sequence[str] = _NEEDED) -> Finding:
    """The packages that a run's jobs import are there."""
    for name in needed:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - whatever a broken package raises
            return failed(
                f"{sys.executable} cannot import {name} ({type(error).__name__}: {error})",
                "let setup in the site profile make it so, on a disk that every node sees",
            )
    return ok(f"{sys.executable}, {ROOT}")


@hop("work folder")
def check_shared(marker: Path) -> Finding:
    """It is the one that the doctor sees, and can be written to."""
    folder = marker.parent
    try:
        if marker.name not in {path.name for path in folder.iterdir()}:
            return failed(f"{folder} is another one here", "take a folder that all nodes see")
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        return failed(f"{folder} cannot be used here ({error})", "take one that all nodes see")
    return ok(f"{folder} is shared")


@hop("scratch")
def check_scratch(folder: Path) -> Finding:
    """Temporary files have a place and room."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        return failed(f"{folder} cannot be used here ({error})", "mend scratch in the site profile")
    return ok(f"{folder}, {shutil.disk_usage(folder).free / 1e9:.0f} GB free")


@hop("way back to the submitting host")
def check_way_back(listener: str) -> Finding:
    """A plain connection, as Dask's workers make to their scheduler."""
    host, _, port = listener.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), _CONNECT_SECONDS) as connection:
            said = connection.recv(len(GREETING))
    except OSError as error:
        return failed(
            f"no connection to {listener} ({error})",
            "set network_interface in the site profile to one that nodes share; a firewall "
            "between nodes must let them through",
        )
    if said != GREETING:
        return failed(f"another program answers on {listener}", "ask again")
    return ok(listener)


@hop("GPUs")
def check_gpus(asked: int) -> Finding:
    """As many as the job asked for are visible."""
    visible = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
    if len(visible) != asked:
        return failed(
            f"{asked} asked, CUDA_VISIBLE_DEVICES names {len(visible)}",
            "look at gpus, gpu_type and gpu_form in the site profile, and at the node's gres.conf",
        )
    if shutil.which("nvidia-smi") is None:
        return warning(f"{asked} visible, no nvidia-smi to ask about them")
    shown = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if shown.returncode:
        return failed(f"nvidia-smi ended with {shown.returncode}: {shown.stdout.strip()}")
    found = "; ".join(shown.stdout.strip().splitlines())
    if "N/A" in found or "Not Supported" in found:
        return warning(
            f"{found}: the memory is not told", "set gpu_memory_gb of the stage in the site profile"
        )
    return ok(found)

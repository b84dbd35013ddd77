"""SLURM here: its commands, and the site profile against its nodes."""

from __future__ import annotations

import os
import shutil
import socket
import time
from pathlib import Path

from cellmap_core.cluster.check import nodes_of, problems_of
from cellmap_core.cluster.profiles import SITE_VARIABLE, Site, Stage, named_site, read_site
from cellmap_core.cluster.slurm import Slurm
from cellmap_core.errors import ProfileError
from deployments.doctor.finding import Finding, failed, hop, ok, warning

COMMANDS = ("sbatch", "squeue", "scontrol", "scancel", "sinfo")
_SLOW_SECONDS = 10


@hop("SLURM")
def check_commands(slurm: Slurm) -> Finding:
    """The client commands are there, and the controller answers in time."""
    if missing := [name for name in COMMANDS if shutil.which(name) is None]:
        return failed(f"no command {', '.join(missing)}", "run this on a login node")
    version = slurm.show("sinfo", "--version").strip()
    began = time.monotonic()
    slurm.show("squeue", "--me", "--noheader")
    seconds = time.monotonic() - began
    if seconds > _SLOW_SECONDS:
        return warning(f"{version}, squeue takes {seconds:.0f} s", "runs follow their jobs late")
    return ok(f"{version}, squeue answers in {seconds:.1f} s")


def elsewhere(slurm: Slurm) -> set[str]:
    """Nodes of the cluster other than this host."""
    here = {socket.gethostname(), socket.gethostname().partition(".")[0], socket.getfqdn()}
    return {node.name for node in nodes_of(slurm)} - here


@hop("site profile")
def check_profile(path: Path) -> Finding:
    """It can be read, and its names and values are valid."""
    site = read_site(path)
    set_to = os.environ.get(SITE_VARIABLE)
    if set_to is None or named_site(set_to).resolve() != path.resolve():
        return warning(
            f"{path} ({site.name}) is readable, but {SITE_VARIABLE} does not name it here",
            f"export {SITE_VARIABLE}={path.resolve()} where the worker is started",
        )
    return ok(f"{path} ({site.name})")


def check_stage(site: Site, slurm: Slurm, stage: Stage) -> Finding:
    """The cluster has what the jobs of a stage ask for, and would take them."""

    @hop(f"stage {stage}")
    def check() -> Finding:
        if problems := list(problems_of(site, slurm, [stage])):
            return failed("; ".join(p.removeprefix(f"stages.{stage}.") for p in problems))
        return ok(" ".join(site.of(stage).arguments()))

    return check()


@hop("network interface")
def check_interface(name: str | None) -> Finding:
    """The one that the profile names is here, and leads to other hosts."""
    address = address_of(name)
    if address.startswith("127."):
        return warning(
            f"the jobs of a run would listen on {address}, which no other node reaches",
            "name the cluster's interface as network_interface in the site profile",
        )
    return ok(f"{name or 'the one that leads out'} ({address})")


def address_of(name: str | None) -> str:
    """The address Dask would listen on: of an interface, else the one that leads out."""
    from distributed.utils import get_ip, get_ip_interface

    if name is None:
        return str(get_ip())  # type: ignore[no-untyped-call]
    try:
        return str(get_ip_interface(name))  # type: ignore[no-untyped-call]
    except (KeyError, ValueError) as error:
        raise ProfileError(f"network_interface: {error}", "one of this host's") from error

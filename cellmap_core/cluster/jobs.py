"""One job: what it asks of the cluster, and how that is put to ``sbatch``.

What a user can set goes as one argument each, never into a script's ``#SBATCH`` lines nor
unquoted into a shell: a name with a newline or ``$()`` in it stays a name. The environment is
inherited (``--export`` would cut a value at its comma), and secrets are in no argument.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from cellmap_core.models import Frozen

__all__ = ["JobSpec", "Mail", "Resources", "comment_of", "inherited", "run_of"]

# What SLURM's own names are made of: partitions, accounts, qualities of service, features.
_NAMES = re.compile(r"[A-Za-z0-9_.,:+@/=-]+")
# Features may be joined: a100|l40s, [rack1*2&rack2], !old.
_CONSTRAINT = re.compile(r"[A-Za-z0-9_.,:&|\[\]*()!-]+")
_MARK = "auto3dseg"
_MIB_PER_GB = 1000**3 / 2**20
# Modules of many a site end so though all is well: it is told, and the job goes on.
_AFTER_SETUP = 'code=$?; [ $code = 0 ] || echo "warning: the setup ended with $code" >&2'


def _name(value: str) -> str:
    if not _NAMES.fullmatch(value):
        raise ValueError("give letters, digits and _ . , : + @ / = - only")
    return value


def _constraint(value: str) -> str:
    if not _CONSTRAINT.fullmatch(value):
        raise ValueError("give features joined by & | , and brackets, without spaces")
    return value


def _days(value: float) -> float:
    if value * 60 < 1:
        raise ValueError("SLURM counts wall time in whole minutes; give at least 1/60")
    return value


Name = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_name)]


class Mail(Frozen):
    """Whom SLURM writes to, and when."""

    user: Annotated[str, Field(pattern=r"^[^\s,]+$")]
    events: tuple[
        Literal[
            "BEGIN", "END", "FAIL", "REQUEUE", "ALL", "TIME_LIMIT", "TIME_LIMIT_90", "TIME_LIMIT_80"
        ],
        ...,
    ] = ("FAIL",)


class Resources(Frozen):
    """What one job of a stage asks for."""

    partition: Name | None = Field(None, description="partition (default: the cluster's)")
    account: Name | None = Field(None, description="account to charge")
    qos: Name | None = Field(None, description="quality of service")
    constraint: Annotated[str, AfterValidator(_constraint)] | None = Field(
        None, description="features a node must have, such as l40s|a100"
    )
    reservation: Name | None = Field(None, description="reservation to run in")
    jobs: int = Field(1, ge=1, description="most jobs of this stage at a time")
    cores: int = Field(1, ge=1, description="cores of a job")
    memory_gb: float = Field(4, gt=0, le=1e6, description="host memory of a job, in 10⁹ bytes")
    hours: Annotated[float, AfterValidator(_days)] = Field(
        12, gt=0, le=8760, description="wall time of a job; longer work goes on in another one"
    )
    gpus: int = Field(0, ge=0, description="GPUs of a job")
    gpu_type: Name | None = Field(None, description="type of the GPUs, as the cluster names it")
    gpu_memory_gb: float | None = Field(
        None, gt=0, le=1e4, description="memory of one such GPU, which patch and batch sizes follow"
    )
    gpu_form: Literal["gres", "gpus-per-node"] = Field(
        "gres", description="how the cluster wants to be asked: --gres=gpu:… or --gpus-per-node=…"
    )

    @property
    def minutes(self) -> int:
        """The wall time as SLURM counts it."""
        return ceil(self.hours * 60)

    def arguments(self) -> list[str]:
        """What of it goes to ``sbatch``."""
        named = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "reservation": self.reservation,
        }
        asked = [f"--{name}={value}" for name, value in named.items() if value is not None]
        asked += [
            "--nodes=1",
            "--ntasks=1",
            f"--cpus-per-task={self.cores}",
            f"--mem={ceil(self.memory_gb * _MIB_PER_GB)}M",
            f"--time={self.minutes}",
        ]
        if self.gpus:
            wanted = ":".join(filter(None, [self.gpu_type, str(self.gpus)]))
            asked.append(
                f"--gres=gpu:{wanted}" if self.gpu_form == "gres" else f"--gpus-per-node={wanted}"
            )
        return asked


class JobSpec(Frozen):
    """A job to submit.

    Attributes
    ----------
    name : str
        Shown by ``squeue``; any text.
    command : tuple of str
        What runs, argument by argument.
    comment : str
        Says whose it is; see `comment_of`.
    log : Path
        Of its output; ``%j`` stands for the job's id.
    setup : str
        Shell lines of the site's administrator or user, run first: modules, conda, a container.
    environment : dict
        Variables added to those inherited.
    warn_seconds : int
        This long before the wall time is over the job is told, by ``warn_signal``.
    requeue : bool
        Whether SLURM itself starts the job anew when its node failed or it was preempted.
    body : str
        Shell lines that run the command, which they find as ``"$@"``.
    """

    name: str
    command: tuple[str, ...]
    resources: Resources
    comment: str
    log: Path
    working_dir: Path
    setup: str = ""
    environment: dict[str, str] = {}
    warn_seconds: int = 0
    warn_signal: Literal["TERM", "USR1", "USR2"] = "TERM"
    requeue: bool = False
    body: str = 'exec "$@"'
    mail: Mail | None = None

    def arguments(self) -> list[str]:
        """Options of ``sbatch``, one argument each."""
        asked = [
            "--parsable",
            f"--job-name={_printable(self.name) or _MARK}",
            f"--comment={self.comment}",
            f"--chdir={self.working_dir}",
            f"--output={_escaped(self.log)}",
            "--open-mode=append",
            "--requeue" if self.requeue else "--no-requeue",
            *self.resources.arguments(),
        ]
        if self.warn_seconds:
            asked.append(f"--signal=B:{self.warn_signal}@{self.warn_seconds}")
        if self.mail:
            asked += [f"--mail-user={self.mail.user}", f"--mail-type={','.join(self.mail.events)}"]
        return asked

    def script(self) -> str:
        """The job's script, for the standard input of ``sbatch``."""
        setup = [self.setup.strip(), _AFTER_SETUP] if self.setup.strip() else [""]
        command = f"set -- {shlex.join(self.command)}"
        return "\n".join(["#!/bin/bash", *setup, command, self.body, ""])


def comment_of(run_id: str, stage: str) -> str:
    """What marks a job as a stage's of one flow run."""
    return f"{_MARK}:{run_id}:{stage}"


def run_of(comment: str) -> tuple[str, str] | None:
    """Flow run and stage of a job by its comment; None where it is not one of ours."""
    parts = comment.split(":")
    return (parts[1], parts[2]) if len(parts) == 3 and parts[0] == _MARK else None


def inherited(environment: Mapping[str, str], drop: Sequence[str] = ()) -> dict[str, str]:
    """The environment a job may inherit: without what is of this job or meant for ``sbatch``.

    A worker that runs as a job itself would hand its own limits on: ``SBATCH_*`` are options
    of every ``sbatch``, ``SLURM_*`` what this job was given.
    """
    kept = {"SLURM_CONF", "SLURM_CLUSTERS"}
    own = ("SLURM_", "SBATCH_", "SLURMD_", "SRUN_", "SALLOC_", "CUDA_VISIBLE_DEVICES")
    return {
        name: value
        for name, value in environment.items()
        if (name in kept or not name.startswith(own)) and name not in drop
    }


def _printable(text: str) -> str:
    """Without control characters, which would break the tables of ``squeue``."""
    return "".join(c if c.isprintable() else " " for c in text).strip()[:200]


def _escaped(log: Path) -> str:
    """A path in which only ``%j`` of the file's own name stands for something."""
    folder = str(log.parent).replace("%", "%%")
    return f"{folder}/{log.name}"

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

"""The job this process runs in, and whether the cluster is about to end it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from cellmap_core.models import Frozen

#: A file that is there once the job is about to end, and says why; the job's script makes it.
ENDING_VARIABLE = "AUTO3DSEG_ENDING"
#: The log of the job; ``%j`` stands for its id.
LOG_VARIABLE = "AUTO3DSEG_JOB_LOG"
#: Where the job's script makes a folder for temporary files (default: the node's own).
SCRATCH_VARIABLE = "AUTO3DSEG_SCRATCH"

#: What `ending` returns in a job whose wall time is nearly over.
AT_WALL_TIME = "is at the end of its wall time"

#: Runs a command (``"$@"``) as a child, so that the signal before the end of the wall time
#: reaches the script alone and becomes a file that the work looks for; the signal itself would
#: end it. Any other end is the command's own. ``wait`` returns for each signal.
KEEPER = f"""\
TMPDIR=$(mktemp -d -p "${{{SCRATCH_VARIABLE}:-${{SLURM_TMPDIR:-/tmp}}}}" auto3dseg.XXXXXX) || exit 1
export TMPDIR {ENDING_VARIABLE}="$TMPDIR/ending"
trap 'rm -rf "$TMPDIR"' EXIT
trap 'echo "{AT_WALL_TIME}" > "${ENDING_VARIABLE}"' USR1
"$@" &
child=$!
trap 'echo "was told to end" > "${ENDING_VARIABLE}"; kill -TERM "$child" 2>/dev/null' TERM
wait "$child"; code=$?
while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
exit "$code"
"""


class Place(Frozen):
    """A job, where it runs, where its output goes, and since when somebody is in it."""

    job_id: int
    node: str = ""
    log: Path | None = None
    since: datetime | None = None

    def __str__(self) -> str:
        """The job in one line."""
        where = f" on {self.node}" if self.node else ""
        return f"SLURM job {self.job_id}{where}" + (f", log {self.log}" if self.log else "")


def place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """The job of this process; None where it is in none."""
    number = environment.get("SLURM_JOB_ID", "")
    if not number.isdigit():
        return None
    log = environment.get(LOG_VARIABLE)
    return Place(
        job_id=int(number),
        node=environment.get("SLURMD_NODENAME", ""),
        log=Path(log.replace("%j", number)) if log else None,
    )


def ending(environment: Mapping[str, str] = os.environ) -> str:
    """Why this process's job ends soon, in words about it; empty where it does not."""
    file = environment.get(ENDING_VARIABLE)
    try:
        return Path(file).read_text(encoding="utf-8").strip() or "ends" if file else ""
    except OSError:
        return ""

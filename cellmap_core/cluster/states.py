"""Every state a SLURM job can be in, and what it means for the work it carries."""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


class End(StrEnum):
    """How a job ended, by what is to be done about it."""

    DONE = "done"
    FAILED = "failed"
    #: By a person or a dependency, not by the cluster.
    CANCELLED = "cancelled"
    #: The cluster took it away: its node failed, or a job of more weight came.
    LOST = "lost"
    WALL_TIME = "wall time"
    OUT_OF_MEMORY = "out of memory"
    #: The cluster has no record of it any more.
    UNKNOWN = "unknown"

    @property
    def goes_on(self) -> bool:
        """Whether the same work in a new job is worth a try: nothing was wrong with the work."""
        return self in (End.LOST, End.WALL_TIME, End.UNKNOWN)


_QUEUED = frozenset(
    ["PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"]
)
_ENDS = {
    "COMPLETED": End.DONE,
    "FAILED": End.FAILED,
    "CANCELLED": End.CANCELLED,
    "REVOKED": End.CANCELLED,
    "DEADLINE": End.WALL_TIME,
    "TIMEOUT": End.WALL_TIME,
    "NODE_FAIL": End.LOST,
    "PREEMPTED": End.LOST,
    "BOOT_FAIL": End.LOST,
    "LAUNCH_FAILED": End.LOST,
    "RECONFIG_FAIL": End.LOST,
    "OUT_OF_MEMORY": End.OUT_OF_MEMORY,
}
_RUNNING = frozenset(
    [
        "RUNNING",
        "CONFIGURING",
        "COMPLETING",
        "RESIZING",
        "SIGNALING",
        "STAGE_OUT",
        "STOPPED",
        "SUSPENDED",
        "POWER_UP_NODE",
        "EXPEDITING",
    ]
)
#: All states known here; what SLURM may add later counts as running.
STATES = _QUEUED | _RUNNING | frozenset(_ENDS)


def phase_of(state: str) -> Phase:
    """Phase of a job by its state.

    Only states that are known to be an end end a job: a state of a later SLURM must not make
    a run of days count as crashed.
    """
    word = _word(state)
    if word in _ENDS:
        return Phase.ENDED
    return Phase.QUEUED if word in _QUEUED else Phase.RUNNING


def end_of(state: str) -> End:
    """How a job in a final state ended.

    Raises
    ------
    KeyError
        It has not ended.
    """
    return _ENDS[_word(state)]


def _word(state: str) -> str:
    """The state alone: accounting says ``CANCELLED by 1000``, some versions ``CANCELLED+``."""
    words = state.strip().upper().replace("+", " ").split()
    return words[0] if words else ""

"""Every failure this project raises by name, one small class each.

A message says what was found, what was expected and what to do about it. The exit
code tells a usage error (2) from work that failed (1).
"""

from __future__ import annotations

import errno


class CellmapError(Exception):
    """Base of all failures of this project.

    Parameters
    ----------
    found : str
        What was found, naming the thing.
    expected : str
        What would have been right, with the valid choices where there are any.
    do : str
        What the reader can do about it.
    """

    exit_code = 1
    #: Whether trying the same thing again may succeed.
    may_pass = False

    def __init__(self, found: str, expected: str = "", do: str = "") -> None:
        super().__init__(found, expected, do)
        self.found = found
        self.expected = expected
        self.do = do

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __str__(self) -> str:
        parts = [self.found]
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.do:
            parts.append(self.do)
        return "; ".join(parts)


class UsageError(CellmapError):
    """What was asked for is not a thing this program can do."""

    exit_code = 2


class OptionError(UsageError):
    """An option or its value is unknown or out of range."""


class PathError(UsageError):
    """A path names a variable or a home folder that is not known here."""


class DatasplitError(UsageError):
    """The datasplit as a whole cannot be used (missing, unreadable, empty)."""


class DatalistError(UsageError):
    """The datalist as a whole cannot be used (missing, malformed, too few crops)."""


class RowError(CellmapError):
    """One row of a datasplit cannot be read."""


class StoreError(CellmapError):
    """An array store is missing or cannot be read."""


class BusyError(CellmapError):
    """Another run is writing where this one would."""


class DiskFullError(CellmapError):
    """A file could not be written for want of space."""


class MetadataError(CellmapError):
    """The metadata of an array are missing or contradict each other."""


class ChunkKeyError(MetadataError):
    """Chunk files lie in an array's place under names that its metadata do not give."""


class AnnotationError(CellmapError):
    """A class is unknown, or its annotation cannot be read as three states."""


class CropExcluded(CellmapError):
    """A crop carries nothing that may be trained on; excluded by name, not failed."""


class NiftiError(CellmapError):
    """A NIfTI file cannot be read, or is not what the datalist says."""


class GeometryError(CellmapError):
    """The image and the label of a case are not one grid."""


class StatisticsError(CellmapError):
    """A case has no statistics, or the stored statistics cannot be used."""


class StageOrderError(UsageError):
    """A stage was asked for before the one that makes what it needs."""


class BundleError(UsageError):
    """A bundle or a template folder is missing or not what it should be."""


class TrainingError(CellmapError):
    """A training cannot start, or ended without a model."""


class TrainingInterrupted(CellmapError):
    """A training process was ended from outside and can go on from its checkpoint."""

    may_pass = True


class CheckpointError(CellmapError):
    """A checkpoint is truncated or belongs to another configuration."""


class EnsembleError(CellmapError):
    """No trained model, or no case, to make an ensemble prediction of."""


class LostWorkError(CellmapError):
    """The worker of one item ended before the item was done, and will do so again."""


class NoProgressError(CellmapError):
    """A run was started again and again and saved nothing."""


class IncompleteError(CellmapError):
    """A stage did what it could; the listed items failed."""


class ProfileError(UsageError):
    """A site profile is unreadable, or asks for what the cluster does not have."""


class PlanError(UsageError):
    """A run would not fit into the limits of the site."""


class SchedulerUnavailable(CellmapError):
    """The cluster's controller did not answer; that says nothing of the jobs."""

    may_pass = True


class SubmissionRefused(CellmapError):
    """The cluster does not take a job, or a command about one, as it is."""


class StageJobsError(CellmapError):
    """A stage gets no jobs of the cluster to work in."""


class ServiceError(CellmapError):
    """The local service (server, work pool, worker) did not come up or did not answer."""


# Retrying changes nothing for these: the file is not there, not ours to read, or has no room.
_FINAL_ERRNOS = frozenset(
    {
        errno.ENOENT,
        errno.EACCES,
        errno.EPERM,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EROFS,
        errno.ENOSPC,
        errno.EDQUOT,
    }
)


# By name, because the library knows neither Dask nor Prefect's HTTP client.
_LOST_KINDS = frozenset({"KilledWorker", "CommClosedError", "FutureCancelledError"})
_PASSING_KINDS = frozenset({"KilledWorker", "CommClosedError", "TimeoutError", "TransportError"})


def may_pass(error: BaseException) -> bool:
    """Tell whether the same work may succeed when tried again.

    Parameters
    ----------
    error : BaseException
        What the work raised.

    Returns
    -------
    bool
        True for passing trouble (I/O, connections, a killed worker or process); False for
        bad input and for programming errors, which end the same way every time.
    """
    if isinstance(error, CellmapError):
        return error.may_pass
    if isinstance(error, OSError):
        return error.errno not in _FINAL_ERRNOS
    return any(kind.__name__ in _PASSING_KINDS for kind in type(error).__mro__)


def lost_reason(error: BaseException) -> str:
    """Return why an item was lost with its worker, as far as the error tells."""
    if isinstance(error, LostWorkError):
        return str(error)
    return f"its worker was killed ({type(error).__name__}); out of memory?"


def is_lost(error: BaseException) -> bool:
    """Tell whether work went with the process that did it, and says nothing of itself."""
    return any(kind.__name__ in _LOST_KINDS for kind in type(error).__mro__)

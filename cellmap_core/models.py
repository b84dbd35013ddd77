"""The frozen models that cross a border: between stages, tasks and processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

#: Name of the state of what goes on in another job because its own reached its wall time.
HANDED_ON = "HandedOn"


class Frozen(BaseModel):
    """A value that cannot change and takes no field it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Failure(Frozen):
    """One item of a stage that could not be done.

    Attributes
    ----------
    item : str
        The item's name, as the user knows it (``dataset/crop``, ``algo_fold``, …).
    reason : str
        One line: what was found, what was expected, what to do.
    """

    item: str
    reason: str


class StageResult(Frozen):
    """What every stage hands on: small, and never an array.

    Attributes
    ----------
    done : int
        Items made by this run.
    current : int
        Items found up to date and left alone.
    failures : tuple of Failure
        Items that failed, by name.
    excluded : tuple of Failure
        Items that policy leaves out, by name; they are no failures.
    """

    done: int = 0
    current: int = 0
    failures: tuple[Failure, ...] = ()
    excluded: tuple[Failure, ...] = ()

    @property
    def up_to_date(self) -> bool:
        """Whether this run found everything made already."""
        return self.done == 0 and not self.failures and self.current > 0

    @property
    def state_name(self) -> str | None:
        """Name of the state of the task that gives it; None for the usual one."""
        return "Cached" if self.up_to_date else None

    def and_then(self, *others: StageResult) -> StageResult:
        """The sum of this and other stages' results."""
        everything = (self, *others)
        failures: dict[str, Failure] = {}
        for failure in (f for r in everything for f in r.failures):
            # A later stage may miss what an earlier one failed to make: the first reason counts.
            failures.setdefault(failure.item, failure)
        return StageResult(
            done=sum(r.done for r in everything),
            current=sum(r.current for r in everything),
            failures=tuple(failures.values()),
            excluded=tuple(f for r in everything for f in r.excluded),
        )

    def tally(self) -> str:
        """One line for logs and states: how many were made, current, failed and excluded."""
        left_out = f", {len(self.excluded)} excluded" if self.excluded else ""
        if self.up_to_date:
            return f"up to date: nothing to do, all {self.current} as they were{left_out}"
        made = f"{self.done} made, {self.current} up to date, {len(self.failures)} failed"
        return f"{made}{left_out}"

    def report(self) -> str:
        """The tally, followed by every failed item with its reason."""
        listed = "; ".join(f"{f.item}: {f.reason}" for f in self.failures)
        return f"{self.tally()} - {listed}" if listed else self.tally()


class CropPicture(Frozen):
    """The pictures of one converted crop, and whether its labels lie on its EM.

    Attributes
    ----------
    verdict : str
        Of :class:`cellmap_core.alignment.Alignment`.
    shift_nm : tuple of float or None
        How far the labels lie off (z, y, x), where they do.
    """

    crop: str
    picture: Path
    thumbnail: Path
    verdict: str
    shift_nm: tuple[float, float, float] | None = None


class ConvertResult(StageResult):
    """Of conversion: the datalist, the table of all crops and their pictures."""

    datalist: Path
    crops_table: Path
    pictures: tuple[CropPicture, ...] = ()


class AnalyzeResult(StageResult):
    """Of analysis: Auto3DSeg's two reports and our reading of them."""

    datastats: Path
    datastats_by_case: Path
    analysis: Path


class BundleRef(Frozen):
    """One algorithm × fold, by the folder of its bundle."""

    algo: str
    fold: int
    folder: Path

    @property
    def name(self) -> str:
        """Auto3DSeg's name of the bundle, ``algo_fold``."""
        return f"{self.algo}_{self.fold}"


class GenerateResult(StageResult):
    """Of generation: the bundles to train."""

    bundles: tuple[BundleRef, ...]


class TrainResult(StageResult):
    """Of one training: the best model and how well it did on its validation fold.

    Attributes
    ----------
    dice : dict
        Class name → Dice of the best epoch over the known voxels of the validation fold;
        None where the class has no known voxel present there.
    trivial_dice : dict
        Class name → Dice of calling every known voxel foreground; the bar to beat.
    seconds : float
        Spent in all its epochs, over all its processes' restarts.
    host_bytes, device_bytes : int
        Most memory it took, of the machine and of its GPU.
    """

    bundle: BundleRef
    checkpoint: Path
    best_epoch: int
    epochs: int
    mean_dice: float | None
    dice: dict[str, float | None]
    trivial_dice: dict[str, float | None]
    seconds: float
    host_bytes: int = 0
    device_bytes: int = 0


class TrainPause(StageResult):
    """Of one training that has to go on in another job: nothing failed, its time was over.

    Attributes
    ----------
    why : str
        One line for logs.
    job_id : int or None
        The job that ends.
    at_wall_time : bool
        Whether it ends at its wall time, not because it was told to.
    """

    bundle: BundleRef
    why: str
    job_id: int | None = None
    at_wall_time: bool = False

    @property
    def state_name(self) -> str | None:
        """It is handed on."""
        return HANDED_ON

    def tally(self) -> str:
        """Why it is not done yet."""
        return self.why


class CasePrediction(Frozen):
    """One predicted case: where it is and, where there are labels, how good it is.

    Attributes
    ----------
    prediction : Path
        ``<case>.zarr``, a mask for each class.
    dice, trivial_dice : dict
        Class name → Dice over the known voxels, and that of calling every one foreground; see
        `TrainResult`. Empty where the case has no labels.
    foreground_fraction : dict
        Class name → part of the voxels that are predicted.
    further_ids : int
        Predicted combinations of classes that the datalist's label table lacks; the table
        beside the labels has ids for them.
    """

    case: str
    prediction: Path
    dice: dict[str, float | None] = {}
    trivial_dice: dict[str, float | None] = {}
    foreground_fraction: dict[str, float] = {}
    further_ids: int = 0


class EnsembleResult(StageResult):
    """Of the ensemble: a prediction for each case of the datalist's testing list.

    Attributes
    ----------
    folder : Path
        Of the predictions.
    classes : tuple of str
        All classes of the datalist, whether a model could learn them or not.
    members : tuple of str
        Names of the bundles that predicted.
    """

    folder: Path
    classes: tuple[str, ...] = ()
    members: tuple[str, ...]
    cases: tuple[CasePrediction, ...]


class Mapper(Protocol):
    """How a stage runs one function over many items, here or spread over workers.

    Parameters
    ----------
    function : callable
        Of one item.
    items : sequence
        What to run it over.
    done : callable, optional
        Told each result as soon as it is there, in whatever order.
    lost : callable, optional
        Makes the result of an item whose worker died with it, of the item and the error.
        Without it that error is raised.

    Returns
    -------
    list
        The results, in the order of the items.
    """

    def __call__(  # noqa: D102 - the class says it
        self,
        function: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        done: Callable[[Any], None] | None = None,
        lost: Callable[[Any, Exception], Any] | None = None,
    ) -> list[Any]: ...


def serial(
    function: Callable[[Any], Any],
    items: Sequence[Any],
    *,
    done: Callable[[Any], None] | None = None,
    lost: Callable[[Any, Exception], Any] | None = None,
) -> list[Any]:
    """Run ``function`` over ``items`` here, one after another (the default mapper)."""
    results = []
    for item in items:
        results.append(function(item))
        if done is not None:
            done(results[-1])
    return results

"""Mean Dice over classes, told with what it averages and what it leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean

from cellmap_core.models import Frozen

# A trivial Dice that a page of three digits shows as 1.
_EVERYWHERE = 0.9995


class Scores(Frozen):
    """Dice of each class beside its trivial Dice.

    The trivial Dice is that of calling every known voxel foreground: 1 for a class that is
    present everywhere, whatever a model has learned.

    Attributes
    ----------
    dice : dict
        Class name → Dice; None where the class could not be scored. It has all classes asked for.
    trivial : dict
        Class name → trivial Dice; None, or no entry, where it is not known.
    """

    dice: dict[str, float | None]
    trivial: dict[str, float | None] = {}

    @classmethod
    def of_record(cls, record: Mapping[str, object]) -> Scores:
        """Scores of an epoch's record, with its ``dice`` and ``trivial_dice``."""
        return cls.model_validate(
            {"dice": record.get("dice") or {}, "trivial": record.get("trivial_dice") or {}}
        )

    @property
    def scored(self) -> tuple[str, ...]:
        """Classes that have a Dice."""
        return tuple(name for name, dice in self.dice.items() if dice is not None)

    @property
    def unscored(self) -> tuple[str, ...]:
        """Classes asked for that have none."""
        return tuple(name for name, dice in self.dice.items() if dice is None)

    @property
    def everywhere(self) -> tuple[str, ...]:
        """Scored classes that are present at every known voxel, or nearly so."""
        return tuple(n for n in self.scored if (self.trivial.get(n) or 0) >= _EVERYWHERE)

    @property
    def mean(self) -> float | None:
        """Mean Dice of the classes scored; None where none is."""
        return self.mean_over(self.scored)

    @property
    def gain(self) -> float | None:
        """Mean of Dice less trivial Dice, over the classes that have both."""
        gains = [g for name in self.scored if (g := self.gain_of(name)) is not None]
        return fmean(gains) if gains else None

    @property
    def count(self) -> str:
        """How many of the classes are scored, as ``2 of 3``."""
        return f"{len(self.scored)} of {len(self.dice)}"

    def gain_of(self, name: str) -> float | None:
        """Dice less trivial Dice of a class; None where one of them is not known."""
        dice, trivial = self.dice.get(name), self.trivial.get(name)
        return None if dice is None or trivial is None else dice - trivial

    def mean_over(self, names: Iterable[str]) -> float | None:
        """Mean Dice of some classes, which are all scored; None for no class."""
        values = [dice for name in names if (dice := self.dice.get(name)) is not None]
        return fmean(values) if values else None

    def brief(self, strong: str = "") -> str:
        """The mean in one phrase, with the gain over trivial and the number of classes.

        Parameters
        ----------
        strong : str
            Mark around the mean, ``**`` on a page.
        """
        if self.mean is None:
            return f"no mean Dice, {self.count} classes scored"
        gain = "" if self.gain is None else f", {self.gain:+.3f} over trivial"
        return f"mean Dice {strong}{self.mean:.3f}{strong}{gain}, {self.count} classes scored"

    def notes(self) -> str:
        """Sentences on what the mean leaves out, and on classes that raise it for nothing."""
        sentences = []
        if self.unscored:
            sentences.append(f"Not scored: {', '.join(self.unscored)}.")
        if self.everywhere:
            rest = self.mean_over(n for n in self.scored if n not in self.everywhere)
            without = "no other class is scored" if rest is None else f"without, it is {rest:.3f}"
            sentences.append(
                f"The mean includes {', '.join(self.everywhere)}, present at every known voxel, "
                f"where calling everything foreground scores 1; {without}."
            )
        return " ".join(sentences)

"""A mean Dice says what it is over."""

import pytest

from cellmap_core.scores import Scores

SCORES = Scores(
    dice={"cell": 1.0, "mito": 0.6, "er": 0.2, "golgi": None},
    trivial={"cell": 1.0, "mito": 0.1, "er": None, "golgi": 0.3},
)


def test_the_mean_is_over_the_classes_that_could_be_scored():
    assert SCORES.scored == ("cell", "mito", "er")
    assert SCORES.mean == pytest.approx(0.6)
    # er has no trivial Dice to compare with.
    assert SCORES.gain == pytest.approx((0 + 0.5) / 2)
    assert SCORES.brief() == "mean Dice 0.600, +0.250 over trivial, 3 of 4 classes scored"


def test_what_raises_the_mean_for_nothing_and_what_it_lacks_are_named():
    assert SCORES.notes() == (
        "Not scored: golgi. The mean includes cell, present at every known voxel, where calling "
        "everything foreground scores 1; without, it is 0.400."
    )
    assert "no other class is scored" in Scores(dice={"a": 1.0}, trivial={"a": 1.0}).notes()
    assert Scores(dice={"a": 0.5}, trivial={"a": 0.2}).notes() == ""


def test_nothing_scored_is_no_mean():
    nothing = Scores.of_record({"dice": {"a": None}, "mean_dice": None})
    assert nothing.mean is None
    assert nothing.brief() == "no mean Dice, 0 of 1 classes scored"

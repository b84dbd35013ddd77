"""Task: the leaderboard over all trainings."""

from __future__ import annotations

from collections.abc import Sequence

from cellmap_core.models import Failure, StageResult, TrainResult
from cellmap_core.report.training_page import leaderboard_markdown, leaderboard_table
from tasks.artifacts import publish_page, publish_table
from tasks.house import house_task


@house_task("leaderboard")
def publish_leaderboard(
    results: Sequence[TrainResult], failures: Sequence[Failure] = ()
) -> StageResult:
    """Publish algorithm × fold × class Dice, best first; trainings that failed are named."""
    publish_table("leaderboard", leaderboard_table(results), "Dice by algorithm, fold and class")
    publish_page(
        "leaderboard-summary", leaderboard_markdown(results, failures), "Best algorithms first"
    )
    return StageResult(done=1)

"""Items that were not done yet when their job had to end."""

from __future__ import annotations

from collections import Counter
from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin


class HandOvers(SchedulerPlugin):
    """Counts how often a worker left in time while it worked at an item.

    Dask gives such an item to another worker without an error, so that one which is longer
    than every job would be begun again for ever.
    """

    def __init__(self) -> None:
        #: Hand-overs by the item's key; those that were done since are not in it.
        self.times: Counter[str] = Counter()

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Count an item that goes back from a worker; forget one that is done."""
        if start == "processing" and finish in ("released", "waiting"):
            self.times[key] += 1
        elif finish in ("memory", "erred", "forgotten"):
            self.times.pop(key, None)

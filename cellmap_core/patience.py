"""Trying again, for one crop or case alone, what may pass."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from cellmap_core.errors import may_pass

logger = logging.getLogger(__name__)

# Before what may pass (I/O, a connection) is tried again.
_PAUSES_SECONDS = (1, 5)

T = TypeVar("T")


def patiently(work: Callable[[], T]) -> T:
    """Do the work of one crop or case, again after a pause where what went wrong may pass."""
    for pause in _PAUSES_SECONDS:
        try:
            return work()
        except OSError as error:
            if not may_pass(error):
                raise
            logger.warning("%s; trying again in %d s", error, pause)
            time.sleep(pause)
    return work()

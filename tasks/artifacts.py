"""Publishing pages and tables of a run as Prefect artifacts."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.schemas.actions import ArtifactUpdate

logger = logging.getLogger(__name__)

# Each showing is a request, and small crops come by the dozen a second.
_SECONDS_BETWEEN = 1.0
# A page carries its picture.
_SECONDS_BETWEEN_PAGES = 20.0


def publish_page(key: str, markdown: str, description: str) -> None:
    """Publish a markdown page; the same key makes a history of versions."""
    create_markdown_artifact(markdown, key=artifact_key(key), description=description)


def publish_table(key: str, rows: Sequence[dict[str, Any]], description: str) -> None:
    """Publish a table (rows of plain Python values)."""
    create_table_artifact(list(rows), key=artifact_key(key), description=description)


class LivePage:
    """A markdown page of a run that changes while the run goes on.

    It is one artifact that is written anew, not a version for each epoch of days. A server that
    does not answer is passed over; see `Progress`.

    Parameters
    ----------
    key, description : str
        Of the artifact.
    """

    def __init__(self, key: str, description: str) -> None:
        self._key, self._description = artifact_key(key), description
        self._id: UUID | None = None
        self._shown = -_SECONDS_BETWEEN_PAGES

    def show(self, make: Callable[[], str], *, last: bool = False) -> None:
        """Show what ``make`` writes; passed over while the last one is fresh, but for the last."""
        now = monotonic()
        if not last and now - self._shown < _SECONDS_BETWEEN_PAGES:
            return
        self._shown = now
        try:
            if self._id is None:
                self._id = create_markdown_artifact(
                    make(), key=self._key, description=self._description
                )
            else:
                update = ArtifactUpdate(data=make())
                get_client(sync_client=True).update_artifact(self._id, update)
        except Exception as error:  # noqa: BLE001 - whatever a server comes up with
            logger.warning("page %s is not shown: %r", self._key, error)


#: Called with the name, the part done (0 to 1) and in words, each time a progress is shown.
watchers: list[Callable[[str, float, str], None]] = []


class Progress:
    """A progress bar of a run.

    A server that does not answer must not end days of work: what cannot be shown is logged
    and passed over.

    Parameters
    ----------
    key : str
        The artifact's key.
    name : str
        What makes progress.
    """

    def __init__(self, key: str, name: str) -> None:
        self._key, self._name = artifact_key(key), name
        self._id: UUID | None = None
        self._shown = -_SECONDS_BETWEEN
        self.show(0.0, "starting")

    def show(self, part: float, what: str) -> None:
        """Show how much is done (0 to 1), and in words; passed over while the last is fresh."""
        for watch in watchers:
            watch(self._name, part, what)
        now = monotonic()
        if part < 1 and now - self._shown < _SECONDS_BETWEEN:
            return
        self._shown = now
        percent, description = round(100 * part, 1), f"{self._name}: {what}"
        try:
            if self._id is None:
                self._id = create_progress_artifact(percent, key=self._key, description=description)
            else:
                update_progress_artifact(self._id, percent, description=description)
        except Exception as error:  # noqa: BLE001 - whatever a server comes up with
            logger.warning("progress of %s is not shown: %r", self._name, error)


def artifact_key(text: str) -> str:
    """Prefect's form of a key: lower case letters, digits and single dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")

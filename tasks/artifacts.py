"""Publishing pages and tables of a run as Prefect artifacts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact


def publish_page(key: str, markdown: str, description: str) -> None:
    """Publish a markdown page; the same key makes a history of versions."""
    create_markdown_artifact(markdown, key=artifact_key(key), description=description)


def publish_table(key: str, rows: Sequence[dict[str, Any]], description: str) -> None:
    """Publish a table (rows of plain Python values)."""
    create_table_artifact(list(rows), key=artifact_key(key), description=description)


def artifact_key(text: str) -> str:
    """Prefect's form of a key: lower case letters, digits and single dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")

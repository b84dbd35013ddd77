"""Files of one record a line, which several processes add to and any of them may leave torn."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from cellmap_core.models import Frozen

M = TypeVar("M", bound=Frozen)


def append_line(path: Path, line: str) -> None:
    """Add a line; whole lines of several writers do not mix.

    A line that a writer left torn when it was killed is closed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o664)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, f"{chr(10) if torn else ''}{line}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_lines(path: Path, model: type[M]) -> tuple[M, ...]:
    """The records of a file; none where there is no file.

    A line that is torn, or of another version, is passed over.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return ()
    records = []
    for line in lines:
        try:
            records.append(model.model_validate_json(line))
        except ValidationError:
            continue
    return tuple(records)

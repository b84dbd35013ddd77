"""CSV files of crops as people write them: their rows, and where their relative paths start."""

from __future__ import annotations

import csv
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from cellmap_core import remote
from cellmap_core.errors import DatasplitError, OptionError, RowError, StoreError
from cellmap_core.paths import expand, expand_path

# Stands for a comma inside [nuc,mito] while a row is split at its commas.
_INNER_COMMA = "\x1f"
_BRACKETS = re.compile(r"\[[^\]]*\]")
# What pandas and other tools write into a cell that has no value.
_NO_VALUE = frozenset({"", "nan", "none", "null", "na", "n/a", "#n/a", "<na>", "nat"})
# What a Path leaves of s3://bucket/…: one slash.
_FAR = re.compile(r"^(\w{2,}):/+(?=[^/])")


def read_rows(path: Path, expected: str) -> list[tuple[int, str]]:
    """Rows of a CSV with their line numbers, without empty lines and ``#`` comments.

    Parameters
    ----------
    path : Path
        The file.
    expected : str
        What it should be, for messages.

    Raises
    ------
    DatasplitError
        The file is missing or is not text.
    """
    return [
        (number, line.strip())
        for number, line in enumerate(_read_text(path, expected).splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]


def columns(row: str) -> list[str]:
    """The columns of a row; commas inside brackets do not end one, quoted or not."""
    protected = _BRACKETS.sub(lambda m: m.group().replace(",", _INNER_COMMA), row)
    split = next(csv.reader([protected], skipinitialspace=True), [])
    return [column.replace(_INNER_COMMA, ",").strip() for column in split]


def is_empty(cell: str) -> bool:
    """Whether a cell holds nothing, or what tools write for nothing (``nan``, ``None``, …)."""
    return cell.strip().lower() in _NO_VALUE


def named_columns(names: Sequence[str], row: str) -> dict[str, str]:
    """Return the cells of a row that have a value, by the names of their columns.

    Raises
    ------
    RowError
        The row has more columns than there are names.
    """
    values = columns(row)
    if len(values) > len(names):
        raise RowError(f"{len(values)} columns", f"{len(names)} as in the header")
    return {n: v for n, v in zip(names, values, strict=False) if not is_empty(v)}


def start_of_paths(path: Path, data_root: str | None) -> str:
    """Where the relative paths of a CSV start: ``data_root``, else the CSV's folder.

    Raises
    ------
    OptionError
        ``data_root`` is neither a folder nor a remote root that can be read.
    """
    if not data_root:
        return str(path.resolve().parent)
    expected = "a folder, s3://bucket[/prefix] or http(s)://…"
    if "://" not in data_root:
        folder = expand_path(data_root)
        if not folder.is_dir():
            raise OptionError(f"data_root {folder} is no folder", expected, "check the path")
        return str(folder.resolve())
    if not urlsplit(data_root).netloc:
        raise OptionError(f"data_root {data_root} names no bucket or server", expected)
    try:
        remote.split(data_root)
    except StoreError as error:
        raise OptionError(f"data_root {error.found}", expected) from error
    return data_root.rstrip("/")


def absolute(location: str, start: str) -> str:
    """Return a location of a CSV with ``~`` and variables replaced, as an absolute one.

    Raises
    ------
    PathError
        A variable is not set, or a home folder is not known.
    """
    location = expand(location, start)
    if "://" not in location and not location.startswith("/"):
        location = f"{start.rstrip('/')}/{location}"
    # One place has one spelling, so that a crop listed twice is seen to be one.
    scheme, mark, path = location.rpartition("://")
    if not mark:
        return posixpath.normpath(path)
    host, _, key = path.partition("/")
    return f"{scheme}://{host}{posixpath.normpath(f'/{key}') if key else ''}".rstrip("/")


def refuse_remote(path: Path) -> None:
    """Refuse what was given as ``s3://…`` where only a local path can be read.

    Raises
    ------
    DatasplitError
        The path is the rest of a URL.
    """
    if _FAR.match(str(path)):
        given = _FAR.sub(r"\1://", str(path))
        raise DatasplitError(
            f"{given} is remote",
            "a local CSV, folder or glob",
            "write a CSV of its crops and set data_root to where its paths start",
        )


def _read_text(path: Path, expected: str) -> str:
    refuse_remote(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DatasplitError(f"no file {path}", expected, "check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasplitError(f"{path} cannot be read ({error})", expected) from error

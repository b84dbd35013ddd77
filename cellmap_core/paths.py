"""Paths as people write them: ``~`` and ``$VARIABLES`` replaced where no shell did it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from cellmap_core.errors import OptionError, PathError

_VARIABLE = re.compile(r"\$(?:(?P<plain>[A-Za-z_]\w*)|\{(?P<braced>[^}]*)\})")
# A URL, also one that a Path has left one slash of.
_REMOTE = re.compile(r"\w{2,}:/")


def expand(path: str, start: str | Path = "") -> str:
    """Return a path with its leading ``~`` and all ``$NAME`` and ``${NAME}`` replaced.

    Variables are replaced first, as in a configuration file whose variable holds ``~/data``.
    A URL is returned unchanged, and so is the path of a file whose own name holds a ``$``.
    Other paths stay as relative or absolute as they are.

    Parameters
    ----------
    path : str
        The path as it was written.
    start : str or Path
        The folder from which a relative path starts (default: the current folder).

    Raises
    ------
    PathError
        A variable is not set or empty, or a home folder is not known.
    """
    if _REMOTE.match(path) or ("$" in path and Path(start, path).exists()):
        return path
    filled = _VARIABLE.sub(_value, path)
    if not filled.startswith("~"):
        return filled
    home = os.path.expanduser(filled)  # noqa: PTH111 - Path.expanduser raises no error of ours
    if home.startswith("~"):
        user = filled.partition("/")[0]
        raise PathError(
            f"the home folder {user} is not known here, in the path {path}",
            "",
            "set HOME, or give an absolute path",
        )
    return home


def expand_path(path: str | Path, start: str | Path = "") -> Path:
    """Return `expand` of a command-line value or an environment variable as a Path.

    Raises
    ------
    OptionError
        A variable is not set or empty, or a home folder is not known.
    """
    try:
        return Path(expand(str(path), start))
    except PathError as error:
        raise OptionError(error.found, error.expected, error.do) from error


def _value(match: re.Match[str]) -> str:
    name = match["plain"] or match["braced"]
    # An empty one would turn $SCRATCH/data into /data.
    if value := os.environ.get(name):
        return value
    raise PathError(
        f"${name} is not set here, in the path {match.string}",
        "",
        "set it where the run is started, or write the path out",
    )


def _expanded(value: Any) -> Any:
    """Expand a text or a Path; other types are left to pydantic to refuse."""
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        return value
    try:
        return expand(value)
    except PathError as error:
        raise ValueError(str(error)) from error


#: A field of a model that holds a path; ``~`` and variables are replaced.
Place = Annotated[Path, BeforeValidator(_expanded)]
#: The same of a path or a URL.
Location = Annotated[str, BeforeValidator(_expanded)]

"""Command lines made from option models: flags, values, and the YAML config file.

Explicit beats file beats default. Unknown names are refused with the valid ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from cellmap_core.classes import suggest
from cellmap_core.errors import OptionError, PathError
from cellmap_core.options import MODELS
from cellmap_core.paths import expand_path

M = TypeVar("M", bound=BaseModel)

#: Name of the option that holds a YAML file of all others.
CONFIG = "config"


def parse(model: type[M], arguments: Sequence[str], program: str) -> M:
    """Read options from a command line.

    Parameters
    ----------
    model : type of BaseModel
        The options there are.
    arguments : sequence of str
        The command line without the program's name.
    program : str
        The program's name, for the help.

    Raises
    ------
    OptionError
        An option or a value is unknown; the message names the valid ones.
    SystemExit
        With status 0, after printing the help.
    """
    given = vars(_parser(model, program).parse_args(arguments))
    config = given.pop(CONFIG, None)
    return merge(model, given, expand_path(config) if config else None)


def merge(model: type[M], explicit: Mapping[str, Any], config: Path | None) -> M:
    """Options from explicit values over those of a config file over the defaults.

    Raises
    ------
    OptionError
        The file cannot be read, or a name or value is not valid.
    """
    values = {**(_of_stage(_read_config(config), model) if config else {}), **explicit}
    for name in values:
        if name not in model.model_fields:
            raise OptionError(
                f"unknown option {name!r}", "", suggest(name, list(model.model_fields))
            )
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise OptionError(*_first_problem(error, model)) from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise OptionError(f"no config file {path}", "a YAML file of options") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        line = str(error).replace("\n", " ")
        raise OptionError(f"{path} cannot be read ({line})", "a YAML file of options") from error
    if not isinstance(document, dict):
        raise OptionError(f"{path} holds no options", "lines of name: value")
    return {str(name): value for name, value in document.items()}


def _of_stage(values: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Leave out what is an option of other stages: one file may hold those of all."""
    others = set(MODELS["full"].model_fields) - set(model.model_fields)
    return {name: value for name, value in values.items() if name not in others}


def _first_problem(error: ValidationError, model: type[BaseModel]) -> tuple[str, str, str]:
    """Return what was found, what was expected and what to do."""
    # Of a union the last branch is the one that says what forms there are.
    problem = error.errors()[-1]
    name = str(problem["loc"][0]) if problem["loc"] else model.__name__
    field = model.model_fields.get(name)
    about = (field.description if field else "") or ""
    raised = problem.get("ctx", {}).get("error")
    if isinstance(raised, Exception) and isinstance(cause := raised.__cause__, PathError):
        return f"{name}: {cause.found}", cause.expected, cause.do
    said, found = problem["msg"], f"{name}={problem['input']!r}"
    for start in ("Value error, give ", "Input should be "):
        if said.startswith(start):
            return found, said.removeprefix(start) + (f" ({about})" if about else ""), ""
    return f"{found} ({said.removeprefix('Value error, ')})", about, ""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        raise OptionError(message, "", f"see {self.prog} --help")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [s for a in self._actions for s in a.option_strings if s.startswith("--")]
            name = unknown[0].split("=")[0]
            raise OptionError(f"unknown option {name}", "", suggest(name, flags))
        return known


def _parser(model: type[BaseModel], program: str) -> _Parser:
    parser = _Parser(
        prog=program,
        description=(model.__doc__ or "").strip(),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(f"--{CONFIG}", metavar="FILE", help="YAML file of options; flags win")
    for name, field in model.model_fields.items():
        parser.add_argument(f"--{name}", help=_help(field), **_shape(name, field))
    return parser


def _help(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else default
    text = (
        f"{field.description} (default: {shown})" if shown not in (None, {}) else field.description
    )
    return str(text).replace("%", "%%")


def _shape(name: str, field: FieldInfo) -> dict[str, Any]:
    """How many words an option takes, from its type."""
    annotation = str(field.annotation)
    if field.annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    if "dict" in annotation:
        return {"nargs": "+", "action": _Assignments, "metavar": "NAME=VALUE"}
    if "list" in annotation or "tuple" in annotation:
        return {"nargs": "+", "metavar": name.upper()}
    return {"metavar": name.upper()}


class _Assignments(argparse.Action):
    """Collects NAME=VALUE words; the values are read as YAML."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        pairs = dict(getattr(namespace, self.dest, {}))
        for word in values:
            name, equals, value = word.partition("=")
            if not equals:
                raise OptionError(f"{option} {word}", "NAME=VALUE")
            try:
                pairs[name] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise OptionError(f"{option} {word}", "a value as YAML has it") from error
        setattr(namespace, self.dest, pairs)


def fail(error: Exception, code: int) -> int:
    """Print an error as one line on standard error and give the exit code back."""
    print(f"error: {error}", file=sys.stderr)
    return code

"""Site profiles: what each stage's jobs ask of one cluster, in one YAML file.

A profile is checked twice before anything is submitted: its names and values when it is read,
and against the partitions, nodes and limits of the cluster itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from cellmap_core.classes import suggest
from cellmap_core.cluster.jobs import Mail, Name, Resources
from cellmap_core.errors import PathError, ProfileError
from cellmap_core.models import Frozen
from cellmap_core.paths import Location, Place, expand, expand_path

#: Names the profile of the site, a YAML file, for flows and workers.
SITE_VARIABLE = "AUTO3DSEG_SITE"
#: Where the logs of a run's jobs go, once it runs: ``log_dir`` of where it was submitted.
LOGS_VARIABLE = "AUTO3DSEG_LOGS"

Stage = Literal["flow", "convert", "analyze", "train", "ensemble"]
#: What runs in jobs of its own; ``flow`` is the run itself, which starts the others.
STAGES: tuple[Stage, ...] = get_args(Stage)


def _texts(value: Any) -> Any:
    """Variables as a shell has them: numbers are texts there."""
    if not isinstance(value, dict):
        return value
    return {
        name: str(v) if isinstance(v, int | float) and not isinstance(v, bool) else v
        for name, v in value.items()
    }


_VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Variables = Annotated[dict[_VariableName, str], BeforeValidator(_texts)]


class Stages(Frozen):
    """What a job of each stage asks for."""

    flow: Resources = Resources(cores=2, memory_gb=6, hours=24)
    convert: Resources = Resources(jobs=4, cores=4, memory_gb=8, hours=12)
    analyze: Resources = Resources(jobs=4, cores=4, memory_gb=8, hours=12)
    train: Resources = Resources(jobs=4, cores=8, memory_gb=64, hours=24, gpus=1)
    ensemble: Resources = Resources(cores=8, memory_gb=64, hours=24, gpus=1)


class Site(Frozen):
    """A cluster, as this project uses it."""

    name: str = Field(description="of the cluster")
    description: str = ""
    setup: str = Field(
        "",
        description="shell lines every job runs first: modules, conda, a container's aliases",
    )
    environment: Variables = Field({}, description="variables every job gets")
    python: Location | None = Field(
        None,
        description="Python of the project in a job, after setup (default: the one that submits)",
    )
    log_dir: Place = Field(Path("logs"), description="where the jobs' logs go; on a shared disk")
    scratch: Place | None = Field(
        None, description="node-local folder for temporary files (default: the node's own TMPDIR)"
    )
    network_interface: Name | None = Field(
        None, description="over which the jobs of a run talk, such as ib0 (default: the host's)"
    )
    mail: Mail | None = Field(None, description="whom SLURM writes to about a run's own job")
    warn_seconds: int = Field(
        300,
        ge=60,
        description="this long before its wall time is over a job is told, to save and go on in "
        "another; SLURM may be a minute off",
    )
    fruitless_jobs: int = Field(
        3, ge=1, description="work fails after so many jobs in a row without any progress"
    )
    restarts: int = Field(
        20,
        ge=0,
        description="how often a run's own job, and in a row without progress any other, is begun "
        "again after the cluster took it away; wall times do not count",
    )
    stages: Stages = Field(Stages(), description="what the jobs of each stage ask for")

    @model_validator(mode="after")
    def _warned_in_time(self) -> Site:
        for name, stage in self.each().items():
            if stage.minutes * 60 < 2 * self.warn_seconds:
                raise ValueError(
                    f"stages.{name}.hours is {stage.hours:g}, less than twice warn_seconds"
                )
        return self

    def of(self, stage: Stage) -> Resources:
        """What a job of a stage asks for."""
        return getattr(self.stages, stage)  # type: ignore[no-any-return]

    def each(self) -> dict[Stage, Resources]:
        """What a job asks for, stage by stage."""
        return {stage: self.of(stage) for stage in STAGES}

    def with_stage(self, stage: Stage, changed: Mapping[str, Any]) -> Site:
        """The profile with some values of a stage changed.

        Raises
        ------
        ProfileError
            A name or value is not valid.
        """
        values = self.model_dump(exclude_unset=True)
        own = {**self.of(stage).model_dump(exclude_unset=True), **changed}
        values["stages"] = {**self.stages.model_dump(exclude_unset=True), stage: own}
        try:
            return type(self).model_validate(values)
        except ValidationError as error:
            raise ProfileError(f"{self.name}: {_problem(error)}") from error


def read_site(path: Path) -> Site:
    """Read a profile.

    ``defaults`` of a file holds values for all its stages.

    Raises
    ------
    ProfileError
        The file cannot be read, or a name or value in it is not valid.
    """
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        raise ProfileError(f"no site profile {path}", "a YAML file") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise ProfileError(f"{path} cannot be read ({said})", "a YAML file") from error
    if not isinstance(document, dict):
        raise ProfileError(f"{path} holds no profile", "lines of name: value")
    try:
        _Defaults.model_validate({"defaults": document.get("defaults") or {}})
        return Site.model_validate(_with_defaults(document))
    except ValidationError as error:
        raise ProfileError(f"{path}: {_problem(error)}") from error


def site_of(environment: Mapping[str, str] = os.environ) -> Site | None:
    """The profile that the environment names; None where the work runs on this machine.

    Raises
    ------
    ProfileError
        It names one that cannot be used.
    """
    path = environment.get(SITE_VARIABLE)
    if not path:
        return None
    site = read_site(named_site(path))
    logs = environment.get(LOGS_VARIABLE)
    return site.model_copy(update={"log_dir": expand_path(logs)}) if logs else site


def named_site(path: str | Path) -> Path:
    """Return the file that ``AUTO3DSEG_SITE`` or an option names.

    Raises
    ------
    ProfileError
        A variable in the path is not set, or a home folder is not known.
    """
    try:
        return Path(expand(str(path)))
    except PathError as error:
        raise ProfileError(error.found, error.expected, error.do) from error


class _Loader(yaml.SafeLoader):
    """YAML without its traps: ``2:30`` is a text, not 150, and a name stands once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping, each name once."""
        names = [key.value for key, _ in node.value]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.YAMLError(f"{twice!r} stands there twice")
        return super().construct_mapping(node, deep)


# YAML 1.1 counts in sixties what has colons in it.
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, re.compile(rf"(?!.*:)(?:{pattern.pattern})", re.VERBOSE))
        if tag.endswith((":int", ":float"))
        else (tag, pattern)
        for tag, pattern in resolvers
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Defaults(Frozen):
    """Looked at by themselves, so that what is wrong in them is told as theirs."""

    defaults: Resources


def _with_defaults(document: dict[str, Any]) -> dict[str, Any]:
    """The document with what stands under ``defaults`` in every stage that does not say it."""
    values = dict(document)
    defaults = values.pop("defaults", None) or {}
    stages = values.get("stages") or {}
    if not isinstance(stages, dict):
        return values | {"stages": stages}
    known = Stages()
    filled = {
        name: {**getattr(known, name).model_dump(exclude_unset=True), **defaults, **(given or {})}
        if isinstance(given, dict | None) and name in STAGES
        else given
        for name, given in {**dict.fromkeys(STAGES), **stages}.items()
    }
    return values | {"stages": filled}


def _problem(error: ValidationError) -> str:
    """The first thing wrong, with the valid names where a name is unknown."""
    problems = error.errors()
    # What nobody knows the name of explains what is missing.
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"{place} is missing"
    if problem["type"] != "extra_forbidden":
        found = "" if problem["type"] == "value_error" and not place else f" {problem['input']!r}"
        return f"{place}{found}: {problem['msg'].removeprefix('Value error, ')}".removeprefix(": ")
    above = problem["loc"][:-1]
    valid: dict[tuple[int | str, ...], Sequence[str]] = {
        (): [*Site.model_fields, "defaults"],
        ("mail",): list(Mail.model_fields),
        ("stages",): STAGES,
    }
    names = valid.get(above, list(Resources.model_fields))
    return f"unknown {place}; {suggest(str(problem['loc'][-1]), list(names))}"

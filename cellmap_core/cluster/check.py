"""A site profile against the cluster: what it asks for must be there, or nothing is submitted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from math import ceil
from pathlib import Path

from cellmap_core.classes import suggest
from cellmap_core.cluster.jobs import JobSpec, Resources, comment_of
from cellmap_core.cluster.profiles import Site, Stage
from cellmap_core.cluster.slurm import Slurm
from cellmap_core.errors import ProfileError, SubmissionRefused
from cellmap_core.models import Frozen

_COLUMNS = "%N|%P|%c|%m|%G|%f|%l"
_MIB_PER_GB = 1000**3 / 2**20


class Node(Frozen):
    """A node as one of its partitions offers it.

    Attributes
    ----------
    gpus : dict
        Number of GPUs by type; the type is empty where the cluster names none.
    minutes : int or None
        Longest wall time of the partition; None where there is no limit.
    """

    name: str
    partition: str
    default: bool
    cores: int
    memory_mib: int
    gpus: dict[str, int]
    features: frozenset[str]
    minutes: int | None


_PASSING = re.compile(r"inactive or drain|down, drained or reserved", re.IGNORECASE)


def nodes_of(slurm: Slurm) -> list[Node]:
    """All nodes of the cluster, once for each partition they are in."""
    said = slurm.show("sinfo", "--noheader", "--Node", f"--format={_COLUMNS}")
    return [_node(line) for line in said.splitlines() if line.count("|") == 6]


def check_site(
    site: Site, slurm: Slurm, stages: Iterable[Stage] | None = None, *, ask: bool = True
) -> None:
    """Refuse a profile that asks for what the cluster does not have.

    Parameters
    ----------
    site : Site
        The profile.
    slurm : Slurm
        The cluster.
    stages : iterable of str, optional
        Those to look at (default: all).
    ask : bool
        Whether SLURM is asked too, by a test of a submission, not only the list of its nodes.

    Raises
    ------
    ProfileError
        With every problem found, each naming what there is.
    """
    problems = list(problems_of(site, slurm, stages, ask=ask))
    if problems:
        raise ProfileError(
            f"the site profile {site.name} does not fit this cluster: " + "; ".join(problems)
        )


def problems_of(
    site: Site, slurm: Slurm, stages: Iterable[Stage] | None = None, *, ask: bool = True
) -> Iterator[str]:
    """What is wrong with each stage: by the list of nodes, else by SLURM's own word."""
    nodes = nodes_of(slurm)
    chosen = None if stages is None else set(stages)
    for name, asked in site.each().items():
        if chosen is not None and name not in chosen:
            continue
        found = False
        for problem in _against(asked, nodes):
            found = True
            yield f"stages.{name}.{problem}"
        if ask and not found:
            try:
                slurm.test(_probe(site, name, asked))
            except SubmissionRefused as error:
                # What is down today is waited for, as any job would.
                if not _PASSING.search(str(error)):
                    yield f"stages.{name}: {error}"


def _probe(site: Site, stage: Stage, asked: Resources) -> JobSpec:
    return JobSpec(
        name=f"test {stage}",
        command=("true",),
        resources=asked,
        comment=comment_of("test", stage),
        log=Path("/dev/null"),
        working_dir=Path("/"),
        warn_seconds=site.warn_seconds,
    )


def _against(asked: Resources, nodes: list[Node]) -> Iterator[str]:
    """What no node of the partition has; the first thing that rules all of them out."""
    partitions = sorted({node.partition for node in nodes})
    if asked.partition is not None:
        unknown = [p for p in asked.partition.split(",") if p not in partitions]
        if unknown:
            yield f"partition: no {unknown[0]!r}; {suggest(unknown[0], partitions)}"
            return
        nodes = [n for n in nodes if n.partition in asked.partition.split(",")]
    else:
        nodes = [n for n in nodes if n.default]
        if not nodes:
            yield f"partition: the cluster has no default one; {suggest('', partitions)}"
            return
    yield from _features(asked, nodes)
    yield from _limits(asked, nodes)


def _features(asked: Resources, nodes: list[Node]) -> Iterator[str]:
    there = sorted(set().union(*(n.features for n in nodes)))
    for word in re.split(r"\*\d+|[&|,!()\[\]]", asked.constraint or ""):
        if word and word not in there:
            yield f"constraint: no node has {word!r}; {_instead(word, there)}"


def _limits(asked: Resources, nodes: list[Node]) -> Iterator[str]:
    where = asked.partition or "the default partition"
    if asked.gpus:
        types = sorted({t for n in nodes for t in n.gpus})
        if not types:
            yield f"gpus: no node of {where} has a GPU"
        elif asked.gpu_type is not None and asked.gpu_type not in types:
            known = [t for t in types if t]
            yield f"gpu_type: no {asked.gpu_type!r}; {_instead(asked.gpu_type, known)}"
        elif (most := max(_gpus(n, asked.gpu_type) for n in nodes)) < asked.gpus:
            yield f"gpus: {asked.gpus} asked, a node of {where} has {most}"
    if (most := max(n.cores for n in nodes)) < asked.cores:
        yield f"cores: {asked.cores} asked, a node of {where} has {most}"
    if (most := max(n.memory_mib for n in nodes)) < ceil(asked.memory_gb * _MIB_PER_GB):
        yield (
            f"memory_gb: {asked.memory_gb:g} asked, a node of {where} has "
            f"{most / _MIB_PER_GB:.1f} for jobs"
        )
    times = [n.minutes for n in nodes]
    if None not in times and (longest := max(t or 0 for t in times)) < asked.minutes:
        yield f"hours: {asked.hours:g} asked, {where} allows {longest / 60:.3g}"


def _instead(name: str, there: list[str]) -> str:
    return suggest(name, there) if there else "the cluster names none there: leave it out"


def _gpus(node: Node, kind: str | None) -> int:
    return sum(node.gpus.values()) if kind is None else node.gpus.get(kind, 0)


def _node(line: str) -> Node:
    name, partition, cores, memory, gres, features, limit = line.split("|")
    return Node(
        name=name,
        partition=partition.rstrip("*"),
        default=partition.endswith("*"),
        cores=int(cores.rstrip("+")),
        memory_mib=int(memory.rstrip("+")),
        gpus=_gpus_of(gres),
        features=frozenset(f for f in features.split(",") if f and f != "(null)"),
        minutes=_minutes(limit),
    )


def _gpus_of(gres: str) -> dict[str, int]:
    """``gpu:a100:2(S:0-1),gpu:4`` by type."""
    found: dict[str, int] = {}
    for kind, count in re.findall(r"(?:^|,)gpu(?::([^:,(]+))??:(\d+)", gres):
        found[kind] = found.get(kind, 0) + int(count)
    return found


def _minutes(limit: str) -> int | None:
    """A wall time as SLURM prints it, ``days-hours:minutes:seconds``, in minutes."""
    if not (match := re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit.strip())):
        return None
    days, hours, minutes, _ = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + minutes

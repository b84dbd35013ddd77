"""Test each hop between you, the Prefect server and the cluster's jobs, before a run.

One line a hop: ok, warning or FAILED, with what was found and what to mend. Exit codes: 0 no
hop failed, 1 one did, 2 the command is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from cellmap_core.cluster.profiles import SITE_VARIABLE, STAGES, named_site, read_site
from cellmap_core.cluster.slurm import Slurm
from cellmap_core.errors import CellmapError
from cellmap_core.paths import expand_path
from deployments.doctor import api as apis
from deployments.doctor import cluster, places
from deployments.doctor.finding import Finding, Level
from deployments.doctor.node import from_node
from deployments.doctor.probe import Asked
from deployments.doctor.probe import main as probe

_COMMAND_SECONDS = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``python -m deployments.doctor``; give its exit code back."""
    given = _parser().parse_args(arguments)
    if given.probe is not None:
        asked = Asked(
            report=given.probe,
            listener=given.listener,
            gpus=given.gpus,
            interface=given.interface,
            marker=given.marker,
            scratch=given.scratch,
        )
        return probe(asked)
    # A polite end of this process must still cancel its jobs.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    code = 0
    examination = examine(given.site, given.work_dir.resolve(), given.from_node, given.wait)
    try:
        with contextlib.closing(examination):
            for finding in examination:
                _say(finding.line())
                code = 1 if finding.level is Level.FAILED else code
    except KeyboardInterrupt:
        _say("interrupted; its jobs are cancelled")
        return 130
    return code


def examine(
    profile: Path | None, work_dir: Path, nodes: bool, wait_seconds: float
) -> Generator[Finding, None, None]:
    """All checks, those first that others rest on.

    Parameters
    ----------
    profile : Path or None
        The site's; without it the work runs on this machine.
    work_dir : Path
        Folder of the data and models.
    nodes : bool
        Whether to look from compute nodes too.
    wait_seconds : float
        How long for those jobs.
    """
    slurm = Slurm(timeout_seconds=_COMMAND_SECONDS)
    answers, others = False, set[str]()
    if profile is not None:
        yield (finding := cluster.check_commands(slurm))
        if answers := finding.level is not Level.FAILED:
            others = cluster.elsewhere(slurm)
    yield from _server(others, "slurm" if profile else None)
    yield (place := places.check_folder("work folder", work_dir, others))
    if profile is None:
        return
    yield (finding := cluster.check_profile(profile))
    if finding.level is Level.FAILED:
        return
    site = read_site(profile)
    yield places.check_folder("log_dir", site.log_dir, others)
    yield _here(cluster.check_interface(site.network_interface))
    if not answers:
        return
    for stage in STAGES:
        yield cluster.check_stage(site, slurm, stage)
    if nodes and place.level is not Level.FAILED:
        yield from from_node(site, slurm, apis.configured(), work_dir, wait_seconds, _say)


def _server(others: set[str], pool: str | None) -> Iterator[Finding]:
    api = apis.configured()
    yield (finding := apis.check_api(api))
    if api is None:
        return
    yield apis.check_proxy(api)
    yield apis.check_address(api, others)
    if finding.level is Level.FAILED:
        return
    yield apis.check_auth(api)
    yield apis.check_database(api)
    yield (finding := apis.check_pool(api, pool))
    if finding.level is not Level.FAILED:
        yield apis.check_worker(api)
        yield apis.check_deployments(api)


def _here(interface: Finding) -> Finding:
    """What this host does not have, the node of the run's own job may have all the same."""
    if interface.level is not Level.FAILED:
        return interface
    return interface.model_copy(update={"level": Level.WARNING})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deployments.doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    named = os.environ.get(SITE_VARIABLE)
    parser.add_argument(
        "--site",
        type=expand_path,
        default=named_site(named) if named else None,
        help=f"profile of the cluster (default: what {SITE_VARIABLE} names)",
    )
    parser.add_argument(
        "--work_dir",
        type=expand_path,
        default=Path(),
        help="folder that runs write to (default: this one)",
    )
    parser.add_argument(
        "--from-node", action="store_true", help="look from compute nodes too, by tiny jobs"
    )
    parser.add_argument(
        "--wait", type=float, default=600, metavar="SECONDS", help="for those jobs (default: 600)"
    )
    # What the doctor asks of itself on a node.
    parser.add_argument("--probe", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--listener", help=argparse.SUPPRESS)
    parser.add_argument("--gpus", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--interface", help=argparse.SUPPRESS)
    parser.add_argument("--marker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    return parser


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CellmapError as error:
        _say(f"error: {error}")
        sys.exit(error.exit_code)

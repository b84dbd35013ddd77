"""The service on one machine: a Prefect server, the work pool, the deployments, a worker.

``run`` brings it up, runs the main job on a small synthetic data set and takes it down;
``up`` and ``down`` keep it for daily use. Everything lives under one folder: the server's
database, the logs, and the record of what is running.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cellmap_core.errors import CellmapError, ServiceError
from cellmap_core.paths import expand_path
from cellmap_core.phantom import write_phantom
from deployments import service
from deployments.service import ROOT, Service

#: Options of the demonstration: a network that trains in a minute on two cores.
DEMO_OPTIONS = {
    "num_fold": 2,
    "num_epochs": 5,
    "algos": ["segresnet"],
    "overrides": {
        "init_filters": 8,
        "blocks_down": [1, 1, 1],
        "patch_size_vox": [32, 32, 32],
        "batch_size": 4,
        "num_steps_per_epoch": 24,
        "learning_rate": 0.002,
    },
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command of ``python -m deployments.local``; give its exit code back."""
    parser = argparse.ArgumentParser(prog="python -m deployments.local", description=__doc__)
    parser.add_argument("command", choices=["run", "up", "down"])
    parser.add_argument(
        "--home", type=expand_path, default=ROOT / "work", help="where everything lives"
    )
    # A polite end of this process must still take down what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        given = parser.parse_args(arguments)
        return {"run": run, "up": up, "down": down}[given.command](given.home.resolve())
    except CellmapError as error:
        _say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _say("interrupted; what was started is stopped")
        return 130


def run(home: Path) -> int:
    """Bring the service up, run the main job on the phantom, take the service down."""
    _refuse_second(home)
    started = time.monotonic()
    datasplit = write_phantom(home / "data")
    _say(f"Synthetic CellMap data: {datasplit}")
    served = service.start(home)
    try:
        parameters = {
            "datasplit": str(datasplit),
            "output_dir": str(home / "nifti_data"),
            "work_dir": str(home / "work_dir"),
            **DEMO_OPTIONS,
        }
        code = service.prefect(
            home,
            ["deployment", "run", "auto3dseg/full", "--watch", "--params", json.dumps(parameters)],
            served,
        ).returncode
        _say_where(home, served, code, time.monotonic() - started)
    finally:
        service.stop(home)
    return 0 if code == 0 else 1


def up(home: Path) -> int:
    """Bring the service up and leave it running."""
    _refuse_second(home)
    served = service.start(home)
    environment = service.environment_file(home)
    _say(f"The service is up: {served.url} (logs in {home / 'logs'})")
    _say(f"Use it:   . {shlex.quote(str(environment))}")
    _say("          prefect deployment run auto3dseg/full --watch --param datasplit=…")
    _say("End it:   make down")
    return 0


def down(home: Path) -> int:
    """End the service that ``up`` left running, also one that does not answer any more."""
    if service.read(home) is None:
        _say("No service is running.")
        return 0
    service.stop(home)
    _say("The service is down.")
    return 0


def _refuse_second(home: Path) -> None:
    if served := service.running(home):
        raise ServiceError(f"a service is running already at {served.url}", "", "make down first")
    service.stop(home)  # Half of one may be left by a killed run.


def _say_where(home: Path, served: Service, code: int, seconds: float) -> None:
    _say("")
    _say(f"The run {'completed' if code == 0 else 'FAILED'} after {seconds:.0f} s.")
    _say(f"Converted crops:  {home / 'nifti_data'}")
    _say(f"Data report:      {home / 'work_dir' / 'analysis.md'}")
    _say(f"Models:           {home / 'work_dir'}/segresnet_<fold>/model")
    _say(f"Predictions:      {home / 'work_dir' / 'ensemble_output'}")
    _say(f"Artifacts and UI: make up, then {served.url} (Runs, Artifacts)")


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())

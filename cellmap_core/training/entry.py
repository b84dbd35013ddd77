"""The process of a training: what a bundle's ``train.py`` runs.

``python train.py run --config_file='a.yaml,b.yaml' --key=value …``, as MONAI calls it. Exit
codes: 0 trained, 75 ended from outside and can go on, else that of the failure.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from cellmap_core.cluster.here import ending
from cellmap_core.errors import CellmapError, OptionError, TrainingInterrupted
from cellmap_core.machine import keep_memory
from cellmap_core.paths import expand_path
from cellmap_core.training.config_files import read_config
from cellmap_core.training.launch import (
    ERROR_MARK,
    EXIT_GO_ON,
    GO_ON_MARK,
    PARENT_VARIABLE,
    stop_files,
)

logger = logging.getLogger(__name__)

# SIGUSR1 and SIGUSR2 are what clusters send before the wall time is over.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def main(arguments: Sequence[str]) -> int:
    """Train, and turn every failure of ours into one line and an exit code.

    Parameters
    ----------
    arguments : sequence of str
        ``run``, ``--config_file=…`` and overrides.

    Returns
    -------
    int
        The exit code.
    """
    # The parent reads this process line by line: its log is its standard output.
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s", force=True)
    keep_memory()
    stop = _watch()
    try:
        files, overrides = parse(arguments)
        config = read_config(files, overrides)
        bundle = files[0].resolve().parents[1]
        # Only now: what is wrong with the call is told before torch is loaded.
        from cellmap_core.training.run import train
        from cellmap_core.training.team import team

        with team() as together:
            logging.getLogger("cellmap_core").setLevel(
                logging.INFO if together.leads else logging.ERROR
            )
            train(config, bundle, stop(bundle), together)
    except TrainingInterrupted as error:
        logger.info("%s%s", GO_ON_MARK, error)
        return EXIT_GO_ON
    except CellmapError as error:
        logger.error("%s%s", ERROR_MARK, error)  # noqa: TRY400 - one clear line, no traceback
        return error.exit_code
    return 0


def end(code: int) -> NoReturn:
    """Leave this process with an exit code, without taking the interpreter down.

    Threads of the libraries (gloo's above all) may still stand when the interpreter goes, and
    abort the process: a training that is done would count as failed.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def parse(arguments: Sequence[str]) -> tuple[list[Path], dict[str, str]]:
    """Config files and overrides of a command line in Python Fire's manner.

    Raises
    ------
    OptionError
        There is something else than ``run`` and ``--key=value``, or no config file.
    """
    rest = [a for a in arguments if a != "run"]
    values: dict[str, str] = {}
    for argument in rest:
        name, sign, value = argument.partition("=")
        if not (name.startswith("--") and sign):
            raise OptionError(f"argument {argument}", "run --config_file=a.yaml,b.yaml --key=value")
        # MONAI quotes for a shell, but splits the command without one.
        values[name[2:]] = value.strip("'\"")
    files = [expand_path(f.strip()) for f in values.pop("config_file", "").split(",") if f.strip()]
    if not files:
        raise OptionError("no --config_file", "run --config_file=configs/hyper_parameters.yaml")
    return files, values


def _watch() -> Callable[[Path], Callable[[], bool]]:
    """Whether to end: a signal came, a stop file is there, the job or who started it ends."""
    asked: list[int] = []
    for number in _SIGNALS:
        signal.signal(number, lambda received, _frame: asked.append(received))
    parent = int(os.environ.get(PARENT_VARIABLE, 0))

    def of(bundle: Path) -> Callable[[], bool]:
        files = stop_files(bundle)
        return lambda: (
            bool(asked)
            or any(file.exists() for file in files)
            or bool(ending())
            or (parent > 0 and not _lives(parent))
        )

    return of


def _lives(process: int) -> bool:
    """Whether a process is an ancestor of this one, as long as it lives."""
    current = os.getppid()
    while current > 1:
        if current == process:
            return True
        try:
            fields = Path(f"/proc/{current}/stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            return False
        current = int(fields.rpartition(")")[2].split()[1])
    return process == current

"""Starting a training as its own process, and following it; no torch in this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cellmap_core.bundles.names import is_ours
from cellmap_core.cluster.attempts import memory_remedy
from cellmap_core.cluster.here import Place
from cellmap_core.cluster.profiles import site_of
from cellmap_core.errors import BundleError, TrainingError, TrainingInterrupted
from cellmap_core.lines import append_line, read_lines
from cellmap_core.machine import oom_kills
from cellmap_core.models import BundleRef, TrainResult
from cellmap_core.training.config_files import CONFIG_NAME, MODEL_FOLDER
from cellmap_core.training.history import read_records
from cellmap_core.training.result import read_result

__all__ = [
    "command",
    "last_place",
    "leave_place",
    "places",
    "progress_mark",
    "read_epochs",
    "read_result",
    "train_bundle",
]

#: Exit code of a training that was asked to end and can go on (sysexits' EX_TEMPFAIL).
EXIT_GO_ON = 75
#: Begins the line of a training that was asked to end; torchrun keeps exit codes to itself.
GO_ON_MARK = "go on later: "
#: Begins the one line that says why a training failed.
ERROR_MARK = "error: "
#: A file of this name ends a training after its current step, as long as it is there.
STOP_NAME = "STOP"
#: Tells the child who started it, so that it ends when that process is gone.
PARENT_VARIABLE = "AUTO3DSEG_PARENT"

_PLACES_NAME = "jobs.jsonl"
_KEPT_LINES = 15
# A step and a checkpoint of a large model fit in this; SLURM's own KillWait is 30 s.
_GRACE_SECONDS = 60.0


def command(
    folder: Path, overrides: Mapping[str, Any] | None = None, processes: int = 1
) -> list[str]:
    """The argument list that trains a bundle; safe with any character in a path.

    Parameters
    ----------
    folder : Path
        Of the bundle.
    overrides : mapping, optional
        Values to set.
    processes : int
        How many train it together, by torchrun; each has a GPU of its own. Bundles of others'
        templates start as many as they like.
    """
    if not is_ours(folder):
        return [sys.executable, "-m", "cellmap_core.bundles.foreign", str(folder)]
    configs = sorted(p for p in (folder / "configs").glob("*.*") if p.suffix in {".yaml", ".json"})
    files = ",".join(str(p) for p in configs) or str(folder / CONFIG_NAME)
    extra = [f"--{name}={_as_yaml(value)}" for name, value in (overrides or {}).items()]
    together = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [
        sys.executable,
        *(together if processes > 1 else []),
        str(folder / "scripts" / "train.py"),
        "run",
        f"--config_file={files}",
        *extra,
    ]


def _as_yaml(value: Any) -> str:
    """A value as the training reads it back; JSON is YAML on one line."""
    return value if isinstance(value, str) else json.dumps(value)


def stop_files(folder: Path) -> tuple[Path, Path]:
    """Files that end the training of a bundle, and of all bundles of its work folder."""
    return folder / STOP_NAME, folder.parent / STOP_NAME


def train_bundle(
    bundle: BundleRef,
    on_line: Callable[[str], None],
    on_epoch: Callable[[dict[str, Any]], None],
    threads: int | None = None,
    gpus: Sequence[str] = (),
) -> TrainResult:
    """Train a bundle in a process of its own, or find it trained.

    Parameters
    ----------
    bundle : BundleRef
        What to train.
    on_line : callable
        Gets each line of its log as it comes.
    on_epoch : callable
        Gets the record of each epoch that this run finishes: epoch, epochs, loss, dice,
        mean_dice, seconds.
    threads : int, optional
        Cores the training may use on a CPU (default: all).
    gpus : sequence of str, optional
        The devices it may use, by their names in ``CUDA_VISIBLE_DEVICES`` (default: one, if
        there is any); a process for each trains its share of every batch.

    Returns
    -------
    TrainResult
        ``done=1``; or ``current=1`` where the bundle was trained already and nothing was done.

    Raises
    ------
    BundleError
        The folder is no bundle.
    TrainingInterrupted
        The process was ended from outside; another try goes on from its checkpoint.
    TrainingError
        The training failed; the message is its own, or the end of its log.
    """
    if (result := read_result(bundle)) is not None:
        return result
    if not (bundle.folder / "scripts" / "train.py").is_file():
        raise BundleError(
            f"no bundle in {bundle.folder}", "scripts/train.py", "run the generate stage first"
        )
    if there := [str(f) for f in stop_files(bundle.folder) if f.exists()]:
        raise TrainingError(
            f"training {bundle.name} is held by {', '.join(there)}", "", "remove it to go on"
        )
    environment: dict[str, str] = {}
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    seen = len(read_epochs(bundle))

    def follow(line: str) -> None:
        nonlocal seen
        on_line(line)
        seen = _report(bundle, seen, on_epoch)

    try:
        arguments = command(bundle.folder, processes=max(1, len(gpus)))
        run_training(bundle, arguments, environment, follow)
    finally:
        _report(bundle, seen, on_epoch)
    if (result := read_result(bundle)) is None:
        raise TrainingError(f"{bundle.name} ended without a result", "model/result.json")
    return result.model_copy(update={"done": 1, "current": 0})


def run_training(
    bundle: BundleRef,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
) -> None:
    """Run the process of a training to its end.

    Parameters
    ----------
    bundle : BundleRef
        What is trained.
    arguments : sequence of str
        See `command`.
    environment : mapping
        Variables besides this process's own.
    on_line : callable
        Gets each line of its log as it comes.

    Raises
    ------
    TrainingInterrupted
        The process was ended from outside; another try goes on from its checkpoint.
    TrainingError
        The training failed; the message is its own, or the end of its log.
    """
    last: deque[str] = deque(maxlen=_KEPT_LINES)
    killed = oom_kills()
    with _process(arguments, environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last.append(line.rstrip("\n"))
            on_line(last[-1])
        code = process.wait()
    _check_end(bundle, code, list(last), out_of_memory=oom_kills() > killed)


@contextmanager
def _process(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """Run the training; it never outlives this block."""
    own = {**os.environ, PARENT_VARIABLE: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**own, **environment},
    )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """Ask the process to save and end; kill it when it does not."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


def read_epochs(bundle: BundleRef) -> list[dict[str, Any]]:
    """Records of all epochs a bundle has trained: epoch, epochs, loss, dice, mean_dice, seconds."""
    return [r for r in read_records(bundle.folder / MODEL_FOLDER) if r["event"] == "epoch"]


def leave_place(bundle: BundleRef, here: Place) -> None:
    """Note which job trains a bundle from now on, for whoever has to tell what became of it."""
    since = here.model_copy(update={"since": datetime.now(UTC)})
    append_line(bundle.folder / _PLACES_NAME, since.model_dump_json())


def places(bundle: BundleRef) -> tuple[Place, ...]:
    """The jobs that trained a bundle, in order."""
    return read_lines(bundle.folder / _PLACES_NAME, Place)


def last_place(bundle: BundleRef) -> Place | None:
    """The job that trained a bundle last; None where none did."""
    return next(reversed(places(bundle)), None)


def progress_mark(bundle: BundleRef) -> int:
    """A number that changes whenever the training has saved something to go on from."""
    saved = (bundle.folder / MODEL_FOLDER).glob("*.pt")
    return max((file.stat().st_mtime_ns for file in saved if file.exists()), default=0)


def _report(bundle: BundleRef, seen: int, on_epoch: Callable[[dict[str, Any]], None]) -> int:
    """Hand on the epochs beyond those seen."""
    records = read_epochs(bundle)
    for record in records[seen:]:
        on_epoch(record)
    return max(seen, len(records))


def _check_end(bundle: BundleRef, code: int, last: list[str], out_of_memory: bool) -> None:
    """Raise why a training ended early.

    ``out_of_memory`` says that the kernel killed a process here meanwhile for want of memory.
    """
    if code == 0:
        return
    own = [line.removeprefix(ERROR_MARK) for line in last if line.startswith(ERROR_MARK)]
    asked = code == EXIT_GO_ON or any(line.startswith(GO_ON_MARK) for line in last)
    # Torchrun hides the signal that ended one of its processes.
    if out_of_memory and not (own or asked):
        raise TrainingError(
            f"training {bundle.name} ran out of host memory, and the kernel killed it",
            "",
            memory_remedy("train", site_of()),
        )
    if code < 0 or asked:
        how = "on request" if asked else f"by signal {-code}"
        raise TrainingInterrupted(
            f"training {bundle.name} was ended from outside ({how})",
            "to run to its end",
            "start it again, it goes on from its checkpoint",
        )
    # Processes of one training may each say their part of it.
    log = "; ".join(dict.fromkeys(own)) if own else "\n".join(["its log ends with:", *last])
    raise TrainingError(f"training {bundle.name} failed (exit code {code}): {log}")

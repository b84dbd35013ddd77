"""The service on one machine: a Prefect server, the work pool, the deployments, a worker.

``run`` brings it up, runs the main job on a small synthetic data set and takes it down;
``up`` and ``down`` keep it for daily use. Everything lives under one folder: the server's
database, the logs, and the record of what is running.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from cellmap_core.errors import CellmapError, ServiceError
from cellmap_core.models import Frozen
from cellmap_core.phantom import write_phantom
from cellmap_core.provenance import write_text

ROOT = Path(__file__).resolve().parent.parent
POOL = "auto3dseg"

_USUAL_PORT = 4200
# A first start migrates the database: 25 s on two idle cores, more on busy ones.
_START_SECONDS = 180
_STOP_SECONDS = 20
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


class Service(Frozen):
    """A running service: where its server answers and which processes it is."""

    url: str
    server_pid: int
    worker_pid: int = 0

    @property
    def api_url(self) -> str:
        """What ``PREFECT_API_URL`` must say."""
        return f"{self.url}/api"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command of ``python -m deployments.local``; give its exit code back."""
    parser = argparse.ArgumentParser(prog="python -m deployments.local", description=__doc__)
    parser.add_argument("command", choices=["run", "up", "down"])
    parser.add_argument("--home", type=Path, default=ROOT / "work", help="where everything lives")
    given = parser.parse_args(arguments)
    home = given.home.resolve()
    # A polite end of this process must still take down what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return {"run": run, "up": up, "down": down}[given.command](home)
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
    service = start(home)
    try:
        parameters = {
            "datasplit": str(datasplit),
            "output_dir": str(home / "nifti_data"),
            "work_dir": str(home / "work_dir"),
            **DEMO_OPTIONS,
        }
        code = _prefect(
            home,
            ["deployment", "run", "auto3dseg/full", "--watch", "--params", json.dumps(parameters)],
            service,
        ).returncode
        _say_where(home, service, code, time.monotonic() - started)
    finally:
        stop(home)
    return 0 if code == 0 else 1


def up(home: Path) -> int:
    """Bring the service up and leave it running."""
    _refuse_second(home)
    service = start(home)
    environment = _environment_file(home)
    _say(f"The service is up: {service.url} (logs in {home / 'logs'})")
    _say(f"Use it:   . {shlex.quote(str(environment))}")
    _say("          prefect deployment run auto3dseg/full --watch --param datasplit=…")
    _say("End it:   make down")
    return 0


def down(home: Path) -> int:
    """End the service that ``up`` left running."""
    if _running(home) is None:
        _say("No service is running.")
        return 0
    stop(home)
    _say("The service is down.")
    return 0


def start(home: Path) -> Service:
    """Start the server, make the pool, deploy everything, start a worker.

    Raises
    ------
    ServiceError
        A step failed or took too long; what was started is stopped again.
    """
    for name in ("logs", "tmp"):
        (home / name).mkdir(parents=True, exist_ok=True)
    port = _free_port()
    service = Service(url=f"http://127.0.0.1:{port}", server_pid=0)
    # The server is told its own address too: the UI asks there, not at the usual port.
    command = ["server", "start", "--host", "127.0.0.1", "--port", str(port)]
    server = _background(home, "server", command, service)
    service = service.model_copy(update={"server_pid": server.pid})
    _record(home, service)
    try:
        _wait_for("server", home, server, lambda: _healthy(service))
        _step(home, ["work-pool", "create", POOL, "--type", "process", "--overwrite"], service)
        _step(home, ["deploy", "--all"], service)
        worker = _background(home, "worker", ["worker", "start", "--pool", POOL], service)
        service = service.model_copy(update={"worker_pid": worker.pid})
        _record(home, service)
        _wait_for("worker", home, worker, lambda: _online(service))
        _write_environment(home, service)
    except BaseException:
        stop(home)
        raise
    return service


def stop(home: Path) -> None:
    """Stop the worker (its flow runs with it), then the server; forget them."""
    service = _read(home)
    if service is None:
        return
    for pid in (service.worker_pid, service.server_pid):
        _end_group(pid)
    _record_path(home).unlink(missing_ok=True)
    _environment_file(home).unlink(missing_ok=True)


def _refuse_second(home: Path) -> None:
    if service := _running(home):
        raise ServiceError(f"a service is running already at {service.url}", "", "make down first")
    stop(home)  # Half of one may be left by a killed run.


def _environment(home: Path, service: Service) -> dict[str, str]:
    """The environment of every Prefect process of this service, and of no other."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    own = {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_API_URL": service.api_url,
        # Prefect's runner keeps a folder of one fixed name there, and /tmp is shared by users.
        "TMPDIR": str(home / "tmp"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # The classic UI asks no outside host for anything.
        "PREFECT_SERVER_UI_V2_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    return kept | own


def _prefect(
    home: Path, arguments: Sequence[str], service: Service, log: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a Prefect command line to its end, from the project's folder."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    environment = _environment(home, service)
    if log is None:
        return subprocess.run(command, cwd=ROOT, env=environment, text=True, check=False)
    with log.open("a", encoding="utf-8") as sink:
        return subprocess.run(
            command, cwd=ROOT, env=environment, text=True, check=False, stdout=sink, stderr=sink
        )


def _step(home: Path, arguments: Sequence[str], service: Service) -> None:
    log = home / "logs" / "setup.log"
    if _prefect(home, arguments, service, log).returncode != 0:
        raise ServiceError(
            f"prefect {' '.join(arguments)} failed", "", f"its output is in {log}:\n{_tail(log)}"
        )


def _background(
    home: Path, name: str, arguments: Sequence[str], service: Service
) -> subprocess.Popen[bytes]:
    """Start a Prefect process that outlives this one, as the head of its own group."""
    with (home / "logs" / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "prefect", *arguments],
            cwd=ROOT,
            env=_environment(home, service),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _wait_for(
    name: str, home: Path, process: subprocess.Popen[bytes], ready: Callable[[], bool]
) -> None:
    """Wait until a background process is ready; it may also end, or never be."""
    deadline = time.monotonic() + _START_SECONDS
    log = home / "logs" / f"{name}.log"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            found = f"the Prefect {name} ended with {process.returncode}"
            raise ServiceError(found, "", f"see {log}:\n{_tail(log)}")
        if ready():
            return
        time.sleep(0.5)
    raise ServiceError(f"the Prefect {name} was not ready in {_START_SECONDS} s", "", f"see {log}")


def _healthy(service: Service) -> bool:
    try:
        with urllib.request.urlopen(f"{service.api_url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _online(service: Service) -> bool:
    """Whether the work pool has a worker that polls it."""
    request = urllib.request.Request(
        f"{service.api_url}/work_pools/{POOL}/workers/filter",
        data=b"{}",
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return any(worker["status"] == "ONLINE" for worker in json.load(answer))
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    """Prefect's usual port where it is free, else any."""
    for port in (_USUAL_PORT, 0):
        with socket.socket() as probe:
            # A port whose last server just ended is free, though it lingers in TIME_WAIT.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ServiceError("no free port on 127.0.0.1", "one free port")


def _record_path(home: Path) -> Path:
    return home / "service.json"


def _record(home: Path, service: Service) -> None:
    write_text(_record_path(home), service.model_dump_json())


def _read(home: Path) -> Service | None:
    try:
        return Service.model_validate_json(_record_path(home).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _running(home: Path) -> Service | None:
    service = _read(home)
    return service if service and _healthy(service) else None


def _is_ours(pid: int) -> bool:
    """Whether a process is still the one we started: ids are used again."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"prefect" in command


def _end_group(pid: int) -> None:
    if pid <= 0 or not _is_ours(pid):
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < deadline and _group_alive(pid):
            time.sleep(0.1)


def _group_alive(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # Reap it where it is our own child.
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _environment_file(home: Path) -> Path:
    return home / "env.sh"


def _write_environment(home: Path, service: Service) -> None:
    own = _environment(home, service)
    names = sorted(name for name in own if name.startswith("PREFECT_"))
    lines = [f"export {name}={shlex.quote(own[name])}" for name in names]
    scripts = shlex.quote(str(Path(sys.executable).parent))
    lines.append(f'export PATH={scripts}:"$PATH"')
    write_text(_environment_file(home), "\n".join(lines) + "\n")


def _say_where(home: Path, service: Service, code: int, seconds: float) -> None:
    _say("")
    _say(f"The run {'completed' if code == 0 else 'FAILED'} after {seconds:.0f} s.")
    _say(f"Converted crops:  {home / 'nifti_data'}")
    _say(f"Data report:      {home / 'work_dir' / 'analysis.md'}")
    _say(f"Models:           {home / 'work_dir'}/segresnet_<fold>/model")
    _say(f"Predictions:      {home / 'work_dir' / 'ensemble_output'}")
    _say(f"Artifacts and UI: make up, then {service.url} (Runs, Artifacts)")


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())

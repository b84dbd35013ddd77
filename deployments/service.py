"""A Prefect server, work pool and worker of one's own on this machine, started and stopped."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from cellmap_core.errors import ServiceError
from cellmap_core.models import Frozen
from cellmap_core.provenance import write_text
from cellmap_core.proxies import LOOPBACK, direct_to, open_url

ROOT = Path(__file__).resolve().parent.parent
POOL = "auto3dseg"

_USUAL_PORT = 4200
# A first start migrates the database: 25 s on two idle cores, more on busy ones.
_START_SECONDS = 180
_STOP_SECONDS = 20


class Service(Frozen):
    """A running service: where its server answers and which processes it is."""

    url: str
    server_pid: int
    worker_pid: int = 0

    @property
    def api_url(self) -> str:
        """What ``PREFECT_API_URL`` must say."""
        return f"{self.url}/api"


def start(home: Path, pool_type: str = "process", port: int = _USUAL_PORT) -> Service:
    """Start the server, make the pool, deploy everything, start a worker.

    Parameters
    ----------
    home : Path
        Where everything of it lives.
    pool_type : str
        ``process``: runs are processes of this machine; ``slurm``: jobs of its cluster.
    port : int
        Of the server where it is free, else any; 0 for any.

    Raises
    ------
    ServiceError
        A step failed or took too long; what was started is stopped again.
    """
    for name in ("logs", "tmp"):
        (home / name).mkdir(parents=True, exist_ok=True)
    port = _free_port(port)
    service = Service(url=f"http://127.0.0.1:{port}", server_pid=0)
    # The server is told its own address too: the UI asks there, not at the usual port.
    command = ["server", "start", "--host", "127.0.0.1", "--port", str(port)]
    server = _background(home, "server", command, service)
    service = service.model_copy(update={"server_pid": server.pid})
    _record(home, service)
    try:
        _wait_for("server", home, server, lambda: _healthy(service))
        _step(home, ["work-pool", "create", POOL, "--type", pool_type, "--overwrite"], service)
        _step(home, ["deploy", "--all"], service)
        _write_environment(home, service)
        return start_worker(home, service)
    except BaseException:
        stop(home)
        raise


def start_worker(home: Path, service: Service) -> Service:
    """Start a worker of the pool, in the place of the one recorded, and wait until it polls."""
    worker = _background(home, "worker", ["worker", "start", "--pool", POOL], service)
    service = service.model_copy(update={"worker_pid": worker.pid})
    _record(home, service)
    _wait_for("worker", home, worker, lambda: _online(service))
    return service


def stop(home: Path) -> None:
    """Stop the worker (its flow runs with it), then the server; forget them."""
    service = read(home)
    if service is None:
        return
    for pid in (service.worker_pid, service.server_pid):
        _end_group(pid)
    _record_path(home).unlink(missing_ok=True)
    environment_file(home).unlink(missing_ok=True)


def environment(home: Path, service: Service) -> dict[str, str]:
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
    return direct_to(service.api_url, kept | own)


def prefect(
    home: Path, arguments: Sequence[str], service: Service, log: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a Prefect command line to its end, from the project's folder."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    own = environment(home, service)
    if log is None:
        return subprocess.run(command, cwd=ROOT, env=own, text=True, check=False)
    with log.open("a", encoding="utf-8") as sink:
        return subprocess.run(
            command, cwd=ROOT, env=own, text=True, check=False, stdout=sink, stderr=sink
        )


def _step(home: Path, arguments: Sequence[str], service: Service) -> None:
    log = home / "logs" / "setup.log"
    if prefect(home, arguments, service, log).returncode != 0:
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
            env=environment(home, service),
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
        with open_url(urllib.request.Request(f"{service.api_url}/health"), 5) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError, http.client.HTTPException):
        return False


def _online(service: Service) -> bool:
    """Whether the work pool has a worker that polls it."""
    request = urllib.request.Request(
        f"{service.api_url}/work_pools/{POOL}/workers/filter",
        data=b"{}",
        headers={"Content-Type": "application/json"},
    )
    try:
        with open_url(request, 5) as answer:
            return any(worker["status"] == "ONLINE" for worker in json.load(answer))
    except (OSError, ValueError, http.client.HTTPException):
        return False


def _free_port(wanted: int) -> int:
    """The port that is wanted where it is free, else any."""
    for port in (wanted, 0):
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


def read(home: Path) -> Service | None:
    """The service that was started and not stopped, whether or not it still runs."""
    try:
        return Service.model_validate_json(_record_path(home).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def running(home: Path) -> Service | None:
    """The service that answers, if one does."""
    service = read(home)
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


def environment_file(home: Path) -> Path:
    """What a shell reads to talk to the running service."""
    return home / "env.sh"


def _write_environment(home: Path, service: Service) -> None:
    own = environment(home, service)
    names = sorted(name for name in own if name.startswith("PREFECT_"))
    lines = [f"export {name}={shlex.quote(own[name])}" for name in names]
    # The shell that reads this may have a proxy that this process has not.
    lines.append(
        'case ",${no_proxy:=${NO_PROXY:-}}," in *,127.0.0.1,*|",*,") ;; '
        f'*) no_proxy="${{no_proxy:+$no_proxy,}}{",".join(LOOPBACK)}" ;; esac'
    )
    lines.append('export no_proxy NO_PROXY="$no_proxy"')
    scripts = shlex.quote(str(Path(sys.executable).parent))
    lines.append(f'export PATH={scripts}:"$PATH"')
    write_text(environment_file(home), "\n".join(lines) + "\n")


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

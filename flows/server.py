"""A Prefect server for one run of a script, where none is configured.

Prefect would start one of its own, but in this process's group and with no eye on it: a
Ctrl-C would take it away before the run has reported its end, and a kill would leave it
running for good.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from cellmap_core.errors import ServiceError
from cellmap_core.machine import end_with_parent

# A first start migrates the database, which takes half a minute on two cores.
_START_SECONDS = 180
_STOP_SECONDS = 10


@contextmanager
def temporary_server() -> Iterator[str]:
    """Run a server on loopback while the block lasts; yields its API's address.

    Raises
    ------
    ServiceError
        It ended or did not answer; the message has the end of its output.
    """
    with tempfile.TemporaryFile() as output:
        port = _free_port()
        address = f"http://127.0.0.1:{port}/api"
        command = ["server", "start", "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *command],
            env={**os.environ, "PREFECT_UI_ENABLED": "false"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        try:
            _wait(process, address, output)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(process: subprocess.Popen[bytes], address: str, output: object) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    output.seek(0)  # type: ignore[attr-defined]
    text = output.read().decode(errors="replace").strip()  # type: ignore[attr-defined]
    raise ServiceError(
        f"the temporary Prefect server did not start: {text[-500:]}",
        "a server on loopback",
        "set PREFECT_API_URL to one that runs",
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

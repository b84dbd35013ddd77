"""The Prefect server of a script: the one that is configured, else one for this run alone.

Prefect would start one of its own, but in this process's group and with no eye on it: a
Ctrl-C would take it away before the run has reported its end, and a kill would leave it
running for good.
"""

from __future__ import annotations

import http.client
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from prefect.settings import get_current_settings

from cellmap_core.api_server import Api
from cellmap_core.errors import ServiceError
from cellmap_core.machine import end_with_parent
from cellmap_core.proxies import is_cloud, open_url, reach_directly

# A first start migrates the database, which takes half a minute on two cores.
_START_SECONDS = 180
_STOP_SECONDS = 10
_SHOWN_LINES = 5
_OR_UNSET = (
    "; where it is set neither in the environment nor in Prefect's profile, this script starts a "
    "server of its own"
)


def configured_server() -> Api | None:
    """The server that Prefect's settings name, once it has answered; None where they name none.

    Raises
    ------
    ServiceError
        It does not answer, it does not accept this user, or there is an auth string for a
        server that is not named.
    """
    settings = get_current_settings()
    api = Api.of(settings)
    reach_directly(api.url if api else None)
    if api is None:
        if settings.api.auth_string:
            raise ServiceError(
                "PREFECT_API_AUTH_STRING is set, and PREFECT_API_URL is not",
                "",
                "set PREFECT_API_URL to the server's address, or unset PREFECT_API_AUTH_STRING to "
                "run with a temporary server",
            )
        return None
    if not is_cloud(api.url):  # Prefect Cloud answers other questions.
        try:
            api.ask("admin/version")
        except ServiceError as error:
            raise ServiceError(error.found, error.expected, f"{error.do}{_OR_UNSET}") from error
    return api


@contextmanager
def temporary_server() -> Iterator[tuple[str, str]]:
    """Run a server on loopback while the block lasts.

    Yields
    ------
    tuple of str
        The address of its API, and the auth string that it wants: others on this host could
        run code as the user otherwise.

    Raises
    ------
    ServiceError
        It ended or did not answer; the message has the end of its output.
    """
    auth = f"auto3dseg:{secrets.token_urlsafe(24)}"
    with tempfile.TemporaryFile() as output:
        port = _free_port()
        address = f"http://127.0.0.1:{port}/api"
        command = ["server", "start", "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *command],
            env={
                **os.environ,
                "PREFECT_UI_ENABLED": "false",
                "PREFECT_SERVER_API_AUTH_STRING": auth,
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        try:
            _wait(process, address, output)
            yield address, auth
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(process: subprocess.Popen[bytes], address: str, output: IO[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    reason: object = "no answer"
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with open_url(urllib.request.Request(f"{address}/health"), timeout=5):
                return
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            time.sleep(0.2)
    found = f"did not answer at {address} in {_START_SECONDS} s ({reason})"
    if process.poll() is not None:
        found = f"ended with exit code {process.returncode}"
    output.seek(0)
    lines = output.read().decode(errors="replace").split("\n")
    last = " | ".join([line.strip() for line in lines if line.strip()][-_SHOWN_LINES:])
    raise ServiceError(
        f"the temporary Prefect server {found}; its output ends with: {last or 'nothing'}",
        "",
        "correct what it says, or set PREFECT_API_URL to a server that runs",
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

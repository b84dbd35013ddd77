"""Start the worker of the pool, once the server has answered.

``python -m deployments.worker`` is ``prefect worker start --pool auto3dseg`` without the site's
proxy, and with one line that says what is wrong with the settings. More options of that command
may follow. Exit code 1: the server does not answer, or does not accept the auth string.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cellmap_core.errors import CellmapError, ServiceError
from cellmap_core.proxies import is_cloud, reach_directly
from deployments.doctor.api import configured
from deployments.service import POOL


def main(arguments: Sequence[str]) -> int:
    """Check the server and become the worker; give an exit code back where that fails."""
    try:
        check_server()
    except CellmapError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, *arguments]
    return os.execv(sys.executable, command)


def check_server() -> None:
    """Refuse to start where no server is named, or it does not answer.

    Raises
    ------
    ServiceError
        Saying what to set.
    """
    api = configured()
    if api is None:
        raise ServiceError(
            "PREFECT_API_URL is not set", "", "set it to the address of the Prefect server"
        )
    reach_directly(api.url)
    if not is_cloud(api.url):
        api.ask("admin/version")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

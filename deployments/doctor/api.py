"""The Prefect server: whether it answers, knows us, and has what a run needs."""

from __future__ import annotations

import base64
import ipaddress
import json
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from cellmap_core.cluster.profiles import SITE_VARIABLE
from cellmap_core.errors import ServiceError
from deployments.doctor.finding import Finding, failed, hop, ok, warning
from deployments.doctor.places import is_network, kind_of
from deployments.service import POOL, ROOT

_ANSWER_SECONDS = 15


class Api:
    """Prefect's API, as this process's settings name it.

    Parameters
    ----------
    url : str
        Of the API, ending with ``/api``.
    auth : str
        ``user:password`` where the server wants one.
    key : str
        Of Prefect Cloud.
    authorities : str
        File of the certificates to trust (default: the system's).
    """

    def __init__(self, url: str, auth: str = "", key: str = "", authorities: str = "") -> None:
        self.url = url.rstrip("/")
        self._auth = auth
        self._key = key
        self._context = ssl.create_default_context(cafile=authorities or None)

    @property
    def host(self) -> str:
        """Name or address of the server."""
        return urlsplit(self.url).hostname or ""

    @property
    def authenticates(self) -> bool:
        """Whether it is told who we are."""
        return bool(self._auth or self._key)

    def variables(self) -> dict[str, str]:
        """The environment that makes a job talk to the same server."""
        named = {
            "PREFECT_API_URL": self.url,
            "PREFECT_API_AUTH_STRING": self._auth,
            "PREFECT_API_KEY": self._key,
        }
        return {name: value for name, value in named.items() if value}

    def ask(self, path: str, question: object = None) -> Any:
        """The answer to a GET, or to a POST where there is a question.

        Raises
        ------
        ServiceError
            There was none, or it was no.
        """
        data = None if question is None else json.dumps(question).encode()
        headers = {"Content-Type": "application/json", **self._identity()}
        try:
            request = urllib.request.Request(f"{self.url}/{path}", data, headers)
            with urllib.request.urlopen(
                request, timeout=_ANSWER_SECONDS, context=self._context
            ) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise _refusal(self.url, error) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise ServiceError(
                f"{self.url} does not answer ({reason})",
                "a Prefect server",
                "start it, or mend PREFECT_API_URL; a proxy in the way needs no_proxy",
            ) from error

    def _identity(self) -> dict[str, str]:
        if self._key:
            return {"Authorization": f"Bearer {self._key}"}
        if self._auth:
            return {"Authorization": f"Basic {base64.b64encode(self._auth.encode()).decode()}"}
        return {}


class _Refused(ServiceError):
    """The server answered, with no."""

    def __init__(self, code: int, found: str, do: str) -> None:
        super().__init__(found, "", do)
        self.code = code


def _refusal(url: str, error: urllib.error.HTTPError) -> _Refused:
    if error.code == 401:
        return _Refused(
            401,
            f"{url} wants to know who asks (401)",
            "set PREFECT_API_AUTH_STRING to the server's PREFECT_SERVER_API_AUTH_STRING",
        )
    return _Refused(
        error.code, f"{url} answers {error.code} {error.reason}", "is it Prefect's API (…/api)?"
    )


def configured() -> Api | None:
    """The API of Prefect's settings: the environment, else the active profile."""
    from prefect.settings import get_current_settings

    api = get_current_settings().api
    if not api.url:
        return None
    return Api(
        api.url,
        api.auth_string.get_secret_value() if api.auth_string else "",
        api.key.get_secret_value() if api.key else "",
        str(api.ssl_cert_file or ""),
    )


@hop("Prefect API")
def check_api(api: Api | None) -> Finding:
    """It is configured and answers, in a version that fits."""
    from prefect import __version__ as ours

    if api is None:
        return failed(
            "PREFECT_API_URL is not set",
            "start a server and set it, or use deployments/sbatch, which needs none",
        )
    theirs = str(api.ask("admin/version"))
    said = f"{api.url} answers, version {theirs}"
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        return warning(f"{said}, here is {ours}", "install the same version on both sides")
    return ok(said)


@hop("Prefect API's address")
def check_address(api: Api, elsewhere: Iterable[str]) -> Finding:
    """It means the same host on other nodes."""
    others = sorted(elsewhere)
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(api.host, None)}
    except OSError as error:
        return failed(f"the host {api.host} is not known here ({error})", "mend PREFECT_API_URL")
    if any(ipaddress.ip_address(a).is_unspecified for a in addresses):
        return failed(
            f"{api.host} is an address to listen on, not to ask",
            "name the server's host in PREFECT_API_URL",
        )
    if others and all(ipaddress.ip_address(a).is_loopback for a in addresses):
        return warning(
            f"{api.host} is this host alone, and jobs run on others ({_few(others)})",
            "start the server with --host 0.0.0.0 and an auth string, and name its host in "
            "PREFECT_API_URL",
        )
    return ok(f"{api.host} is {', '.join(sorted(map(str, addresses)))}")


@hop("who may use the server")
def check_auth(api: Api) -> Finding:
    """Others on the network cannot run code as the user."""
    if api.authenticates:
        return ok("an auth string is set")
    loopback = api.host in {"localhost", "127.0.0.1", "::1"}
    if loopback and not _answers_to_others(urlsplit(api.url).port or 80):
        return ok("who is on its host")
    return warning(
        "anybody who reaches it, and so can run code as you",
        "start it with PREFECT_SERVER_API_AUTH_STRING=user:password and set "
        "PREFECT_API_AUTH_STRING for worker and users",
    )


def _answers_to_others(port: int) -> bool:
    """Whether what listens on a port of this host does so on its address in the network too."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # Sends nothing; the kernel names the way out.
            address = probe.getsockname()[0]
            socket.create_connection((address, port), timeout=2).close()
        except OSError:
            return False
    return not ipaddress.ip_address(address).is_loopback


@hop("server's database")
def check_database(api: Api) -> Finding:
    """PostgreSQL, or SQLite on a local disk; as far as the server tells."""
    settings = api.ask("admin/settings")
    driver = (settings.get("server", {}).get("database", {}) or {}).get("driver") or ""
    if driver.startswith("postgresql"):
        return ok("PostgreSQL")
    file = Path(settings.get("home", "")) / "prefect.db"
    if not file.is_file():
        return ok("the server does not tell which, and its usual SQLite file is not seen from here")
    kind = kind_of(file)
    if is_network(kind):
        return warning(
            f"SQLite in {file}, on a network file system ({kind}), where it locks up",
            "set PREFECT_HOME of the server to a local disk, or use PostgreSQL",
        )
    return ok(f"SQLite in {file}, on a local disk ({kind})")


@hop("work pool")
def check_pool(api: Api, kind: str | None) -> Finding:
    """It is there and of the type that the site wants."""
    wanted = kind or "process"
    create = f"prefect work-pool create {POOL} --type {wanted}"
    try:
        found = api.ask(f"work_pools/{POOL}")
    except _Refused as error:
        if error.code != 404:
            raise
        return failed(f"no work pool {POOL}", create)
    if kind and found["type"] != kind:
        return failed(
            f"{POOL} is of type {found['type']}, a cluster needs {kind}", f"{create} --overwrite"
        )
    if kind is None and found["type"] == "slurm":
        return failed(
            f"{POOL} is of type slurm, and no site profile is named here",
            f"export {SITE_VARIABLE}=<deployments/sites/….yaml>, for the worker too",
        )
    if found.get("is_paused"):
        return failed(f"{POOL} is paused", f"prefect work-pool resume {POOL}")
    return ok(f"{POOL}, type {found['type']}")


@hop("worker")
def check_worker(api: Api) -> Finding:
    """One polls the pool."""
    workers = api.ask(f"work_pools/{POOL}/workers/filter", {})
    online = [w["name"] for w in workers if w["status"] == "ONLINE"]
    if online:
        return ok(f"{_few(online)} online")
    return failed(
        "none online" + (f", last seen: {_few([w['name'] for w in workers])}" if workers else ""),
        f"prefect worker start --pool {POOL}",
    )


@hop("deployments")
def check_deployments(api: Api) -> Finding:
    """All of prefect.yaml are there, made from this folder."""
    found = api.ask("deployments/filter", {"work_pools": {"name": {"any_": [POOL]}}})
    there = {d["name"]: d for d in found}
    document = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))
    wanted = [d["name"] for d in document["deployments"]]
    deploy = f"cd {ROOT}; prefect deploy --all"
    if missing := [name for name in wanted if name not in there]:
        return failed(f"missing: {', '.join(missing)}", deploy)
    folders = {f for name in wanted for f in _folders(there[name])}
    if folders - {str(ROOT)}:
        return warning(f"they run the project in {', '.join(sorted(folders))}", deploy)
    return ok(", ".join(wanted))


def _folders(deployment: dict[str, Any]) -> list[str]:
    """Where a deployment's runs find the project."""
    steps = deployment.get("pull_steps") or []
    return [str(how["directory"]) for step in steps for how in step.values() if "directory" in how]


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

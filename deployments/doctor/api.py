"""The Prefect server: whether it answers, knows us, and has what a run needs."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from cellmap_core.api_server import Api, ApiRefused
from cellmap_core.cluster.profiles import SITE_VARIABLE
from cellmap_core.proxies import LOOPBACK, own_host, proxy_between
from deployments.doctor.finding import Finding, failed, hop, ok, warning
from deployments.doctor.places import is_network, kind_of
from deployments.service import POOL, ROOT


def configured() -> Api | None:
    """The API of Prefect's settings: the environment, else the active profile."""
    from prefect.settings import get_current_settings

    return Api.of(get_current_settings())


@hop("Prefect API")
def check_api(api: Api | None) -> Finding:
    """It is configured and answers, in a version that fits."""
    from prefect import __version__ as ours
    from prefect.settings import get_current_settings

    if api is None:
        alone = ", but PREFECT_API_AUTH_STRING is" if get_current_settings().api.auth_string else ""
        return failed(
            f"PREFECT_API_URL is not set{alone}",
            "start a server and set it, or use deployments/sbatch, which needs none",
        )
    theirs = str(api.ask("admin/version"))
    said = f"{api.url} answers, version {theirs}"
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        return warning(f"{said}, here is {ours}", "install the same version on both sides")
    return ok(said)


@hop("proxy")
def check_proxy(api: Api) -> Finding:
    """Prefect's own commands reach the server without a proxy, as the project's do."""
    if not (name := proxy_between(api.url)):
        return ok("none between here and the server")
    excepted = ",".join(dict.fromkeys([*LOOPBACK, own_host(api.url)]))
    return warning(
        f"{name} is set, and no_proxy does not list {own_host(api.url)}: prefect deployment run "
        "asks the proxy for the server",
        f'export no_proxy="$no_proxy,{excepted}"',
    )


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
    except ApiRefused as error:
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

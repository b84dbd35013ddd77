"""The proxy variables of the environment, and the Prefect server, which is reached without them.

Sites set ``http_proxy`` for everybody. A proxy does not know loopback, and as a rule no node of
the cluster: what talks to our own server must go there directly, while remote data may need the
proxy.
"""

from __future__ import annotations

import logging
import os
import ssl
import urllib.request
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)

#: Written into ``no_proxy`` for a server on this machine.
LOOPBACK = ("127.0.0.1", "localhost", "::1")

_EXCEPTIONS = ("no_proxy", "NO_PROXY")
# What Prefect's HTTP client looks at; it cannot be made at all with a scheme that it lacks.
_PROXIES = tuple(f(f"{kind}_proxy") for kind in ("http", "https", "all") for f in (str, str.upper))
_SCHEMES = frozenset({"http", "https"})
# Prefect Cloud is outside the site, and may be reached through the site's proxy alone.
_CLOUD = ".prefect.cloud"


def direct_to(url: str | None, environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which clients reach a Prefect server without any proxy.

    Parameters
    ----------
    url : str or None
        The server's API; loopback alone where it is None.
    environment : mapping
        The environment to change. Proxies stay as they are for all other hosts, but for SOCKS
        proxies where no client here has the package for them: Prefect's cannot even be made.

    Returns
    -------
    dict
        A changed copy; an equal one where no proxy is set.
    """
    found = {name: environment[name] for name in _PROXIES if environment.get(name)}
    changed = {n: v for n, v in environment.items() if n not in found or _is_usable(found[n])}
    if not found:
        return changed
    hosts = [*LOOPBACK, own_host(url)]
    lower, upper = (environment.get(name) for name in _EXCEPTIONS)
    # Python's clients look at the first of the two that is set, others at the second.
    for name, own in zip(_EXCEPTIONS, (_first(lower, upper), _first(upper, lower)), strict=True):
        listed = [host.strip() for host in own.split(",") if host.strip()]
        if listed != ["*"]:
            changed[name] = ",".join(dict.fromkeys(h for h in (*listed, *hosts) if h))
    return changed


def reach_directly(url: str | None = None) -> None:
    """Let this process and its children reach a Prefect server without any proxy.

    Parameters
    ----------
    url : str, optional
        The server's API (default: loopback alone).
    """
    changed = direct_to(url, os.environ)
    for name in set(os.environ) - set(changed):
        logger.warning(
            "%s is not used: its SOCKS proxy needs the package socksio, which is not installed",
            name,
        )
        del os.environ[name]
    os.environ.update({n: changed[n] for n in _EXCEPTIONS if n in changed})


def open_url(
    request: urllib.request.Request, timeout: float, context: ssl.SSLContext | None = None
) -> Any:
    """Open a URL of a Prefect server, without a proxy unless it is Prefect Cloud's.

    ``no_proxy`` alone is not enough here: urllib does not find ``[::1]`` in it.
    """
    handlers: list[urllib.request.BaseHandler] = []
    if own_host(request.full_url):
        handlers.append(urllib.request.ProxyHandler({}))
    if context is not None:
        handlers.append(urllib.request.HTTPSHandler(context=context))
    return urllib.request.build_opener(*handlers).open(request, timeout=timeout)


def _first(own: str | None, other: str | None) -> str:
    return own if own is not None else other or ""


def is_cloud(url: str) -> bool:
    """Whether a server is Prefect Cloud, which other people run."""
    return _host(url).endswith(_CLOUD)


def own_host(url: str | None) -> str:
    """Return the host of a server of our own; empty for Prefect Cloud and where none is named."""
    return "" if is_cloud(url or "") else _host(url or "")


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def proxy_between(url: str, environment: Mapping[str, str] | None = None) -> str:
    """Return the variable whose proxy Prefect's own commands take to our server, or nothing.

    Parameters
    ----------
    url : str
        The server's API.
    environment : mapping, optional
        The environment of those commands (default: this process's).
    """
    own = os.environ if environment is None else environment
    excepted = _first(*(own.get(name) for name in _EXCEPTIONS))
    host = own_host(url)
    if not host or urllib.request.proxy_bypass(host, {"no": excepted}):
        return ""
    # Of any kind: web sockets to a plain http server take the proxy for https.
    return next((name for name in _PROXIES if own.get(name)), "")


def _is_usable(proxy: str) -> bool:
    """Whether Prefect's HTTP client knows the scheme of a proxy."""
    scheme, mark, _ = proxy.partition("://")
    if not mark or scheme in _SCHEMES:
        return True
    return scheme in {"socks5", "socks5h"} and find_spec("socksio") is not None

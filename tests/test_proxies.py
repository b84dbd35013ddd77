"""Proxies of a site: our own server is reached without them, everything else by them."""

import asyncio
import os
import socket
import threading
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import obstore
import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

from cellmap_core import remote
from cellmap_core.proxies import LOOPBACK, direct_to, open_url, proxy_between, reach_directly

#: Nobody listens there.
DEAD = "http://127.0.0.1:9"
NAMES = [f"{kind}_proxy" for kind in ("http", "https", "all")]
LOCAL = ",".join(LOOPBACK)


@pytest.fixture
def environment():
    """The environment of this process without any proxy, put back afterwards."""
    before = dict(os.environ)
    for name in [*NAMES, "no_proxy"]:
        os.environ.pop(name, None)
        os.environ.pop(name.upper(), None)
    yield os.environ
    os.environ.clear()
    os.environ.update(before)


@contextmanager
def answering(host="127.0.0.1"):
    """An HTTP server; yields its port and the list of what it was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_):
            pass

    kind = type("Server", (HTTPServer,), {"address_family": socket.getaddrinfo(host, 0)[0][0]})
    with kind((host, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, asked
        server.shutdown()


@pytest.mark.parametrize("name", [*NAMES, *map(str.upper, NAMES)])
def test_our_own_server_is_reached_without_the_proxy(name, environment):
    environment[name] = DEAD

    async def talk():
        async def echo(connection):
            await connection.send(await connection.recv())

        async with serve(echo, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with connect(f"ws://127.0.0.1:{port}") as socket:
                await socket.send("hello")
                return await socket.recv()

    with answering() as (port, asked):
        url = f"http://127.0.0.1:{port}"
        reach_directly(f"{url}/api")
        assert httpx.get(f"{url}/httpx").text == "ok"
        with urllib.request.urlopen(f"{url}/urllib", timeout=9) as answer:
            assert answer.read() == b"ok"
        with open_url(urllib.request.Request(f"{url}/ours"), 9) as answer:
            assert answer.read() == b"ok"
        assert asked == ["/httpx", "/urllib", "/ours"]
    assert asyncio.run(talk()) == "hello"


def test_a_server_with_an_address_of_version_6(environment):
    environment["http_proxy"] = DEAD
    try:
        served = answering("::1")
        with served as (port, _):
            reach_directly(f"http://[::1]:{port}/api")
            with open_url(urllib.request.Request(f"http://[::1]:{port}/"), 9) as answer:
                assert answer.read() == b"ok"
            assert httpx.get(f"http://[::1]:{port}/").text == "ok"
    except OSError as error:
        if error.errno is None or isinstance(error, ConnectionError):
            raise
        pytest.skip("no IPv6 on this machine")


def test_remote_data_still_takes_the_proxy(environment):
    with answering() as (port, asked):
        environment["http_proxy"] = f"http://127.0.0.1:{port}"
        reach_directly("http://prefect.lab:4200/api")
        remote._open.cache_clear()
        store, path = remote.split("http://data.example.invalid/crop/.zattrs")
        assert bytes(obstore.get(store.store, path).bytes()) == b"ok"
        remote._open.cache_clear()
    assert asked == ["http://data.example.invalid/crop/.zattrs"]


@pytest.mark.parametrize(
    ("given", "lower", "upper"),
    [
        ({}, f"{LOCAL},srv.lab", f"{LOCAL},srv.lab"),
        ({"no_proxy": "a, .b"}, f"a,.b,{LOCAL},srv.lab", f"a,.b,{LOCAL},srv.lab"),
        ({"NO_PROXY": "a"}, f"a,{LOCAL},srv.lab", f"a,{LOCAL},srv.lab"),
        ({"no_proxy": "a", "NO_PROXY": "b"}, f"a,{LOCAL},srv.lab", f"b,{LOCAL},srv.lab"),
        ({"no_proxy": "", "NO_PROXY": "b"}, f"{LOCAL},srv.lab", f"b,{LOCAL},srv.lab"),
        ({"no_proxy": "srv.lab,localhost"}, "srv.lab,localhost,127.0.0.1,::1", None),
        ({"no_proxy": "*"}, "*", None),
    ],
)
def test_what_the_site_excepts_stays_excepted(given, lower, upper):
    changed = direct_to("http://srv.lab:4200/api", {"HTTP_PROXY": DEAD, **given})
    assert changed["no_proxy"] == lower
    assert changed.get("NO_PROXY") == upper or upper is None
    assert changed["HTTP_PROXY"] == DEAD
    assert direct_to("http://srv.lab:4200/api", changed) == changed


def test_without_a_proxy_nothing_changes():
    for given in ({}, {"http_proxy": ""}, {"no_proxy": "a"}):
        assert direct_to("http://srv.lab:4200/api", given) == given


def test_prefect_cloud_may_need_the_proxy():
    cloud = "https://api.prefect.cloud/api/accounts/a/workspaces/b"
    assert direct_to(cloud, {"https_proxy": DEAD})["no_proxy"] == LOCAL
    assert proxy_between(cloud, {"https_proxy": DEAD}) == ""


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "socks5h://h:1", "socks://h:1"])
def test_a_proxy_that_prefects_client_does_not_know_is_left_out(proxy, environment, caplog):
    environment["all_proxy"] = proxy
    with pytest.raises((ImportError, ValueError)):
        httpx.Client()
    reach_directly("http://srv.lab:4200/api")
    httpx.Client().close()
    assert "all_proxy is not used" in caplog.text


def test_who_would_take_the_proxy_is_told():
    url = "http://srv.lab:4200/api"
    assert proxy_between(url, {"HTTPS_PROXY": DEAD}) == "HTTPS_PROXY"
    assert proxy_between(url, {"HTTPS_PROXY": DEAD, "NO_PROXY": ".lab"}) == ""
    assert proxy_between(url, {}) == ""
    assert proxy_between("http://[::1", {"http_proxy": DEAD}) == ""

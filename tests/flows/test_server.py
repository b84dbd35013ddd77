"""The server of a script: one with an auth string, none, or one that does not answer."""

import os
import subprocess
import sys

import pytest

from flows.server import temporary_server
from tests.conftest import ROOT
from tests.flows.test_scripts import script

DEAD_URL = "http://127.0.0.1:9/api"
DEAD_PROXY = {
    name: "http://127.0.0.1:9"
    for kind in ("http", "https", "all")
    for name in (f"{kind}_proxy", f"{kind.upper()}_PROXY")
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A real server that wants an auth string: its address and the string."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        for name, value in DEAD_PROXY.items():
            patch.setenv(name, value)
        with temporary_server() as served:
            yield served


def test_a_server_with_an_auth_string_is_used_past_the_proxy(server, converted, tmp_path):
    """What a run does there it does without the site's proxy, its workers too."""
    url, auth = server
    outcome = script(
        "analyze", "--datalist", converted.datalist, "--work_dir", tmp_path / "work",
        cwd=tmp_path, home=tmp_path / "prefect",
        **DEAD_PROXY, PREFECT_API_URL=url, PREFECT_API_AUTH_STRING=auth,
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stderr
    assert "4 made" in outcome.stdout
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize(
    ("auth", "said"),
    [("", "asks for an auth string (401)"), ("me:wrong", "does not accept the auth string (401)")],
)
def test_a_server_that_does_not_accept_who_asks(auth, said, server, tmp_path):
    given = {"PREFECT_API_URL": server[0]} | ({"PREFECT_API_AUTH_STRING": auth} if auth else {})
    is_one_line(script("full", "--datalist", "x", cwd=tmp_path, **given), said, "AUTH_STRING")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"PREFECT_API_URL": DEAD_URL}, f"{DEAD_URL} does not answer"),
        ({"PREFECT_API_URL": DEAD_URL, **DEAD_PROXY}, f"{DEAD_URL} does not answer"),
        ({"PREFECT_API_URL": "nonsense"}, "nonsense does not answer"),
        ({"PREFECT_API_AUTH_STRING": "a:b"}, "PREFECT_API_AUTH_STRING is set, and PREFECT_API_URL"),
    ],
)
def test_a_server_that_is_not_there(given, said, tmp_path):
    outcome = script("analyze", "--datalist", "x", cwd=tmp_path, **given)
    is_one_line(outcome, said, "set PREFECT_API_URL to")
    assert list(tmp_path.iterdir()) == []


def is_one_line(outcome, *said):
    assert outcome.returncode == 1, outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1, outcome.stderr
    assert outcome.stderr.startswith("error: ")
    for part in said:
        assert part in outcome.stderr


def test_a_temporary_server_that_ends_is_told_with_its_reason(converted, tmp_path):
    outcome = script(
        "analyze", "--datalist", converted.datalist, "--work_dir", tmp_path / "work",
        cwd=tmp_path, home=tmp_path / "prefect",
        PREFECT_SERVER_DATABASE_CONNECTION_URL="nonsense://x",
    )  # fmt: skip
    is_one_line(outcome, "the temporary Prefect server ended with exit code 1", "nonsense")


@pytest.mark.parametrize(
    ("module", "given", "said"),
    [
        ("flow_job", {"PREFECT_API_URL": DEAD_URL}, f"{DEAD_URL} does not answer"),
        ("worker", {"PREFECT_API_URL": DEAD_URL}, f"{DEAD_URL} does not answer"),
        ("worker", {}, "PREFECT_API_URL is not set"),
    ],
)
def test_programs_of_the_cluster_tell_it_in_one_line_too(module, given, said, tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    own = {"PREFECT_HOME": str(tmp_path), "PREFECT__FLOW_RUN_ID": "0" * 32}
    outcome = subprocess.run(
        [sys.executable, "-m", f"deployments.{module}"],
        env=environment | own | given, cwd=ROOT,
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    is_one_line(outcome, said)

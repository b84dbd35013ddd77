"""The doctor's checks one by one, on a server and on folders that are as ill as wanted."""

import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import prefect
import pytest
import yaml

from deployments.doctor import api as apis
from deployments.doctor import cluster, places, probe
from deployments.doctor.api import Api
from deployments.doctor.finding import Level
from deployments.service import ROOT

DEPLOYMENTS = [
    d["name"] for d in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
]


def deployment(name, folder=ROOT):
    step = {"prefect.deployments.steps.set_working_directory": {"directory": str(folder)}}
    return {"name": name, "pull_steps": [step]}


@pytest.fixture
def server():
    """An HTTP server that gives canned answers by path; a number is an error of that code."""
    answers = {
        "/api/admin/version": prefect.__version__,
        "/api/admin/settings": {"home": "/nowhere", "server": {"database": {"driver": None}}},
        "/api/work_pools/auto3dseg": {"type": "slurm", "is_paused": False},
        "/api/work_pools/auto3dseg/workers/filter": [{"name": "w1", "status": "ONLINE"}],
        "/api/deployments/filter": [deployment(name) for name in DEPLOYMENTS],
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer = answers.get(self.path, 404)
            needed = answers.get("auth")
            if needed and self.headers.get("Authorization") != needed:
                answer = 401
            code, content = (answer, "no") if isinstance(answer, int) else (200, answer)
            self.send_response(code)
            self.end_headers()
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.wfile.write(raw)

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        answers["url"] = f"http://127.0.0.1:{listening.server_port}/api"
        yield answers
        listening.shutdown()


@pytest.fixture
def api(server):
    return Api(server["url"])


def is_so(finding, level, *said):
    assert finding.level is level, finding.line()
    assert "\n" not in finding.line()
    for part in said:
        assert part in finding.line()


def test_a_server_that_is_well(api):
    is_so(apis.check_api(api), Level.OK, "answers, version")
    is_so(apis.check_pool(api, "slurm"), Level.OK, "type slurm")
    is_so(apis.check_pool(api, None), Level.FAILED, "no site profile is named here")
    is_so(apis.check_worker(api), Level.OK, "w1 online")
    is_so(apis.check_deployments(api), Level.OK, "full")
    is_so(apis.check_auth(api), Level.OK)
    is_so(apis.check_address(api, []), Level.OK)


def test_no_server_is_configured_or_none_answers(server):
    is_so(apis.check_api(None), Level.FAILED, "PREFECT_API_URL is not set")
    is_so(apis.check_api(Api("http://127.0.0.1:9/api")), Level.FAILED, "does not answer", "start")
    is_so(apis.check_api(Api("nonsense")), Level.FAILED, "nonsense")
    is_so(apis.check_api(Api(server["url"] + "/x")), Level.FAILED, "404", "…/api")
    server["/api/admin/version"] = b"<html>"
    is_so(apis.check_api(Api(server["url"])), Level.FAILED, "not as Prefect's API")


def test_an_auth_string_is_asked_for_and_used(server):
    server["auth"] = "Basic bWU6c2VjcmV0"
    is_so(apis.check_api(Api(server["url"])), Level.FAILED, "401", "PREFECT_API_AUTH_STRING")
    in_url = Api(server["url"].replace("http://", "http://me:secret@"))
    assert in_url.url == server["url"]
    for known in (in_url, Api(server["url"], "me:secret", "a key")):
        is_so(apis.check_api(known), Level.OK)
    known = Api(server["url"], "me:secret")
    is_so(apis.check_api(known), Level.OK)
    assert "me:secret" not in apis.check_api(known).line()
    assert known.variables()["PREFECT_API_AUTH_STRING"] == "me:secret"


def test_another_version_is_warned_of(api, server):
    server["/api/admin/version"] = "2.20.1"
    is_so(apis.check_api(api), Level.WARNING, "2.20.1", "same version")


def test_an_address_that_other_nodes_do_not_reach(api):
    is_so(apis.check_address(api, ["n1", "n2", "n3", "n4"]), Level.WARNING, "n1, n2, n3 and 1 more")
    everywhere = Api("http://0.0.0.0:4200/api")
    is_so(apis.check_address(everywhere, ["n1"]), Level.FAILED, "not to ask")
    nobody = Api("http://no-such-host.invalid:4200/api")
    is_so(apis.check_address(nobody, ["n1"]), Level.FAILED, "not known here")


def test_a_server_for_the_network_wants_an_auth_string():
    is_so(apis.check_auth(Api("http://10.0.0.1:4200/api")), Level.WARNING, "run code as you")
    is_so(apis.check_auth(Api("http://10.0.0.1:4200/api", "a:b")), Level.OK)


@pytest.mark.parametrize(("address", "level"), [("", Level.WARNING), ("127.0.0.1", Level.OK)])
def test_a_server_that_is_open_to_the_network_is_told_though_it_is_asked_on_loopback(
    address, level
):
    if not _in_a_network():
        level = Level.OK
    with socket.create_server((address, 0)) as server:
        port = server.getsockname()[1]
        is_so(apis.check_auth(Api(f"http://127.0.0.1:{port}/api")), level)


def _in_a_network():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return False
        return not probe.getsockname()[0].startswith("127.")


def test_the_database_as_far_as_the_server_tells(api, server, tmp_path, monkeypatch):
    is_so(apis.check_database(api), Level.OK, "does not tell")
    (tmp_path / "prefect.db").touch()
    settings = {"home": str(tmp_path), "server": {"database": {"driver": None}}}
    server["/api/admin/settings"] = settings
    is_so(apis.check_database(api), Level.OK, "SQLite", "local disk")
    monkeypatch.setattr(apis, "kind_of", lambda _: "nfs4")
    is_so(apis.check_database(api), Level.WARNING, "nfs4", "PostgreSQL")
    settings["server"]["database"]["driver"] = "postgresql+asyncpg"
    is_so(apis.check_database(api), Level.OK, "PostgreSQL")


def test_a_pool_that_is_not_there_or_not_right(api, server):
    server["/api/work_pools/auto3dseg"] = {"type": "process", "is_paused": False}
    is_so(
        apis.check_pool(api, "slurm"), Level.FAILED, "of type process", "--type slurm --overwrite"
    )
    is_so(apis.check_pool(api, None), Level.OK)
    server["/api/work_pools/auto3dseg"] = {"type": "slurm", "is_paused": True}
    is_so(apis.check_pool(api, "slurm"), Level.FAILED, "prefect work-pool resume")
    server["/api/work_pools/auto3dseg"] = 404
    is_so(apis.check_pool(api, "slurm"), Level.FAILED, "prefect work-pool create auto3dseg")
    server["/api/work_pools/auto3dseg"] = 500
    is_so(apis.check_pool(api, "slurm"), Level.FAILED, "answers 500")


def test_no_worker_polls(api, server):
    server["/api/work_pools/auto3dseg/workers/filter"] = [{"name": "old", "status": "OFFLINE"}]
    is_so(apis.check_worker(api), Level.FAILED, "last seen: old", "prefect worker start")
    server["/api/work_pools/auto3dseg/workers/filter"] = []
    is_so(apis.check_worker(api), Level.FAILED, "none online;")


def test_deployments_are_missing_or_of_another_folder(api, server):
    server["/api/deployments/filter"] = [deployment("full")]
    is_so(apis.check_deployments(api), Level.FAILED, "convert", "prefect deploy --all")
    server["/api/deployments/filter"] = [deployment(name, "/else/where") for name in DEPLOYMENTS]
    is_so(apis.check_deployments(api), Level.WARNING, "/else/where")


MOUNTS = """\
/dev/sda / ext4 rw 0 0
srv:/home /home nfs4 rw 0 0
tmpfs /home/me/my\\040tmp tmpfs rw 0 0
/dev/sdb /data xfs rw 0 0
fs /data lustre rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/x", "ext4"), ("/home/you", "nfs4"), ("/home/me/my tmp/a", "tmpfs"), ("/data/x", "lustre")],
)
def test_the_file_system_of_a_folder(path, kind, tmp_path):
    (tmp_path / "mounts").write_text(MOUNTS)
    assert places.kind_of(Path(path), tmp_path / "mounts") == kind
    assert places.kind_of(Path(path), tmp_path / "none") == ""


def test_which_file_systems_are_shared():
    for kind in ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "ceph", "fuse.sshfs", "9p"):
        assert places.is_network(kind)
    for kind in ("ext4", "xfs", "tmpfs", "overlay", "btrfs", "zfs", ""):
        assert not places.is_network(kind)


def test_folders(tmp_path, monkeypatch):
    folder = tmp_path / "new"
    monkeypatch.setattr(places, "kind_of", lambda _: "ext4")
    is_so(places.check_folder("log_dir", folder, ["n1"]), Level.WARNING, f"log_dir {folder}: ")
    monkeypatch.setattr(places, "kind_of", lambda _: "lustre")
    monkeypatch.setattr(places.shutil, "disk_usage", lambda _: type("U", (), {"free": 9e12}))
    is_so(places.check_folder("log_dir", folder, ["n1"]), Level.OK, "9000 GB free, lustre")
    monkeypatch.setattr(places.shutil, "disk_usage", lambda _: type("U", (), {"free": 9e9}))
    is_so(places.check_folder("log_dir", folder, []), Level.WARNING, "9 GB free")
    monkeypatch.setattr(places.shutil, "disk_usage", lambda _: type("U", (), {"free": 9e6}))
    is_so(places.check_folder("log_dir", folder, []), Level.FAILED, "0.01 GB free")
    (tmp_path / "file").touch()
    is_so(places.check_folder("log_dir", tmp_path / "file", []), Level.FAILED, "cannot be written")
    assert list(folder.iterdir()) == []


def test_the_profile(tmp_path, monkeypatch):
    path = tmp_path / "site.yaml"
    monkeypatch.delenv("AUTO3DSEG_SITE", raising=False)
    is_so(cluster.check_profile(path), Level.FAILED, "no site profile")
    path.write_text("name: x\npartition: gpu")
    is_so(cluster.check_profile(path), Level.FAILED, "unknown partition")
    path.write_text("name: x")
    is_so(cluster.check_profile(path), Level.WARNING, f"export AUTO3DSEG_SITE={path}")
    monkeypatch.setenv("AUTO3DSEG_SITE", str(path))
    is_so(cluster.check_profile(path), Level.OK)


def test_an_interface_that_is_not_there():
    is_so(cluster.check_interface("no0"), Level.FAILED, "network_interface: 'no0'", "lo")
    is_so(cluster.check_interface("lo"), Level.WARNING, "no other node")


def test_a_project_that_cannot_be_imported():
    is_so(probe.check_project(["cellmap_core"]), Level.OK)
    is_so(probe.check_project(["no_such_package"]), Level.FAILED, "cannot import no_such_package")


@pytest.mark.parametrize(
    ("devices", "smi", "level", "said"),
    [
        ("", None, Level.FAILED, "1 asked, CUDA_VISIBLE_DEVICES names 0"),
        ("0,1", None, Level.FAILED, "names 2"),
        ("0", None, Level.WARNING, "no nvidia-smi"),
        ("0", "echo 'NVIDIA A100, 40960 MiB'", Level.OK, "A100, 40960 MiB"),
        ("0", "echo 'NVIDIA GB10, [N/A]'", Level.WARNING, "set gpu_memory_gb"),
        ("0", "echo broken driver; exit 9", Level.FAILED, "ended with 9: broken driver"),
    ],
)
def test_gpus(devices, smi, level, said, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if smi else str(tmp_path))
    if smi:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{smi}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    is_so(probe.check_gpus(1), level, said)


def test_folders_of_a_node(tmp_path):
    marker = tmp_path / "marker"
    is_so(probe.check_shared(marker), Level.FAILED, "is another one here")
    is_so(probe.check_shared(marker / "x"), Level.FAILED, "cannot be used here")
    marker.touch()
    is_so(probe.check_shared(marker), Level.OK)
    is_so(probe.check_scratch(tmp_path), Level.OK, "GB free")
    is_so(probe.check_scratch(tmp_path / "no"), Level.FAILED, "mend scratch")


def test_no_way_back(server):
    is_so(probe.check_way_back("127.0.0.1:9"), Level.FAILED, "no connection to 127.0.0.1:9")


def doctor(*arguments, **environment):
    """As a user starts it; Prefect reads its settings once a process."""
    return subprocess.run(
        [sys.executable, "-m", "deployments.doctor", *map(str, arguments)],
        env={k: v for k, v in os.environ.items() if k != "AUTO3DSEG_SITE"} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_exit_codes(server, tmp_path):
    own = {"PREFECT_API_URL": server["url"], "PREFECT_HOME": str(tmp_path / "prefect")}
    server["/api/work_pools/auto3dseg"] = {"type": "process", "is_paused": False}
    well = doctor("--work_dir", tmp_path, **own)
    assert (well.returncode, well.stderr) == (0, "")
    assert "FAILED" not in well.stdout
    server["/api/work_pools/auto3dseg/workers/filter"] = []
    ill = doctor("--work_dir", tmp_path, **own, http_proxy="http://127.0.0.1:9", no_proxy="x")
    assert ill.returncode == 1
    assert "FAILED   worker: none online" in ill.stdout
    assert "warning  proxy: http_proxy is set, and no_proxy does not list 127.0.0.1" in ill.stdout
    assert 'export no_proxy="$no_proxy,127.0.0.1,localhost,::1"' in ill.stdout
    alone = doctor(
        "--work_dir", tmp_path, PREFECT_API_AUTH_STRING="a:b", PREFECT_HOME=str(tmp_path)
    )
    assert (alone.returncode, alone.stderr) == (1, "")
    assert "PREFECT_API_URL is not set, but PREFECT_API_AUTH_STRING is" in alone.stdout
    assert doctor("--nonsense").returncode == 2


def test_the_doctor_loads_neither_torch_nor_monai():
    code = "import sys, deployments.doctor.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0

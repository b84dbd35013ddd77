"""Fixtures that every room uses: the phantom, converted once, and the real EM where it is."""

import logging
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from cellmap_core.convert import convert
from cellmap_core.models import ConvertResult
from cellmap_core.options import ConvertOptions
from cellmap_core.phantom import write_phantom

ROOT = Path(__file__).resolve().parent.parent


# Folders of tests that wait more than they work; begun first, they end with the others.
_FIRST = ("tests/slurm/", "tests/deployments/")


def pytest_collection_modifyitems(items):
    """Begin with the tests that take longest."""
    items.sort(key=lambda item: not item.nodeid.startswith(_FIRST))


def skip(reason):
    """Skip for want of a part, or fail where every part must be there (in CI)."""
    if os.environ.get("AUTO3DSEG_REQUIRE_ALL"):
        pytest.fail(f"required here, but {reason}")
    pytest.skip(reason)


@contextmanager
def s3_bucket(name):
    """A bucket of a real S3 API server, readable by anyone: its URL, and a way to fill it."""
    boto3 = pytest.importorskip("boto3")
    moto = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1",
        aws_access_key_id="x", aws_secret_access_key="x",
    )  # fmt: skip
    client.create_bucket(Bucket=name, ACL="public-read")

    def fill(folder):
        for path in (p for p in folder.rglob("*") if p.is_file()):
            key = str(path.relative_to(folder))
            client.upload_file(str(path), name, key, ExtraArgs={"ACL": "public-read"})

    yield url, fill
    server.stop()


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Keep torch, where a test has it, from taking every core."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def phantom(tmp_path_factory) -> Path:
    """The phantom's datasplit.csv; read only."""
    return write_phantom(tmp_path_factory.mktemp("phantom"))


@pytest.fixture(scope="session")
def converted(phantom, tmp_path_factory) -> ConvertResult:
    """The phantom, converted at 8 nm; read only."""
    output = tmp_path_factory.mktemp("nifti_data")
    return convert(ConvertOptions(datasplit=phantom, output_dir=output, num_fold=2))


@pytest.fixture(scope="session")
def real_em() -> Path:
    """Real EM in CellMap layout, which is not part of the project."""
    folder = ROOT.parent / "shared" / "data" / "real_em"
    if not (folder / "datasplit.csv").is_file():
        # Not a part that can be installed: its licences keep it out of the project.
        pytest.skip("no real EM data beside the project (shared/data/real_em)")
    return folder

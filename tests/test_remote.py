"""The same crops from an S3 API and from a plain HTTP server, on loopback."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cellmap_core import remote
from cellmap_core.convert import convert
from cellmap_core.errors import StoreError
from cellmap_core.options import ConvertOptions
from tests.conftest import s3_bucket

BUCKET = "cellmap-test"


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder; answers some requests with trouble first."""

    protocol_version = "HTTP/1.1"
    trouble: dict[str, list[int]] = {}

    def do_GET(self):
        if not self._troubled():
            super().do_GET()

    def do_HEAD(self):
        if not self._troubled():
            super().do_HEAD()

    def _troubled(self):
        codes = next((c for part, c in self.trouble.items() if part in self.path), [])
        if not codes:
            return False
        code = codes[0] if len(codes) == 1 else codes.pop(0)
        if code == 200:
            return False
        if code == 0:
            self.connection.close()
        else:
            self.send_error(code)
        return True

    def log_message(self, *_arguments):
        pass


class Server(ThreadingHTTPServer):
    """Many requests come at once; the default queue of five would make each wait a second."""

    request_queue_size = 128


@pytest.fixture
def http(phantom):
    """The phantom's folder over HTTP, and the trouble to make."""
    handler = type("Handler", (Quiet,), {"trouble": {}})
    server = Server(("127.0.0.1", 0), partial(handler, directory=str(phantom.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler.trouble
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def s3(phantom):
    """The phantom in a bucket of a real S3 API server."""
    with s3_bucket(BUCKET) as (url, fill):
        fill(phantom.parent)
        yield url


def elsewhere(phantom, root, tmp_path):
    """The datasplit with every path at another root."""
    path = tmp_path / "datasplit.csv"
    path.write_text(phantom.read_text().replace('"phantom-', f'"{root}/phantom-'))
    return path


def outputs(result):
    folder = result.datalist.parent
    wanted = [*folder.glob("images/*"), *folder.glob("labels/*"), result.datalist]
    return {path.relative_to(folder): path.read_bytes() for path in wanted}


def run(datasplit, output):
    return convert(ConvertOptions(datasplit=datasplit, output_dir=output, num_fold=2))


def test_s3_gives_the_same_bytes_and_a_second_run_does_nothing(
    s3, phantom, converted, tmp_path, monkeypatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    remote._open.cache_clear()
    datasplit = elsewhere(phantom, f"s3://{BUCKET}", tmp_path)
    result = run(datasplit, tmp_path / "out")
    assert (result.done, result.failures) == (6, ())
    assert outputs(result) == outputs(converted)
    assert run(datasplit, tmp_path / "out").up_to_date


@pytest.mark.parametrize(
    ("root", "reason"),
    [("s3://no-such-bucket", "no zarr group at s3://no-such-bucket"), ("ftp://x", "scheme ftp")],
)
def test_what_is_not_there_is_named(root, reason, s3, phantom, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    remote._open.cache_clear()
    datasplit = tmp_path / "datasplit.csv"
    first = phantom.read_text().splitlines()[0].replace('"phantom-', f'"{root}/phantom-')
    good = [
        line.replace('"phantom-', f'"{phantom.parent}/phantom-')
        for line in phantom.read_text().splitlines()[1:]
    ]
    datasplit.write_text("\n".join([first, *good]))
    result = run(datasplit, tmp_path / "out")
    assert [f.item for f in result.failures] == ["phantom-a/crop1"]
    assert reason in result.failures[0].reason
    assert result.done == 5


def test_http_gives_the_same_bytes(http, phantom, converted, tmp_path):
    url, _ = http
    result = run(elsewhere(phantom, url, tmp_path), tmp_path / "out")
    assert outputs(result) == outputs(converted)


def test_passing_trouble_is_tried_again(http, phantom, converted, tmp_path):
    url, trouble = http
    trouble["crop1/cell/s0"] = [503, 0, 500, 200]
    result = run(elsewhere(phantom, url, tmp_path), tmp_path / "out")
    assert result.failures == ()
    assert outputs(result) == outputs(converted)


def test_lasting_refusal_is_that_crops_failure_alone(http, phantom, tmp_path):
    url, trouble = http
    trouble["crop1/cell"] = [403]
    result = run(elsewhere(phantom, url, tmp_path), tmp_path / "out")
    assert [f.item for f in result.failures] == ["phantom-a/crop1"]
    assert result.done == 5


def test_only_known_schemes():
    assert remote.split("/data/a.zarr") is None
    with pytest.raises(StoreError, match="scheme gs"):
        remote.split("gs://bucket/a.zarr")

"""One measured process of the benchmarks: converts a datasplit and tells time and memory."""

from __future__ import annotations

import atexit
import json
import shutil
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from cellmap_core.convert import convert
from cellmap_core.options import ConvertOptions


def main() -> None:
    """Run what the command line says: ``who datasplit output spacing workers``."""
    who, datasplit, output, spacing, workers = sys.argv[1:]
    shutil.rmtree(output, ignore_errors=True)
    options = ConvertOptions(
        datasplit=Path(datasplit),
        output_dir=Path(output),
        target_spacing=spacing,
        num_fold=2,
    )
    work = {"ours": ours, "peer": peer, "spread": spread, "flow": flow}[who]
    measure(work(options, int(workers)))


def measure(job: Callable[[], Any]) -> None:
    """Run a job whose imports are done; print its seconds and its memory over them."""
    imported = peak_bytes()
    begun = time.perf_counter()
    job()
    seconds = time.perf_counter() - begun
    over = (peak_bytes() - imported) / 1e6
    print(json.dumps({"seconds": seconds, "over_import_mb": over}))


def ours(options: ConvertOptions, _workers: int) -> Callable[[], Any]:
    """The whole conversion, in this process."""
    return lambda: convert(options)


def peer(options: ConvertOptions, _workers: int) -> Callable[[], Any]:
    """What people write today."""
    from cellmap_core.datasplit import read_datasplit
    from tests.bench.peer_convert import convert_crop

    (ref,) = read_datasplit(options.datasplit).crops
    return lambda: convert_crop(ref, options.target_spacing[0], options.output_dir)


def spread(options: ConvertOptions, workers: int) -> Callable[[], Any]:
    """The conversion over a Dask cluster that is up, without Prefect."""
    from distributed import Client, LocalCluster

    from tasks.fanout import Spread

    cluster = LocalCluster(
        n_workers=workers, threads_per_worker=1, memory_limit=0, dashboard_address=None
    )
    client = Client(cluster)
    client.run(import_module, "cellmap_core.convert")
    atexit.register(cluster.close)
    atexit.register(client.close)
    return lambda: convert(options, Spread(client))


def flow(options: ConvertOptions, _workers: int) -> Callable[[], Any]:
    """The flow, on a Prefect server that is up already."""
    import os

    from flows.server import temporary_server

    server = temporary_server()
    os.environ["PREFECT_API_URL"], os.environ["PREFECT_API_AUTH_STRING"] = server.__enter__()
    atexit.register(server.__exit__, None, None, None)
    from flows.convert import convert as convert_flow

    return lambda: convert_flow(**dict(options))


def peak_bytes() -> int:
    """Highest resident memory of this process so far."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (row for row in status.splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) << 10


if __name__ == "__main__":
    main()

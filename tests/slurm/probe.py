"""A small flow for the tests of the worker: it says where it runs, waits, and ends as told."""

import os
import time
from pathlib import Path

from prefect import flow, get_run_logger


@flow(name="probe")
def probe(folder: str, seconds: float = 0, fail: bool = False):
    get_run_logger().info("probe runs in job %s", os.environ.get("SLURM_JOB_ID"))
    Path(folder).mkdir(parents=True, exist_ok=True)
    with (Path(folder) / "starts").open("a") as file:
        file.write(f"{os.environ.get('SLURM_JOB_ID')} {os.getpid()}\n")
    end = time.monotonic() + seconds
    while time.monotonic() < end and not (Path(folder) / "go").exists():
        time.sleep(0.2)
    if fail:
        raise RuntimeError("told to fail")
    if "MARK" in os.environ:
        (Path(folder) / "mark").write_text(os.environ["MARK"])

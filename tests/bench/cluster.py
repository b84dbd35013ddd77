"""`make bench-cluster`: how well a SLURM cluster is used, on one of four nodes brought up here.

Two hundred runs in the queue, and what they cost the worker. And six trainings (three
algorithms, two folds) in four jobs at a time, through server, work pool and worker, beside a
bound: what a perfect schedule of the same trainings could take, a tenth and half a minute more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cellmap_core.phantom import write_phantom
from tests.bench.convert import run, table
from tests.slurm.cluster import Cluster, missing
from tests.slurm.queued import counted_squeue, queue_up
from tests.slurm.service import SlurmService, slurm_service

ALGOS = ("segresnet", "dints", "swinunetr")
SLOTS = 4
EPOCHS = 20
QUEUED = 200
SMALL_SITE = """
name: bench
log_dir: LOGS
warn_seconds: 60
stages:
  flow: {cores: 1, memory_gb: 1, hours: 1}
"""
SITE = f"""
name: bench
log_dir: LOGS
network_interface: lo
environment: {{OMP_NUM_THREADS: "1"}}
stages:
  flow: {{cores: 1, memory_gb: 2, hours: 1}}
  convert: {{jobs: 1, cores: 1, memory_gb: 2, hours: 1}}
  analyze: {{jobs: 1, cores: 1, memory_gb: 2, hours: 1}}
  train: {{jobs: {SLOTS}, cores: 1, memory_gb: 4, hours: 1, gpus: 1, gpu_memory_gb: 40,
          partition: gpu}}
"""
OPTIONS = {
    "algos": ALGOS,
    "num_fold": 2,
    "num_epochs": EPOCHS,
    "overrides": {
        "segresnet.init_filters": 8, "segresnet.blocks_down": [1, 1],
        "dints.channel_mul": 0.25, "dints.num_blocks": 3, "dints.num_depths": 2,
        "swinunetr.feature_size": 12, "swinunetr.patch_size_vox": [64, 32, 32],
        "patch_size_vox": [32, 32, 32], "batch_size": 2, "num_steps_per_epoch": 2,
        "validate_every": EPOCHS // 2,
    },
}  # fmt: skip


def main() -> None:
    """Run the parts asked for (all of them by default) and print their tables."""
    run({"makespan": makespan, "queue": queue}, __doc__)


def makespan(folder: Path) -> None:
    """Time from the start of six trainings' run to its end, against their own times."""
    with _service(folder, SITE) as service:
        _train(service, folder)


def queue(folder: Path) -> None:
    """Memory of the worker with one and with many queued runs, and its calls of ``squeue``."""
    calls = counted_squeue(folder / "bin")
    path = f"{calls.parent}:{os.environ['PATH']}"
    with _service(folder, SMALL_SITE, PATH=path) as service:
        seen = queue_up(service, service.deploy_probe(), folder / "runs", QUEUED, calls)
    lost = len(set(seen.run_ids) - set(seen.job_runs))
    doubled = len(seen.job_runs) - len(set(seen.job_runs))
    row = [QUEUED, f"{seen.one_mib:.0f}", f"{seen.all_mib:.0f}", f"{seen.calls / seen.polls:.2f}"]
    columns = ["runs", "MiB with one", "MiB with all", "squeue calls a poll", "lost", "doubled"]
    table("Runs in the queue", columns, [[*row, lost, doubled]])


@contextmanager
def _service(folder: Path, site: str, **environment: str) -> Iterator[SlurmService]:
    if reason := missing():
        raise SystemExit(f"not measured: {reason}")
    cluster = Cluster()
    cluster.start()
    try:
        with slurm_service(cluster, folder / "home", site, **environment) as service:
            yield service
    finally:
        cluster.stop()


def _train(service: SlurmService, folder: Path) -> None:
    split = write_phantom(folder / "phantom")
    places = {"work_dir": str(folder / "work"), "output_dir": str(folder / "nifti")}
    for mode in ("convert", "analyze", "generate", "train"):
        data = (
            {"datasplit": str(split)}
            if mode == "convert"
            else {"datalist": str(folder / "nifti" / "datalist.json")}
        )
        done = service.run("full", mode=mode, **places, **data, **OPTIONS)
        if done.returncode:
            raise SystemExit(f"{mode} failed: {service.last_run().state.message}")
    run_of_all = service.last_run()
    each = [
        task.total_run_time.total_seconds()
        for task in service.task_runs(run_of_all.id)
        if task.name.startswith("train ")
    ]
    took = (run_of_all.end_time - run_of_all.start_time).total_seconds()
    least = max(sum(each) / SLOTS, max(each))
    bound = 1.1 * sum(each) / SLOTS + max(each) + 30
    figures = (sum(each), max(each), least, took, bound)
    row = [len(each), SLOTS, *(f"{seconds:.0f}" for seconds in figures), f"{took / bound:.2f}"]
    columns = ["trainings", "slots", "sum s", "longest s", "least possible s", "run s", "bound s"]
    title = "A run of six trainings; bound: 1.1 × sum / slots + longest + 30 s"
    table(title, [*columns, "of the bound"], [row])


if __name__ == "__main__":
    main()

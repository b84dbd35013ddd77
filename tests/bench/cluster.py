"""`make bench-cluster`: how well a SLURM cluster is used, on one of four nodes brought up here.

Six trainings (three algorithms, two folds) in four jobs at a time, through server, work pool
and worker. Nothing is asserted; the bound beside the figure is what a perfect schedule of the
same trainings could take, and a tenth and half a minute more.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from cellmap_core.phantom import write_phantom
from deployments import service as services
from tests.bench.convert import run, table
from tests.slurm.cluster import Cluster, missing
from tests.slurm.service import SlurmService

ALGOS = ("segresnet", "dints", "swinunetr")
SLOTS = 4
EPOCHS = 40
SITE = f"""
name: bench
log_dir: {{logs}}
network_interface: lo
environment: {{{{OMP_NUM_THREADS: "1"}}}}
stages:
  flow: {{{{cores: 1, memory_gb: 2, hours: 1}}}}
  convert: {{{{jobs: 1, cores: 1, memory_gb: 2, hours: 1}}}}
  analyze: {{{{jobs: 1, cores: 1, memory_gb: 2, hours: 1}}}}
  train: {{{{jobs: {SLOTS}, cores: 1, memory_gb: 3, hours: 1, gpus: 1, gpu_memory_gb: 40,
          partition: gpu}}}}
"""
OPTIONS = {
    "algos": ALGOS,
    "num_fold": 2,
    "num_epochs": EPOCHS,
    "overrides": {
        "segresnet.init_filters": 8, "segresnet.blocks_down": [1, 1],
        "dints.init_filters": 4, "swinunetr.feature_size": 12,
        "patch_size_vox": [32, 32, 32], "batch_size": 2, "num_steps_per_epoch": 2,
        "validate_every": EPOCHS // 2,
    },
}  # fmt: skip


def main() -> None:
    """Run the parts asked for (all of them by default) and print their tables."""
    run({"makespan": makespan}, __doc__)


def makespan(folder: Path) -> None:
    """Time from the start of six trainings' run to its end, against their own times."""
    if reason := missing():
        print(f"not measured: {reason}")
        return
    cluster = Cluster()
    cluster.start()
    try:
        home = _home(folder)
        os.environ |= {**cluster.environment, "AUTO3DSEG_SITE": str(home / "site.yaml")}
        service = SlurmService(home, services.start(home, "slurm"), cluster)
        try:
            _train(service, folder)
        finally:
            services.stop(home)
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
            raise SystemExit(f"{mode} failed: {done.stdout}\n{done.stderr}")
    run_of_all = service.last_run()
    each = [
        task.total_run_time.total_seconds()
        for task in service.task_runs(run_of_all.id)
        if task.name.startswith("train ")
    ]
    took = (run_of_all.end_time - run_of_all.start_time).total_seconds()
    least = sum(each) / SLOTS + max(each)
    bound = 1.1 * sum(each) / SLOTS + max(each) + 30
    row = [len(each), SLOTS, f"{sum(each):.0f}", f"{max(each):.0f}", f"{took:.0f}"]
    row += [f"{bound:.0f}", f"{took / bound:.2f}", f"{took - least:.0f}"]
    columns = ["trainings", "slots", "sum s", "longest s", "run s", "bound s", "of the bound"]
    title = "A run of six trainings; bound: 1.1 × sum / slots + longest + 30 s"
    table(title, [*columns, "over sum / slots + longest"], [row])


def _home(folder: Path) -> Path:
    home = folder / "home"
    home.mkdir()
    (home / "site.yaml").write_text(SITE.format(logs=json.dumps(str(home / "job logs"))))
    return home


if __name__ == "__main__":
    main()

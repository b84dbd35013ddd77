"""What a process may use, by affinity, cgroup and SLURM job: the least counts."""

import pytest

from cellmap_core.machine import cores, gpu_memory_bytes, memory_bytes, oom_kills


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A made-up /proc and cgroup tree: a job's cgroup inside a limited one."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(16)))
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU"):
        monkeypatch.delenv(name, raising=False)
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    job = cgroups / "slurm" / "job_1"
    (proc / "self").mkdir(parents=True)
    job.mkdir(parents=True)
    (proc / "self" / "cgroup").write_text("0::/slurm/job_1\n")
    (proc / "meminfo").write_text("MemFree: 1 kB\nMemTotal:       67108864 kB\n")
    return proc, cgroups


def test_without_limits_it_is_the_machine(machine):
    assert (cores(*machine), memory_bytes(*machine)) == (16, 64 << 30)


def test_the_tightest_cgroup_counts(machine):
    _, cgroups = machine
    (cgroups / "slurm" / "cpu.max").write_text("600000 100000\n")
    (cgroups / "slurm" / "job_1" / "cpu.max").write_text("max 100000\n")
    (cgroups / "slurm" / "memory.max").write_text("max\n")
    (cgroups / "slurm" / "job_1" / "memory.max").write_text(f"{8 << 30}\n")
    assert (cores(*machine), memory_bytes(*machine)) == (6, 8 << 30)


def test_the_slurm_job_counts_where_nothing_enforces_it(machine, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "2048")
    assert (cores(*machine), memory_bytes(*machine)) == (4, 8 << 30)
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "4096")
    assert memory_bytes(*machine) == 4 << 30


def test_no_quota_leaves_less_than_one_core(machine):
    _, cgroups = machine
    (cgroups / "slurm" / "cpu.max").write_text("50000 100000\n")
    assert cores(*machine) == 1


def test_limits_of_cgroup_version_1_count_too(machine):
    proc, cgroups = machine
    rows = "12:pids:/x\n5:memory:/slurm/job_1\n3:cpu,cpuacct:/slurm/job_1\n"
    (proc / "self" / "cgroup").write_text(rows)
    for controller, name, above, own in (
        ("memory", "memory.limit_in_bytes", 9223372036854771712, 6 << 30),
        ("cpu", "cpu.cfs_quota_us", -1, 300000),
        ("cpu", "cpu.cfs_period_us", 100000, 100000),
    ):
        job = cgroups / controller / "slurm" / "job_1"
        job.mkdir(parents=True, exist_ok=True)
        (job.parent / name).write_text(f"{above}\n")
        (job / name).write_text(f"{own}\n")
    assert (cores(*machine), memory_bytes(*machine)) == (3, 6 << 30)


def test_memory_of_gpus_is_what_the_driver_says(tmp_path, monkeypatch):
    """The smallest of those this process may use; a made-up nvidia-smi stands for the driver."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\ncase "$*" in *--id=1,3) echo 81559; echo 46068;; esac\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    assert gpu_memory_bytes() == 46068 << 20
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_memory_bytes() == 0


def test_processes_killed_for_want_of_memory_are_counted(machine):
    proc, cgroups = machine
    assert oom_kills(*machine) == 0
    (cgroups / "slurm" / "memory.events").write_text("oom 9\noom_kill 9\n")
    job = cgroups / "slurm" / "job_1" / "memory.events"
    job.write_text("low 0\nmax 40\noom 3\noom_kill 2\noom_group_kill 0\n")
    # Those of this cgroup alone: other jobs may die beside it.
    assert oom_kills(*machine) == 2
    (proc / "self" / "cgroup").write_text("5:memory:/slurm/job_1\n")
    (cgroups / "memory" / "slurm" / "job_1").mkdir(parents=True)
    control = cgroups / "memory" / "slurm" / "job_1" / "memory.oom_control"
    control.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")
    assert oom_kills(*machine) == 4

"""What a process may use, by affinity, cgroup and SLURM job: the least counts."""

import pytest

from cellmap_core.machine import cores, memory_bytes


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

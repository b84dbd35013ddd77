"""What a process may use, by affinity, cgroup and SLURM job: the least counts."""

import pytest

from cellmap_core import machine as machine_module
from cellmap_core.machine import cores, gpu_memory_bytes, memory_bytes, oom_kills
from cellmap_core.training.facts import Memory, memory_there


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


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A made-up nvidia-smi, which prints a row for each device: its memory and its MIG mode."""
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")

    def write(visible, *rows, code=0):
        (tools / "nvidia-smi").write_text(
            f'#!/bin/sh\ncase "$*" in *--query-gpu=memory.total,mig.mode.current*--id={visible})\n'
            + "".join(f"echo '{row}';\n" for row in rows)
            + f"exit {code};; esac\nexit 9\n"
        )
        (tools / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return write


@pytest.fixture
def torch_sees(tmp_path, monkeypatch):
    """Have the process that asks torch find a made-up one, with GPUs of these sizes."""

    def write(body):
        package = tmp_path / "stub" / "torch"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("from . import cuda\n")
        (package / "cuda.py").write_text(body)
        monkeypatch.setenv("PYTHONPATH", str(package.parent))

    yield write
    machine_module._sizes_by_torch.cache_clear()


SEEN = """
from types import SimpleNamespace
sizes = [40 << 30, {second} << 30]
device_count = lambda: len(sizes)
get_device_properties = lambda n: SimpleNamespace(total_memory=sizes[n])
"""


def test_memory_of_gpus_is_what_the_driver_says(driver, monkeypatch):
    """The smallest of those this process may use."""
    driver("1,3", "81559, Disabled", "46068, [N/A]")
    assert gpu_memory_bytes() == 46068 << 20
    assert memory_there() == Memory(kind="gpu", size_bytes=45 << 30)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_memory_bytes() == 0


@pytest.mark.parametrize(
    ("visible", "rows", "code"),
    [
        ("0,1", ["[N/A], [N/A]", "[N/A], [N/A]"], 0),
        ("0,1", ["81559, Disabled", "[N/A], [N/A]"], 0),
        ("0,1", ["81559, Enabled", "81559, Enabled"], 0),
        ("0,1", ["[Insufficient Permissions], Enabled", "81559, Disabled"], 0),
        ("MIG-aaaa,MIG-bbbb", ["No devices were found"], 6),
        ("GPU-aaaa,MIG-bbbb", ["81559, Disabled"], 0),
    ],
)
def test_what_the_driver_does_not_tell_torch_is_asked(
    visible, rows, code, driver, torch_sees, caplog
):
    driver(visible, *rows, code=code)
    torch_sees(SEEN.format(second=20))
    assert gpu_memory_bytes() == 20 << 30
    assert memory_there() == Memory(kind="gpu", size_bytes=20 << 30)
    assert caplog.text == ""


def test_gpus_that_torch_does_not_see_are_not_trained_on(driver, caplog):
    """With the real torch, which finds none behind the made-up driver."""
    pytest.importorskip("torch")
    driver("MIG-no-such-instance", "[N/A], [N/A]")
    assert gpu_memory_bytes() == 0
    assert memory_there().kind == "host"
    assert "torch does not see GPU MIG-no-such-instance" in caplog.text
    assert "--gpu_memory_gb" in caplog.text


def test_a_memory_that_nobody_tells_is_a_guess_that_is_said(driver, torch_sees, caplog):
    driver("0", "[N/A], [N/A]")
    torch_sees("raise ImportError('no driver')")
    assert gpu_memory_bytes() is None
    assert memory_there().kind == "gpu"
    assert "torch cannot be asked about GPU 0 (ImportError: no driver)" in caplog.text
    assert "24 GiB are assumed" in caplog.text
    assert "--gpu_memory_gb" in caplog.text
    caplog.clear()
    assert memory_there(48).size_bytes == 48 << 30
    assert caplog.text == ""


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

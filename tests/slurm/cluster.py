"""A SLURM cluster of the tests' own: real daemons, four virtual nodes, fake GPUs, one folder.

A guard process (this file as a program) starts the daemons and takes in what they leave
behind, jobs included. When the test process ends, however it ends, so does all of it.
"""

import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "slurmctld", "slurmd", "munged")
_INSTALL = "apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge"
_NODES = ("cpu1", "cpu2", "gpu1", "gpu2")
_FIELDS = {"id": "%i", "state": "%T", "reason": "%r", "comment": "%k", "name": "%j",
           "partition": "%P", "node": "%N"}  # fmt: skip
_SEPARATOR = "\x1f"

# A command gives up on a dead controller by itself, after less than half of this.
_COMMAND_SECONDS = 300
_STOP_SECONDS = 300
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_SLURM_CONF = """\
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/%n.log
SlurmctldTimeout=30
SlurmdTimeout=60
MinJobAge={min_job_age}
KillWait=5
ReturnToService=1
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=bf_interval=1,batch_sched_delay=0,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobcomp.txt
MpiDefault=none
GresTypes=gpu
NodeName=DEFAULT CPUs=4 RealMemory=8000
NodeName=cpu1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={cpu1} Feature=cpu
NodeName=cpu2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={cpu2} Feature=cpu
NodeName=gpu1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={gpu1} Feature=a100 Gres=gpu:a100:2
NodeName=gpu2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={gpu2} Feature=a100 Gres=gpu:a100:2
PartitionName=DEFAULT MaxTime=INFINITE DefaultTime=60 DefMemPerCPU=500 PriorityTier=10 State=UP
PartitionName=cpu Nodes=cpu[1-2] Default=YES
PartitionName=short Nodes=cpu[1-2] MaxTime=2 DefaultTime=1
PartitionName=gpu Nodes=gpu[1-2]
PartitionName=gpu_low Nodes=gpu[1-2] PriorityTier=1
"""

_GRES_CONF = """\
AutoDetect=off
NodeName=gpu[1-2] Name=gpu Type=a100 File={folder}/nvidia[0-1] Flags=nvidia_gpu_env
"""


def missing() -> str | None:
    """Why a cluster cannot be brought up here, or None."""
    if absent := [command for command in _COMMANDS if not shutil.which(command)]:
        return f"{', '.join(absent)} not installed; as root: {_INSTALL}"
    if os.geteuid() != 0:
        return "a SLURM cluster needs root, to make device files as its GPUs"
    with tempfile.TemporaryDirectory() as folder:
        try:
            _make_device(Path(folder) / "nvidia0")
        except OSError as error:
            return f"device files, which a SLURM cluster has as its GPUs, are refused: {error}"
    return None


#: Seconds after which something that is waited for counts as stuck: far beyond what a busy machine
#: takes, for it is no expectation.
PATIENCE = 900


def wait_until(question, complaint, timeout=PATIENCE):
    """Ask until the answer is true, and give it; too late is an error, explained by the other."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if answer := question():
            return answer
        time.sleep(0.1)
    raise TimeoutError(complaint())


class Cluster:
    """Partitions cpu (default), short (2 minutes at most), gpu, and gpu_low, which gpu preempts.

    Nodes cpu1, cpu2, gpu1, gpu2 have four cores and 8000 MB each; gpu1 and gpu2 two GPUs and
    the feature ``a100``.
    """

    def __init__(self, min_job_age=3600):
        self.min_job_age = min_job_age
        self.folder = None
        self._guard = None
        self._controller = None

    def start(self):
        """Bring all daemons up; returns when every node is idle."""
        # Always a folder of its own: a socket's path is 107 characters at most, and SLURM
        # splits its configuration at spaces. The guard removes it.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.folder.chmod(0o755)
        self._guard = subprocess.Popen(
            [sys.executable, __file__, self.folder],
            env={**_without_slurm(os.environ), **self.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            self._configure()
            self._start_munged()
            self.start_controller()
            for node in _NODES:
                self._daemon(node, "slurmd", "-D", "-N", node)
            self.wait_until_idle()
        except BaseException:
            self.stop()
            raise

    def stop(self):
        """End every daemon and job and remove the folder."""
        if self._guard is None:
            return
        guard, self._guard, self._controller = self._guard, None, None
        guard.stdin.close()
        guard.wait(_STOP_SECONDS)
        guard.stdout.close()

    @property
    def environment(self) -> dict[str, str]:
        """What makes a SLURM command talk to this cluster, to be merged over ``os.environ``."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    @property
    def jobcomp(self) -> Path:
        """Where SLURM writes a line about each job that has ended."""
        return self.folder / "jobcomp.txt"

    def run(self, *command, check=True, stdin="") -> str:
        """Run a SLURM command and give what it prints."""
        done = subprocess.run(
            [str(part) for part in command],
            env={**_without_slurm(os.environ), **self.environment},
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=_COMMAND_SECONDS,
        )
        if check and done.returncode:
            raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def submit(self, script, *options) -> str:
        """Submit a bash script (without its first line); gives the job's id."""
        command = ("sbatch", "--parsable", f"--chdir={self.folder}", *options)
        return self.run(*command, stdin=f"#!/bin/bash\n{script}\n").strip()

    def jobs(self) -> list[dict[str, str]]:
        """All jobs that SLURM has a record of, ended ones too (until MinJobAge is over)."""
        layout = _SEPARATOR.join(_FIELDS.values())
        lines = self.run("squeue", "--states=all", "--noheader", f"--format={layout}").splitlines()
        return [dict(zip(_FIELDS, line.split(_SEPARATOR), strict=True)) for line in lines]

    def job(self, job_id) -> dict[str, str] | None:
        """The record of one job, or None."""
        return next((job for job in self.jobs() if job["id"] == str(job_id)), None)

    def wait_for(self, job_id, states, timeout=PATIENCE) -> dict[str, str]:
        """Wait until the job is in the state, or one of the states; gives its record."""
        wanted = {states} if isinstance(states, str) else set(states)

        def arrived():
            job = self.job(job_id)
            return job if job and job["state"] in wanted else None

        return wait_until(
            arrived, lambda: f"job {job_id} is {self.job(job_id)}, expected {wanted}", timeout
        )

    def output(self, job_id) -> str:
        """What a job of ``submit`` has printed so far."""
        file = self.folder / f"slurm-{job_id}.out"
        return file.read_text() if file.exists() else ""

    def fail_node(self, name):
        """Let the node be down; its jobs end with NODE_FAIL, or are requeued if they may be."""
        self.run("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=test")

    def resume_node(self, name):
        """Let the node be up again."""
        self.run("scontrol", "update", f"NodeName={name}", "State=RESUME")

    def end_time(self, job_id, seconds=1):
        """Let the job's wall time be over so many seconds from now.

        SLURM looks every 30 seconds: then it ends what is over, and sends the signal of
        ``--signal=B:USR1@W`` where less than W + 30 seconds are left.
        """
        self.run("scontrol", "update", f"JobId={job_id}", f"EndTime=now+{seconds}")

    def release(self, job_id):
        """Let a requeued job start; SLURM would wait for two minutes."""
        # Not at once: in the second of its end, the node takes the new start for the old one
        # and refuses it (Job credential revoked), and the job ends as FAILED.
        self.run("scontrol", "update", f"JobId={job_id}", "StartTime=now+2")

    def kill_controller(self, number=signal.SIGKILL):
        """End slurmctld, by default as a crash would; nodes and jobs go on.

        A crash loses the last seconds: a job just submitted is gone and its id given again;
        one just started is killed and runs a second time, by the same id.
        """
        os.kill(self._controller, number)
        gone = Path(f"/proc/{self._controller}")
        wait_until(lambda: not gone.exists(), lambda: "slurmctld did not end")
        self._controller = None

    def start_controller(self):
        """Start slurmctld, if it does not run, with the state that the last one has left."""
        if self._controller is None:
            self._controller = self._daemon("slurmctld", "slurmctld", "-D")
        wait_until(
            lambda: " is UP" in self.run("scontrol", "ping", check=False),
            lambda: f"slurmctld does not answer\n{self._logs()}",
        )

    def drain(self):
        """Cancel all jobs and wait until none is left."""
        self.run("scancel", "--user=root")
        wait_until(
            lambda: not self.run("squeue", "--noheader"),
            lambda: f"jobs are left: {self.run('squeue')}",
        )

    def restore(self):
        """As after the start: controller and all nodes up, no jobs."""
        self.start_controller()
        self.drain()
        for name, state in self._node_states().items():
            if state.startswith(("down", "drain")):
                self.resume_node(name)
        self.wait_until_idle()

    def wait_until_idle(self):
        """Wait until every node is up and without a job."""
        idle = dict.fromkeys(_NODES, "idle")
        wait_until(
            lambda: self._node_states() == idle,
            lambda: f"the nodes are {self._node_states()}\n{self._logs()}",
        )

    def _node_states(self):
        lines = self.run("sinfo", "-h", "-N", "-o", "%N %T", check=False).splitlines()
        return dict(line.split() for line in lines)

    def _configure(self):
        for name in ("state", "log", *(f"spool/{node}" for node in _NODES)):
            (self.folder / name).mkdir(parents=True)
        for number in (0, 1):
            _make_device(self.folder / f"nvidia{number}")
        ports = dict(zip(("controller", *_NODES), _free_ports(1 + len(_NODES)), strict=True))
        values = {"folder": self.folder, "min_job_age": self.min_job_age, **ports}
        (self.folder / "slurm.conf").write_text(_SLURM_CONF.format(**values))
        (self.folder / "gres.conf").write_text(_GRES_CONF.format(**values))

    def _start_munged(self):
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = {"socket": "munge.sock", "key-file": key.name, "pid-file": "munged.pid",
                 "seed-file": "munged.seed"}  # fmt: skip
        options = [f"--{option}={self.folder / name}" for option, name in files.items()]
        # Forced: it does not like a folder below /tmp, where anybody can write.
        self._daemon("munged", "munged", "--foreground", "--force", *options)
        there = (self.folder / "munge.sock").is_socket
        wait_until(there, lambda: f"munged does not start\n{self._logs()}")

    def _daemon(self, name, *command):
        """Have the guard start a daemon; gives its process id."""
        print(json.dumps([name, *command]), file=self._guard.stdin, flush=True)
        return int(self._guard.stdout.readline())

    def _logs(self):
        """The last lines of every daemon."""
        files = sorted((self.folder / "log").iterdir())
        tails = {file.name: file.read_text(errors="replace").splitlines()[-15:] for file in files}
        return "\n".join("\n".join([f"== {name}", *tail]) for name, tail in tails.items())


def _make_device(path):
    # SLURM wants a GPU to be a character device; that this one is /dev/null, it cannot tell.
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))


def _free_ports(count):
    """Ports below those that the kernel lends to outgoing connections, now or at a restart."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    with contextlib.ExitStack() as probes:
        ports = []
        # Not the seeded generator: tests running side by side would all try the same ports.
        while len(ports) < count:
            port = random.SystemRandom().randrange(10_000, max(lowest, 20_000))
            with contextlib.suppress(OSError):
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
                ports.append(port)
    return ports


def _without_slurm(environment):
    """Leave out the variables of a job that the tests may run in."""
    prefixes = ("SLURM_", "SBATCH_", "SQUEUE_", "SINFO_", "SCANCEL_")
    return {name: value for name, value in environment.items() if not name.startswith(prefixes)}


def _guard(folder):
    """Start the daemons that standard input names; at its end, end all and remove the folder."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1)  # orphans below become children of this process
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # which the kernel then buries

    def prepare():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    try:
        for line in sys.stdin:
            name, *command = json.loads(line)
            with (folder / "log" / f"{name}.out").open("a") as output:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=prepare,
                )
            print(process.pid, flush=True)
    finally:
        _end_children()
        shutil.rmtree(folder)


def _end_children():
    children = Path("/proc/thread-self/children")
    # Each generation that ends leaves the next one to this process.
    while pids := children.read_text().split():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.02)


if __name__ == "__main__":
    _guard(Path(sys.argv[1]))

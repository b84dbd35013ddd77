"""The commands of SLURM: sbatch, squeue, scontrol, scancel, and sacct where there is one.

Every call has a time limit. That the controller does not answer says nothing of the jobs:
:class:`SchedulerUnavailable` is to be waited out, never taken for an end.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path

from cellmap_core.cluster.jobs import JobSpec, inherited, run_of
from cellmap_core.cluster.states import End, Phase, end_of, phase_of
from cellmap_core.errors import SchedulerUnavailable, SubmissionRefused
from cellmap_core.models import Frozen

_COLUMNS = "%A|%T|%r|%N|%V|%S|%e|%k"
# What the commands say when the controller, not the call, is at fault.
_UNAVAILABLE = re.compile(
    r"unable to contact slurm controller|connection (refused|reset|timed out)|"
    r"socket timed out|slurm_persist_conn_open|communication (connection )?failure|"
    r"zero bytes were transmitted|controller not responding|backup controller|"
    r"temporarily unable|resource temporarily unavailable|could not establish",
    re.IGNORECASE,
)
_GONE = re.compile(r"invalid job id", re.IGNORECASE)
# What SLURM writes into a job's log when it ends the job for its memory; where no cgroups are in
# use, the job's state does not tell.
_MEMORY = re.compile(
    r"^slurm(?:step)?d\S*: error: .*(?:oom[-_ ]kill|out[-_ ]of[-_ ]memory|memory limit)",
    re.IGNORECASE | re.MULTILINE,
)
# Its log's end tells a person why a job ended; more of it is in the file.
_TAIL_BYTES = 3000


class JobRecord(Frozen):
    """What the cluster knows of a job.

    Attributes
    ----------
    reason : str
        Why it waits, or how it ended.
    submitted, started, ended : datetime or None
        Local times; of a queued job ``started`` is SLURM's estimate.
    """

    job_id: int
    state: str
    reason: str = ""
    node: str = ""
    submitted: datetime | None = None
    started: datetime | None = None
    ended: datetime | None = None
    comment: str = ""

    @property
    def phase(self) -> Phase:
        """Queued, running or ended."""
        return phase_of(self.state)

    @property
    def end(self) -> End | None:
        """How it ended; None where it has not."""
        return end_of(self.state) if self.phase is Phase.ENDED else None

    @property
    def queue_seconds(self) -> float:
        """From submission to the start, or to the end of one that never ran."""
        return _between(self.submitted, self.started if self._ran else self.ended)

    @property
    def run_seconds(self) -> float:
        """From start to end."""
        return _between(self.started, self.ended) if self._ran else 0.0

    @property
    def _ran(self) -> bool:
        return bool(self.started and self.ended and self.node)

    def __str__(self) -> str:
        """The job and how it goes, or how it ended, in one line of a log."""
        reason = "" if self.reason in ("", "None") else self.reason
        if self.phase is Phase.RUNNING:
            return f"{self._name} is {self.state.lower()} on {self.node or 'its node'}"
        if self.phase is not Phase.ENDED:
            start = f", start expected {self.started:%d %b %H:%M}" if self.started else ""
            return f"{self._name} waits in the queue{reason and f': {reason}'}{start}"
        said = f"{self._name} ended {self.state}{reason and f' ({reason})'}"
        said += f" on {self.node}" if self.node else ""
        if self._ran:
            said += f", after {self.queue_seconds:.0f} s in the queue and "
            said += f"{self.run_seconds:.0f} s running"
        return said

    @property
    def _name(self) -> str:
        """The job; of which stage, where it is not a run's own."""
        of = run_of(self.comment)
        return f"job {self.job_id}" + (f" ({of[1]})" if of and of[1] != "flow" else "")


class Slurm:
    """The cluster this machine is a client of.

    Parameters
    ----------
    environment : mapping, optional
        Of the commands and of the jobs (default: this process's).
    timeout_seconds : float
        Of one call.
    on_call : callable, optional
        Told the name of each command that is run.
    """

    def __init__(
        self,
        environment: Mapping[str, str] | None = None,
        timeout_seconds: float = 60.0,
        on_call: Callable[[str], None] | None = None,
    ) -> None:
        self._environment = inherited(os.environ if environment is None else environment)
        self._timeout = timeout_seconds
        self._on_call = on_call

    def submit(self, spec: JobSpec) -> int:
        """Submit a job; its log's folder is made first.

        Returns
        -------
        int
            The job's id.

        Raises
        ------
        SubmissionRefused
            SLURM does not take the job as it is, or its log cannot be written.
        SchedulerUnavailable
            The controller did not answer; the job may be there all the same.
        """
        try:
            spec.log.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SubmissionRefused(
                f"the folder of the job's log cannot be made ({error})",
                "a folder that may be written to",
                "mend it or set another log_dir in the site profile",
            ) from error
        said = self._run(["sbatch", *spec.arguments()], spec.environment, spec.script())
        number = said.strip().splitlines()[-1].partition(";")[0] if said.strip() else ""
        if not number.isdigit():
            raise SubmissionRefused(f"sbatch answered {said.strip()!r}", "a job id")
        return int(number)

    def test(self, spec: JobSpec) -> None:
        """Have SLURM look whether it would take a job, without submitting it.

        Raises
        ------
        SubmissionRefused
            It would not; the message is SLURM's.
        """
        self._run(["sbatch", "--test-only", *spec.arguments()], spec.environment, spec.script())

    def jobs(self) -> dict[int, JobRecord]:
        """All jobs of this user that the controller remembers, by one call of ``squeue``."""
        said = self._run(["squeue", "--me", "--noheader", "--states=all", f"--format={_COLUMNS}"])
        records = (_record(line) for line in said.splitlines())
        return {record.job_id: record for record in records if record is not None}

    def past(self, job_id: int) -> JobRecord | None:
        """A job that the controller has forgotten, of the accounting where there is one."""
        if shutil.which("sacct", path=self._environment.get("PATH")) is None:
            return None
        columns = "JobIDRaw,State,NodeList,Submit,Start,End,Comment"
        command = ["sacct", f"--jobs={job_id}", "--allocations", "--noheader", "--parsable2"]
        try:
            said = self._run([*command, f"--format={columns}"])
        except (SchedulerUnavailable, SubmissionRefused):
            return None  # Accounting is off, or its database does not answer.
        for line in said.splitlines():
            number, state, node, submitted, started, ended, comment = line.split("|", 6)
            if number == str(job_id):
                return JobRecord(
                    job_id=job_id,
                    state=state,
                    node=node,
                    submitted=_time(submitted),
                    started=_time(started),
                    ended=_time(ended),
                    comment=comment,
                )
        return None

    def details(self, job_id: int) -> dict[str, str]:
        """All that the controller knows of a job, by its own names; empty when it is forgotten."""
        try:
            said = self._run(["scontrol", "--oneliner", "show", "job", str(job_id)])
        except SubmissionRefused as error:
            if _GONE.search(str(error)):
                return {}
            raise
        return dict(re.findall(r"(?:^| )([A-Z][A-Za-z/:_]*)=(.*?)(?= [A-Z][A-Za-z/:_]*=|$)", said))

    def cancel(self, job_ids: Iterable[int], signal: str | None = None) -> None:
        """Cancel jobs (or send them a signal); those that are gone are passed over."""
        numbers = [str(job_id) for job_id in job_ids]
        if not numbers:
            return
        how = [f"--signal={signal}", "--full"] if signal else []
        try:
            self._run(["scancel", *how, *numbers])
        except SubmissionRefused as error:
            if not _GONE.search(str(error)):
                raise

    def show(self, *command: str) -> str:
        """The output of another command that only shows something."""
        return self._run(list(command))

    def _run(
        self, command: list[str], more: Mapping[str, str] | None = None, given: str = ""
    ) -> str:
        if self._on_call is not None:
            self._on_call(command[0])
        try:
            done = subprocess.run(
                command,
                input=given,
                env={**self._environment, **inherited(more or {})},
                capture_output=True,
                text=True,
                errors="replace",
                timeout=self._timeout,
                check=False,
            )
        except FileNotFoundError as error:
            raise SchedulerUnavailable(
                f"no command {command[0]}", "SLURM's client commands", "run this on a login node"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise SchedulerUnavailable(
                f"{command[0]} did not answer within {self._timeout:.0f} s"
            ) from error
        if done.returncode == 0:
            return done.stdout
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        if _UNAVAILABLE.search(said):
            raise SchedulerUnavailable(f"{command[0]}: {said}")
        raise SubmissionRefused(f"{command[0]}: {said}")


def cause_of(record: JobRecord | None, log: Path) -> End:
    """Return why a job ended, by its record and, where that is vague, by its log.

    Parameters
    ----------
    record : JobRecord or None
        The job's last record; None where the cluster has none.
    log : Path
        The job's own log.
    """
    end = (record.end if record else None) or End.UNKNOWN
    vague = end in (End.FAILED, End.CANCELLED, End.UNKNOWN)
    return End.OUT_OF_MEMORY if vague and _MEMORY.search(tail(log)) else end


def log_of_job(log: Path, job_id: int) -> Path:
    """Return the log of a job, whose id stands for the ``%j`` in a `JobSpec`'s ``log``."""
    return log.with_name(log.name.replace("%j", str(job_id)))


def tail(log: Path) -> str:
    """The end of a job's log; empty where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace").strip()
    except OSError:
        return ""


def _record(line: str) -> JobRecord | None:
    """A job of a line of ``squeue``; the comment is last, for it may hold anything."""
    parts = line.split("|", 7)
    if len(parts) < 8 or not parts[0].strip().isdigit():
        return None
    number, state, reason, node, submitted, started, ended, comment = parts
    return JobRecord(
        job_id=int(number),
        state=state,
        reason=reason,
        node=node,
        submitted=_time(submitted),
        started=_time(started),
        ended=_time(ended),
        comment="" if comment == "(null)" else comment,
    )


def _between(begin: datetime | None, end: datetime | None) -> float:
    return max(0.0, (end - begin).total_seconds()) if begin and end else 0.0


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None

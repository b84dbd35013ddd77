"""A job's way to sbatch: one argument each, whatever is in it, and a clean environment."""

import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellmap_core.cluster.jobs import JobSpec, Mail, Resources, comment_of, inherited, run_of

HOSTILE = ["two words", "a\nb", "$(touch x)", "`id`", "it's", '"quoted"', "100%j", "--wrap=id", "é"]


def spec(**changes):
    values = {
        "name": "a run",
        "command": ("true",),
        "resources": Resources(),
        "comment": comment_of("0", "flow"),
        "log": Path("/logs/run.%j.log"),
        "working_dir": Path("/work"),
    }
    return JobSpec(**values | changes)


def option(arguments, name):
    (value,) = [a.split("=", 1)[1] for a in arguments if a.startswith(f"--{name}=")]
    return value


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_stays_a_name(name):
    arguments = spec(name=name).arguments()
    assert option(arguments, "job-name") == name.replace("\n", " ")
    assert all(a.startswith("--") for a in arguments)


@pytest.mark.parametrize("name", ["", "\n", "\x00\x1b"])
def test_a_name_of_nothing_is_ours(name):
    assert option(spec(name=name).arguments(), "job-name") == "auto3dseg"


@pytest.mark.parametrize("part", HOSTILE)
def test_places_may_be_called_anything(part):
    arguments = spec(working_dir=Path(f"/a/{part}"), log=Path(f"/l/{part}/run.%j.log")).arguments()
    assert option(arguments, "chdir") == f"/a/{part}"
    assert option(arguments, "output") == f"/l/{part.replace('%', '%%')}/run.%j.log"


@given(st.lists(st.text(st.characters(exclude_characters="\x00", codec="utf-8")), min_size=1))
def test_the_command_is_one_of_the_shell_argument_by_argument(command):
    line = spec(command=("printf", *command)).script().removeprefix("#!/bin/bash\n\n")
    assert shlex.split(line.removesuffix('\nexec "$@"\n')) == ["set", "--", "printf", *command]


def test_a_setup_that_fails_is_told_and_the_job_goes_on():
    script = spec(command=("echo", "went on"), setup="no-such-module load x").script()
    done = subprocess.run(["bash", "-s"], input=script, capture_output=True, text=True, check=True)
    assert done.stdout == "went on\n"
    assert "warning: the setup ended with 127" in done.stderr


def test_the_script_runs_setup_then_the_command():
    script = spec(command=("printf", "%s|", *HOSTILE), setup="  x=1\n  export x\n").script()
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True)
    assert done.stdout == "".join(f"{h}|" for h in HOSTILE)
    assert script.startswith("#!/bin/bash\nx=1\n")


def test_a_command_that_fails_is_the_jobs_exit_code():
    script = spec(command=("sh", "-c", "exit 7")).script()
    assert subprocess.run(["bash"], input=script, text=True, check=False).returncode == 7


def test_what_a_stage_asks_for():
    asked = Resources(
        partition="gpu", account="lab", constraint="l40s|a100", cores=8, memory_gb=64,
        hours=1.51, gpus=2, gpu_type="a100",
    )  # fmt: skip
    assert asked.arguments() == [
        "--partition=gpu", "--account=lab", "--constraint=l40s|a100", "--nodes=1", "--ntasks=1",
        "--cpus-per-task=8", "--mem=61036M", "--time=91", "--gres=gpu:a100:2",
    ]  # fmt: skip
    other = asked.model_copy(update={"gpu_form": "gpus-per-node", "gpu_type": None})
    assert other.arguments()[-1] == "--gpus-per-node=2"
    assert not [a for a in Resources().arguments() if "gpu" in a]


def test_warning_mail_and_requeue():
    mail = Mail(user="a@b.c", events=("END", "FAIL"))
    arguments = spec(warn_seconds=90, warn_signal="USR1", requeue=True, mail=mail).arguments()
    assert option(arguments, "signal") == "B:USR1@90"
    assert option(arguments, "mail-user") == "a@b.c"
    assert option(arguments, "mail-type") == "END,FAIL"
    assert "--requeue" in arguments
    assert "--no-requeue" in spec().arguments()
    assert not [a for a in spec().arguments() if a.startswith(("--signal", "--mail"))]


def test_a_comment_names_the_run_and_the_stage():
    assert run_of(comment_of("4b1-x", "train")) == ("4b1-x", "train")
    for other in ("", "(null)", "mine", "auto3dseg", "other:1:train", "auto3dseg:1:2:3"):
        assert run_of(other) is None


def test_a_jobs_own_variables_are_not_handed_on():
    environment = {
        "SLURM_JOB_ID": "1", "SLURM_MEM_PER_NODE": "9", "SBATCH_PARTITION": "x", "SRUN_DEBUG": "1",
        "SALLOC_X": "1", "SLURMD_NODENAME": "n", "CUDA_VISIBLE_DEVICES": "0",
        "SLURM_CONF": "/etc/slurm.conf", "SLURM_CLUSTERS": "a", "PATH": "/bin", "SECRET": "a,b=c\n",
    }  # fmt: skip
    assert inherited(environment, drop=["PATH"]) == {
        "SLURM_CONF": "/etc/slurm.conf", "SLURM_CLUSTERS": "a", "SECRET": "a,b=c\n",
    }  # fmt: skip

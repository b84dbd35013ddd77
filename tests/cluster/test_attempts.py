"""How often lost work is begun again, by the cause of the loss and by its progress."""

import pytest

from cellmap_core.cluster.attempts import FRUITLESS_JOBS, Attempts, Loss
from cellmap_core.cluster.profiles import Site
from cellmap_core.cluster.slurm import JobRecord, cause_of
from cellmap_core.cluster.starts import STARTS_NAME, Start, note_start
from cellmap_core.cluster.states import End
from cellmap_core.errors import NoProgressError
from cellmap_core.work import saved_mark

SITE = Site(name="mine", restarts=5, fruitless_jobs=2)


def refusals(site, end, saves, count):
    """What is said of so many losses in a row; ``saves`` tells at which of them it had saved."""
    saved = [0]
    attempts = Attempts("ensemble", site, lambda: saved[0])
    said = []
    for number in range(count):
        saved[0] += number in saves
        said.append(attempts.refusal(Loss(end=end, said=f"job {number} ended")))
        if said[-1] is not None:
            break
    return said


def test_out_of_memory_is_not_tried_again_and_says_what_to_set():
    (said,) = refusals(SITE, End.OUT_OF_MEMORY, {0}, 9)
    assert said == "job 0 ended; raise stages.ensemble.memory_gb of the site profile mine (now 64)"


def test_what_the_cluster_took_goes_on_as_often_as_the_profile_says():
    *again, last = refusals(SITE, End.LOST, (), 99)
    assert again == [None] * SITE.restarts
    assert "took 6 jobs in a row away; the last: job 5 ended" in last
    assert refusals(SITE, End.LOST, {5}, 11)[:-1] == [None] * 10


@pytest.mark.parametrize("end", [End.WALL_TIME, End.CANCELLED, End.FAILED, End.UNKNOWN])
@pytest.mark.parametrize("site", [SITE, None])
def test_any_other_end_goes_on_as_long_as_something_is_saved(end, site):
    most = FRUITLESS_JOBS if site is None else site.fruitless_jobs
    # More wall times than restarts: those are for failures alone.
    assert refusals(site, end, range(50), 50) == [None] * 50
    *again, last = refusals(site, end, (), 99)
    assert again == [None] * (most - 1)
    assert f"lost {most} times in a row without having saved anything" in last
    assert ("stages.ensemble.hours" in last) == (end is End.WALL_TIME and site is not None)


def test_what_an_earlier_run_saved_is_no_progress(tmp_path):
    from functools import partial

    from cellmap_core.models import BundleRef
    from cellmap_core.training.launch import progress_mark

    bundle = BundleRef(algo="segresnet", fold=0, folder=tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "last.pt").write_text("of an earlier run")
    attempts = Attempts("train", None, partial(progress_mark, bundle))
    loss = Loss(end=End.FAILED, said="its worker died")
    said = [attempts.refusal(loss) for _ in range(FRUITLESS_JOBS)]
    assert [s is None for s in said] == [True] * (FRUITLESS_JOBS - 1) + [False]


@pytest.mark.parametrize(
    ("state", "log", "cause"),
    [
        ("OUT_OF_MEMORY", "", End.OUT_OF_MEMORY),
        # With no cgroups SLURM itself ends the job: these lines are those of 22.05 and of 23.11.
        ("FAILED", "slurmstepd-cpu1: error: Exceeded job memory limit\n", End.OUT_OF_MEMORY),
        (
            "FAILED",
            "x\nslurmstepd: error: Detected 1 oom_kill event in StepId=1.batch. Some of the step "
            "tasks have been OOM Killed.\n",
            End.OUT_OF_MEMORY,
        ),
        # Of a GPU's memory the training takes care itself.
        (
            "FAILED",
            "RuntimeError: CUDA out of memory\nslurmstepd: error: *** CANCELLED",
            End.FAILED,
        ),
        ("FAILED", "", End.FAILED),
        ("NODE_FAIL", "slurmstepd: error: Exceeded job memory limit\n", End.LOST),
        (None, "", End.UNKNOWN),
    ],
)
def test_a_vague_end_is_told_from_the_log(state, log, cause, tmp_path):
    (tmp_path / "job.log").write_text(log)
    record = JobRecord(job_id=1, state=state) if state else None
    assert cause_of(record, tmp_path / "job.log") is cause
    assert cause_of(record, tmp_path / "no.log") in (cause, End.FAILED)


def start(run, job, handed_on, mark):
    return Start(run=run, job_id=job, handed_on=handed_on, mark=mark)


def test_a_run_that_saves_nothing_from_wall_time_to_wall_time_ends(tmp_path):
    folder, begun = tmp_path / "work", tmp_path / "begun"
    environment = {"AUTO3DSEG_BEGUN": str(begun)}
    # Whatever the number of wall times, as long as something is saved in between.
    for job in range(20):
        note_start(folder, start("a", job, job > 0, job // 2), SITE, environment)
        note_start(folder, start("b", job, False, 0), SITE, environment)
    assert begun.exists()
    note_start(folder, start("a", 20, True, 10), SITE, environment)
    note_start(folder, start("a", 21, True, 10), SITE, environment)
    with pytest.raises(NoProgressError) as caught:
        note_start(folder, start("a", 22, True, 10), SITE, environment)
    assert str(caught.value) == (
        "the last 2 jobs of this run ended before they had saved anything; "
        "raise stages.flow.hours of the site profile mine (now 24)"
    )
    # Somebody who starts it once more has a reason to.
    note_start(folder, start("a", 31, False, 10), SITE, environment)
    note_start(folder, start("a", 32, True, 10), SITE, environment)
    assert (folder / STARTS_NAME).is_file()


def test_the_mark_of_a_run_follows_each_kind_of_file_that_it_saves(tmp_path):
    work, output = tmp_path / "work", tmp_path / "data"
    marks = [saved_mark(work, output)]
    for path in (
        output / ".cache" / "a_crop1.crop.json",
        work / ".cache" / "datastats" / "a_crop1.json",
        work / "segresnet_0" / "algo_object.json",
        work / "segresnet_0" / "model" / "last.pt",
        work / "ensemble_output" / ".receipts" / "a_crop9.json",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        marks.append(saved_mark(work, output))
    assert len(set(marks)) == len(marks)
    # What a run writes each time it starts is no progress.
    (work / "plan.json").write_text("{}")
    (work / "segresnet_0" / "jobs.jsonl").write_text("{}")
    assert saved_mark(work, output) == marks[-1]

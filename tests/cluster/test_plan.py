"""What a run would submit, what is too big of it, and what it used."""

import json
import math
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from cellmap_core.cluster import plan as plans
from cellmap_core.cluster.cases import cases_of_crops, cases_of_datalist
from cellmap_core.cluster.here import Place
from cellmap_core.cluster.jobs import Resources
from cellmap_core.cluster.plan import Plan, StagePlan, make_plan, plan_here, plan_training
from cellmap_core.cluster.profiles import SITE_VARIABLE, Site, Stages
from cellmap_core.cluster.rates import ASSUMED_FLOPS, forward_flops, total_flops
from cellmap_core.cluster.uses import USES_NAME, JobUse, append_use, read_uses, uses_of
from cellmap_core.datastats.analyze import analyze
from cellmap_core.errors import DatalistError, PlanError, SchedulerUnavailable
from cellmap_core.options import ConvertOptions, PlanOptions, TrainOptions
from cellmap_core.report.plan_page import plan_markdown, plan_table, used_markdown, used_table
from cellmap_core.training import history, launch
from cellmap_core.training.config_files import MODEL_FOLDER, make_config, read_bundle_config
from tests.conftest import ROOT
from tests.tiny_project import make_bundles

GIB = 1 << 30


def site(**train):
    asked = {"jobs": 2, "cores": 8, "memory_gb": 64, "hours": 24, "gpus": 1, "gpu_memory_gb": 48}
    return Site(name="testville", stages=Stages(train=Resources(**{**asked, **train})))


def options(work_dir, **more):
    return PlanOptions(**{"num_fold": 2, "num_epochs": 10, "work_dir": work_dir, **more})


def stage(plan, name):
    return next(s for s in plan.stages if s.name == name)


@pytest.fixture
def planned(converted, tmp_path):
    def run(profile=None, **more):
        asked = options(tmp_path / "w", datalist=converted.datalist, **more)
        return make_plan(asked, profile or site())

    return run


@pytest.fixture
def idle_bundle(tmp_path):
    """A generated bundle of the tiny project, its configuration and its model folder."""
    bundle, _ = make_bundles(tmp_path, num_epochs=8)
    return bundle, read_bundle_config(bundle.folder), bundle.folder / MODEL_FOLDER


def record(epoch, seconds, *, validated=True, device_bytes=0):
    scored = {"mito": 0.5} if validated else {}
    return {
        "event": "epoch", "epoch": epoch, "epochs": 8, "loss": 1.0, "dice": scored,
        "mean_dice": 0.5 if validated else None, "seconds": seconds,
        "memory": {"host_bytes": 3 * 10**9, "device_bytes": device_bytes},
    }  # fmt: skip


def test_sizes_of_crops_are_those_that_conversion_makes(phantom, converted):
    """From metadata alone, before anything is converted."""
    before = cases_of_crops(ConvertOptions(datasplit=phantom), 2, "auto")
    after = cases_of_datalist(converted.datalist, 2, "auto")
    expected = {c.name: (c.shape_vox, c.voxel_nm) for c in after.everything}
    found = {c.name: (c.shape_vox, c.voxel_nm) for c in before.everything}
    assert expected.items() <= found.items()
    assert before.classes == after.classes
    assert {c.name for c in after.training} <= {c.name for c in before.training}
    assert {c.fold for c in before.training} == {0, 1}


def test_a_case_that_cannot_be_read_is_named_and_the_rest_is_planned(converted, tmp_path):
    folder = tmp_path / "n"
    shutil.copytree(converted.datalist.parent, folder)
    gone = json.loads((folder / "datalist.json").read_text())["training"][0]["image"]
    (folder / gone).unlink()
    plan = make_plan(options(tmp_path / "w", datalist=folder / "datalist.json"), site())
    assert any("1 cases could not be looked at" in d for d in plan.doubts)
    for image in (folder / "images").iterdir():
        image.unlink()
    with pytest.raises(DatalistError, match="no case to train on that can be read"):
        make_plan(options(tmp_path / "w", datalist=folder / "datalist.json"), site())


def test_a_plan_from_crops_has_all_stages_and_says_what_it_rests_on(phantom, tmp_path):
    plan = make_plan(options(tmp_path / "w", datasplit=phantom, algos=["segresnet", "dints"]),
                     site())  # fmt: skip
    assert [s.name for s in plan.stages] == [
        "flow", "convert", "analyze", "train segresnet", "train dints", "ensemble"
    ]  # fmt: skip
    assert any("no statistics yet" in d and "crops' metadata" in d for d in plan.doubts)
    assert any("order of magnitude" in d and "segresnet" in d for d in plan.doubts)
    assert plan.problems == ()
    assert not (tmp_path / "w").exists()


def test_with_statistics_the_sizes_are_those_of_the_bundles(converted, tmp_path):
    analyze(converted.datalist, tmp_path / "w", False)
    plan = make_plan(options(tmp_path / "w", datalist=converted.datalist), site())
    assert not any("no statistics" in d for d in plan.doubts)
    assert [s.stage for s in plan.stages] == ["flow", "analyze", "train", "ensemble"]


def test_hours_are_operations_over_what_a_gpu_is_assumed_to_do(planned, converted):
    """By hand, of values that are all set."""
    values = {
        "init_filters": 32, "blocks_down": [1, 2, 2, 4], "patch_size_vox": [64, 64, 64],
        "batch_size": 4, "micro_batch": 4, "num_steps_per_epoch": 100, "validate_every": 10,
        "overlap": 0.5,
    }  # fmt: skip
    plan = planned(overrides=values)
    train = stage(plan, "train segresnet")
    # Operations a voxel: levels of width 32 count 1, 1/2, 1/4, 1/8; see the module.
    forward = 54 * 32**2 * (2 * (1 + 1 + 0.5 + 0.5) + 2.5 * (1 + 0.5 + 0.25))
    seen = 10 * 100 * 4 * 64**3
    hours = []
    for fold in (0, 1):
        _, validated = cases_of_datalist(converted.datalist, 2, "auto").split(fold)
        windows = sum(c.voxels for c in validated) * 8
        hours.append((seen * 3 * forward + windows * forward) / ASSUMED_FLOPS["gpu"] / 3600)
    assert train.hours == pytest.approx(sum(hours) / 2)
    assert train.longest_hours == pytest.approx(max(hours))
    assert train.gpu_hours == pytest.approx(sum(hours))
    assert train.core_hours == pytest.approx(8 * sum(hours))
    assert plan.gpu_hours == pytest.approx(sum(hours) + stage(plan, "ensemble").gpu_hours)


def test_two_gpus_take_half_of_the_time_and_the_same_gpu_hours(planned):
    one, two = (stage(planned(site(gpus=n)), "train segresnet") for n in (1, 2))
    assert two.hours == pytest.approx(one.hours / 2)
    assert two.gpu_hours == pytest.approx(one.gpu_hours)


@pytest.mark.parametrize(
    ("algo", "own"),
    [
        ("segresnet", {"init_filters": 32, "blocks_down": [1, 2, 2, 4], "dsdepth": 1}),
        ("swinunetr", {"feature_size": 24, "use_checkpoint": False}),
    ],
)
def test_operations_are_those_that_torch_counts(algo, own):
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from cellmap_core.training.algorithms import build_network

    config = make_config({
        "algo": algo, "fold": 0, "datalist": "d", "ckpt_path": "c", "classes": ("a",),
        "voxel_nm": (8, 8, 8), "patch_size_vox": (64, 64, 64), "batch_size": 1, "micro_batch": 1,
        "num_epochs": 1, "num_steps_per_epoch": 1, "validate_every": 1, "learning_rate": 1,
        "warmup_steps": 0, "ema_decay": 0, "early_stop_epochs": 0, "activation": "sigmoid",
        "class_weighting": "equal", "class_weights": (1,), "sw_batch_size": 1, "cache": "mapped",
        "normalisation": {"clip_low": 0, "clip_high": 1, "mean": 0, "stdev": 1}, **own,
    })  # fmt: skip
    network = build_network(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 1, 64, 64, 64))
    assert forward_flops(config) == pytest.approx(counter.get_total_flops() / 64**3, rel=0.1)


def test_a_gpu_that_is_too_small_is_refused_and_the_override_named(planned):
    plan = planned(site(gpu_memory_gb=8), overrides={"patch_size_vox": [256, 256, 256]})
    (problem,) = plan.problems
    assert problem.startswith("train segresnet: one patch takes some ")
    assert "of 8 GiB of gpu memory" in problem
    assert "segresnet.patch_size_vox or segresnet.init_filters in the overrides" in problem
    with pytest.raises(PlanError, match="does not fit testville") as refused:
        plan.check()
    assert refused.value.exit_code == 2
    planned(site(gpu_memory_gb=80), overrides={"patch_size_vox": [96, 96, 96]}).check()


def test_what_no_rule_can_make_fit_is_a_problem_and_not_a_crash(planned):
    plan = planned(site(gpu_memory_gb=1), algos=["segresnet", "dints"])
    assert any(p.startswith("train dints: ") and "patch_size_vox" in p for p in plan.problems)
    assert stage(plan, "train dints").hours is None
    assert not any("template" in d for d in plan.doubts)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"convert": {"cores": 16, "memory_gb": 4}}, "convert: 16 workers will take some 9.6 GB"),
        ({"train": {"gpus": 1, "memory_gb": 2}}, "train: a training of segresnet will take some 4"),
        ({"flow": {"memory_gb": 0.5}}, "flow: the run itself will take some 1.0 GB"),
    ],
)
def test_too_little_host_memory_is_refused_with_what_to_raise(phantom, tmp_path, stages, message):
    profile = Site.model_validate({"name": "testville", "stages": stages})
    plan = make_plan(options(tmp_path / "w", datasplit=phantom), profile)
    (problem,) = plan.problems
    assert problem.startswith(message)
    assert f"raise stages.{next(iter(stages))}.memory_gb" in problem


def test_more_gpus_a_training_than_a_job_has_are_refused(planned):
    assert any("gpus_per_training is 4" in p for p in planned(gpus_per_training=4).problems)
    assert planned(site(gpus=4), gpus_per_training=4).problems == ()


def test_a_disk_without_room_is_refused(planned, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(plans.shutil, "disk_usage", lambda _: usage._replace(free=10**6))
    (problem,) = planned().problems
    assert problem.startswith("disk: some ")
    assert "0.0 GB are free" in problem


def test_a_training_longer_than_the_wall_time_goes_in_a_chain(planned):
    long = stage(planned(num_epochs=10**6), "train segresnet")
    useful = 24 - 300 / 3600
    assert long.longest_hours > 3 * useful
    assert long.chain == math.ceil(long.longest_hours / useful)
    plan = planned(num_epochs=10**6)
    assert plan.jobs == sum(s.jobs * s.chain for s in plan.stages) > len(plan.stages)
    assert stage(planned(num_epochs=10), "train segresnet").chain == 1


class SaysNo:
    """A cluster whose nodes have no GPU, as ``sinfo`` tells."""

    def show(self, *_command):
        return "n1|cpu*|64|512000|(null)|(null)|infinite\n"

    def test(self, _spec):
        """All it is asked, it takes."""


def test_what_the_cluster_does_not_have_is_refused(converted, tmp_path):
    asked = options(tmp_path / "w", datalist=converted.datalist)
    (first, second) = make_plan(asked, site(), SaysNo()).problems
    assert first == "stages.train.gpus: no node of the default partition has a GPU"
    assert second.startswith("stages.ensemble.gpus")


def test_a_cluster_that_does_not_answer_is_a_doubt(converted, tmp_path):
    class Silent(SaysNo):
        def show(self, *_command):
            raise SchedulerUnavailable("sinfo did not answer within 60 s")

    plan = make_plan(options(tmp_path / "w", datalist=converted.datalist), site(), Silent())
    assert plan.problems == ()
    assert any("sinfo did not answer" in d for d in plan.doubts)


def test_the_run_itself_lasts_as_long_as_all_stages_with_their_slots(planned):
    one, two = (planned(site(jobs=n), num_epochs=10**5) for n in (1, 2))
    trainings = stage(one, "train segresnet")
    assert stage(one, "flow").hours == pytest.approx(2 * trainings.hours, rel=0.01)
    assert stage(two, "flow").hours == pytest.approx(trainings.longest_hours, rel=0.01)


def test_epochs_that_were_timed_replace_the_assumption(idle_bundle):
    """Epochs of 10 s, each validated: a training of 8 takes 80 s, whatever was assumed."""
    bundle, config, folder = idle_bundle
    assert config.validate_every in (1, 2)
    work = bundle.folder.parent
    asked = TrainOptions(work_dir=work, num_fold=2, folds=[0])
    cpu = site(gpus=0, gpu_memory_gb=None)
    before = plan_training(asked, cpu)
    assert any("has been timed here yet" in d for d in before.doubts)
    folder.mkdir(parents=True)
    every = config.validate_every
    for epoch in range(1, 5):
        history.append(folder, record(epoch, 10.0, validated=epoch % every == 0))
    after = plan_training(asked, cpu)
    train = stage(after, "train segresnet")
    assert train.hours == pytest.approx(80 / 3600)
    assert any("measured over 4 epochs" in d for d in after.doubts)
    # So does the memory that they took.
    assert train.memory_needed_gb == pytest.approx(3.0)
    assert stage(before, "train segresnet").hours != pytest.approx(80 / 3600)


def test_epochs_on_a_cpu_say_nothing_of_a_gpu(idle_bundle):
    bundle, config, folder = idle_bundle
    folder.mkdir(parents=True)
    history.append(folder, record(1, 10.0))
    asked = TrainOptions(work_dir=bundle.folder.parent, num_fold=2, folds=[0])
    assumed = plan_training(asked, site())
    assert any("has been timed here yet" in d for d in assumed.doubts)
    history.append(folder, record(2, 7.0, device_bytes=GIB))
    measured = plan_training(asked, site())
    assert any("measured over 1 epochs" in d for d in measured.doubts)
    sizes = cases_of_datalist(config.datalist, 2, "auto")
    assert total_flops(config, sizes.split(0)[1]) > 0


def test_without_a_profile_the_plan_is_for_this_machine(converted, tmp_path, monkeypatch):
    monkeypatch.delenv(SITE_VARIABLE, raising=False)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    plan = plan_here(options(tmp_path / "w", datalist=converted.datalist))
    train = stage(plan, "train segresnet")
    assert plan.site == "this machine"
    assert (train.at_once, train.cores, train.gpus, train.wall_hours) == (1, 1, 0, None)
    assert plan.gpu_hours == 0
    assert any("without a GPU" in d for d in plan.doubts)
    assert "flow" not in {s.stage for s in plan.stages}


def test_a_plan_is_kept_whole(planned, tmp_path):
    plan = planned()
    plans.write_plan(tmp_path, plan)
    assert plans.read_plan(tmp_path) == plan
    (tmp_path / plans.PLAN_NAME).write_text("{")
    assert plans.read_plan(tmp_path) is None


def test_records_of_jobs_outlive_a_torn_line(tmp_path):
    first, second = (JobUse(stage="train", job_id=7 + n) for n in (0, 1))
    assert read_uses(tmp_path) == ()
    append_use(tmp_path, first)
    with (tmp_path / USES_NAME).open("a") as file:
        file.write(second.model_dump_json()[:20])
    assert read_uses(tmp_path) == (first,)
    append_use(tmp_path, second)
    assert read_uses(tmp_path) == (first, second)
    # A record that is told twice is one job, as it was told last.
    later = first.model_copy(update={"run_seconds": 5.0})
    append_use(tmp_path, later)
    assert set(read_uses(tmp_path)) == {later, second}


def one_training():
    train = StagePlan(
        stage="train", item="segresnet", jobs=2, at_once=2, cores=8, memory_gb=64,
        memory_needed_gb=4, gpus=1, gpu_memory_gib=48, gpu_memory_needed_gib=12.5, hours=3,
        longest_hours=4, wall_hours=2, chain=2,
    )  # fmt: skip
    return Plan(site="testville", stages=(train,), problems=("p",), doubts=("a doubt",))


def test_used_stands_beside_predicted():
    uses = [
        JobUse(stage="train", item="segresnet_0", job_id=1, queue_seconds=1800, run_seconds=7200,
               gpus=1, peak_host_bytes=5 * 10**9, end="wall time"),
        JobUse(stage="train", item="segresnet_0", job_id=2, run_seconds=3600, gpus=1),
        JobUse(stage="train", item="dints_0", job_id=3, run_seconds=9e9, gpus=1),
    ]  # fmt: skip
    (row,) = used_table(one_training(), uses)
    assert (row["jobs"], row["jobs used"]) == (4, 2)
    assert (row["hours"], row["hours used"]) == ("6", "3:00:00")
    assert row["in the queue"] == "0:30:00"
    assert (row["GPU hours"], row["GPU hours used"]) == ("6", "3:00:00")
    assert (row["RAM GB"], row["RAM GB used"]) == ("4.0", "5.0")
    page = used_markdown(one_training(), uses)
    assert "# Predicted and used on testville" in page
    assert "| train segresnet | 4 / 2 | 6 / 3:00:00 | 6 / 3:00:00 | 4.0 / 5.0 | 0:30:00 |" in page
    assert "| 1 | train | segresnet_0 | – | 0:30:00 | 2:00:00 |" in page


def test_trainings_without_a_job_tell_what_they_used_themselves(idle_bundle):
    bundle, _, folder = idle_bundle
    folder.mkdir(parents=True)
    for epoch in (1, 2):
        history.append(folder, record(epoch, 30.0))
    work = bundle.folder.parent
    (use,) = uses_of(work, plans.trainings_of(work, one_training()))
    assert (use.item, use.run_seconds, use.peak_host_bytes) == ("segresnet_0", 60.0, 3 * 10**9)
    assert use.end == "not finished"


def test_a_job_is_shared_out_to_the_trainings_it_had(idle_bundle, monkeypatch):
    """One job trained two folds; the first went on in a second job, which is not over."""
    bundle, _, folder = idle_bundle
    work = bundle.folder.parent
    folder.mkdir(parents=True)
    history.append(folder, record(1, 30.0))
    other = bundle.model_copy(update={"fold": 1, "folder": work / "segresnet_1"})
    began = datetime(2026, 5, 1, 12, tzinfo=UTC)
    for which, job_id, minute in ((bundle, 7, 2), (other, 7, 20), (bundle, 8, 90)):
        monkeypatch.setattr(launch, "datetime", Clock(began + timedelta(minutes=minute)))
        launch.leave_place(which, Place(job_id=job_id, node="gpu1"))
    use = JobUse(
        stage="train", job_id=7, queue_seconds=60, run_seconds=3600, gpus=1,
        ended=began + timedelta(hours=1), end="wall time",
    )  # fmt: skip
    append_use(work, use)
    first, second = uses_of(work, plans.trainings_of(work, one_training()))
    assert (first.item, first.queue_seconds, first.run_seconds) == ("segresnet_0", 60, 1200)
    assert (second.item, second.queue_seconds, second.run_seconds) == ("segresnet_1", 0, 2400)
    assert first.peak_host_bytes == 3 * 10**9
    assert second.peak_host_bytes is None
    (row,) = used_table(one_training(), [first, second])
    assert (row["jobs used"], row["hours used"], row["GPU hours used"]) == (1, "1:00:00", "1:00:00")
    assert launch.last_place(bundle).job_id == 8


class Clock:
    """A ``datetime`` whose ``now`` stands still."""

    def __init__(self, now):
        self._now = now

    def now(self, _):
        return self._now


def test_the_page_says_whether_it_fits_with_limits_and_assumptions():
    page = plan_markdown(one_training())
    assert (
        "**It does not fit**: 4 jobs with all of their chains, 48 core hours, 6 GPU hours" in page
    )
    assert "| train segresnet | 2 | 2 | 3 | 4 | 2 | 2 | 48 | 6 |" in page
    assert "| train segresnet | 8 | 4.0 | 64.0 | 1 | 12.5 | 48 |" in page
    assert "- a doubt" in page
    fits = one_training().model_copy(update={"problems": ()})
    assert "It fits: 4 jobs" in plan_markdown(fits)
    (row,) = plan_table(fits)
    assert row["GPU hours"] == "6"
    assert row["of GiB"] == "48"


def test_planning_loads_neither_torch_nor_monai(converted, tmp_path):
    """Not only its modules: a plan made."""
    code = (
        "import sys, flows.plan\n"
        "from pathlib import Path\n"
        "from cellmap_core.cluster.plan import plan_here\n"
        "from cellmap_core.options import PlanOptions\n"
        f"options = PlanOptions(datalist=Path({str(converted.datalist)!r}), num_fold=2,\n"
        f"                      work_dir=Path({str(tmp_path)!r}), algos=['segresnet', 'dints'])\n"
        "assert plan_here(options).stages\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'monai')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0

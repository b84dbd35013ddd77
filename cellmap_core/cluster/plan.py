"""What a run would submit, against what there is: jobs, memory, time, disk, before any of it."""

from __future__ import annotations

import heapq
import logging
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from cellmap_core import machine
from cellmap_core.bundles.generate import made_for
from cellmap_core.bundles.names import OWN_TEMPLATES, check_choice, is_ours
from cellmap_core.cluster.cases import CaseSizes, cases_of_crops, cases_of_datalist
from cellmap_core.cluster.check import problems_of
from cellmap_core.cluster.jobs import Resources
from cellmap_core.cluster.profiles import STAGES, Site, Stage, site_of
from cellmap_core.cluster.rates import (
    Device,
    Speed,
    assumed_speed,
    forward_flops,
    measured_speed,
    prediction_flops,
    step_flops,
    total_flops,
)
from cellmap_core.cluster.slurm import Slurm
from cellmap_core.cluster.uses import JobUse, Training
from cellmap_core.datastats.reports import read_summary
from cellmap_core.errors import OptionError, PlanError, SchedulerUnavailable, SubmissionRefused
from cellmap_core.models import BundleRef, Frozen
from cellmap_core.options import ConvertOptions, PlanOptions, TrainOptions
from cellmap_core.provenance import write_json
from cellmap_core.training.algorithms import ALGORITHMS, algorithm
from cellmap_core.training.config import TrainConfig
from cellmap_core.training.config_files import MODEL_FOLDER, read_bundle_config
from cellmap_core.training.facts import Facts, Memory, facts_of, memory_there
from cellmap_core.training.launch import places, read_epochs
from cellmap_core.training.result import read_result
from cellmap_core.training.rules import derive_from, training_bytes, usable_bytes
from cellmap_core.training.volumes import CACHE_NAME
from cellmap_core.work import bundles_of, datalist_of, working_datalist_of

__all__ = [
    "PLAN_NAME",
    "Plan",
    "StagePlan",
    "make_plan",
    "plan_here",
    "plan_training",
    "read_plan",
    "trainings_of",
    "write_plan",
]

logger = logging.getLogger(__name__)

#: The plan that a run was started with, in its work folder.
PLAN_NAME = "plan.json"

_GB, _GIB, _HOUR = 10**9, 1 << 30, 3600
# Measured over imports: at most 250 MB of a conversion and 300 MB of an analysis, whatever the
# crop (make bench); the imports themselves take 110 MB, and a Dask worker its share.
_WORKER_GB = {"convert": 0.6, "analyze": 0.6}
# Prefect, and torch and MONAI where bundles are generated: 480 MB were measured.
_FLOW_GB = 1.0
# Of a process that trains or predicts on a GPU (libraries, CUDA, patches cut ahead), and of one
# on a CPU beside its network. Assumed; where trainings ran, their records are used instead.
_GPU_PROCESS_GB, _HOST_PROCESS_GB = 4.0, 1.0
# Output voxels a second and core, of files on a local disk: 14 million were measured with four
# classes of real EM; and of the analysis 64 million in 0.95 s, with components in 2.5 s.
_CONVERT_RATE, _ANALYZE_RATE, _COMPONENTS_RATE = 14e6, 67e6, 25e6
# Bytes a voxel of all that conversion leaves, EM of 8 bits: 1.06 were measured compressed.
_CONVERTED_BYTES, _PLAIN_BYTES = 1.1, 1.2
# A mask compresses to a few hundredths of a byte a voxel.
_MASK_BYTES = 0.1
# Two checkpoints of weights, average and two moments, and the best model, in float32.
_CHECKPOINT_BYTES = 2 * 16 + 4
_USUAL_GPU = Memory(kind="gpu", size_bytes=24 * _GIB)
# Sizes do not follow from intensities, which only the statistics tell.
_ANY_SCALE = {"clip_low": 0.0, "clip_high": 255.0, "mean": 128.0, "stdev": 32.0}


class StagePlan(Frozen):
    """What the jobs of one stage, or of one algorithm's trainings, ask for and will take.

    Attributes
    ----------
    stage, item : str
        The stage; the algorithm where it is a training.
    jobs, at_once : int
        Pieces of work that go in a job each (or in a chain of jobs), and how many side by side.
    cores, gpus : int
        Of a job.
    memory_gb, memory_needed_gb : float
        Host memory of a job, in 10⁹ bytes: what it asks for, and what it is expected to take.
    gpu_memory_gib, gpu_memory_needed_gib : float or None
        Of one GPU, in GiB: what there is, and what a micro-batch takes by the rules.
    hours, longest_hours : float or None
        Expected of a job, on average and at most; None where nothing tells.
    wall_hours : float or None
        Wall time of a job; None where there is no limit.
    chain : int
        Jobs one after another that the longest piece of work takes.
    disk_bytes : int
        What the stage leaves on disk, in all.
    findings : tuple of str
        What a reader should know of this stage.
    """

    stage: Stage
    item: str = ""
    jobs: int
    at_once: int
    cores: int
    memory_gb: float
    memory_needed_gb: float
    gpus: int = 0
    gpu_memory_gib: float | None = None
    gpu_memory_needed_gib: float | None = None
    hours: float | None
    longest_hours: float | None = None
    wall_hours: float | None = None
    chain: int = 1
    disk_bytes: int = 0
    findings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The stage, with its algorithm."""
        return f"{self.stage} {self.item}".strip()

    @property
    def core_hours(self) -> float:
        """Of all its jobs; what nothing tells counts as none."""
        return self.jobs * self.cores * (self.hours or 0.0)

    @property
    def gpu_hours(self) -> float:
        """Of all its jobs; what nothing tells counts as none."""
        return self.jobs * self.gpus * (self.hours or 0.0)


class Plan(Frozen):
    """What a run would submit.

    Attributes
    ----------
    site : str
        The cluster, or ``this machine``.
    stages : tuple of StagePlan
        In the order they run; the run's own job first.
    problems : tuple of str
        What is too big, each with what to do; a run with one is not started on a cluster.
    doubts : tuple of str
        What was assumed.
    """

    site: str
    stages: tuple[StagePlan, ...]
    problems: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def jobs(self) -> int:
        """Jobs of all stages, chains included."""
        return sum(s.jobs * s.chain for s in self.stages)

    @property
    def core_hours(self) -> float:
        """Of all stages."""
        return sum(s.core_hours for s in self.stages)

    @property
    def gpu_hours(self) -> float:
        """Of all stages."""
        return sum(s.gpu_hours for s in self.stages)

    @property
    def disk_bytes(self) -> int:
        """Of all stages."""
        return sum(s.disk_bytes for s in self.stages)

    def check(self) -> None:
        """Refuse a run that is too big.

        Raises
        ------
        PlanError
            With every problem.
        """
        if self.problems:
            raise PlanError(f"the run does not fit {self.site}: " + "; ".join(self.problems))


def plan_here(options: PlanOptions | TrainOptions) -> Plan:
    """The plan of a run as it would be started from here.

    Parameters
    ----------
    options : PlanOptions or TrainOptions
        Of the whole run, or of the training of bundles that are there.

    Raises
    ------
    CellmapError
        The cases or the site profile cannot be read.
    """
    site = site_of()
    slurm = Slurm() if site and shutil.which("sbatch") else None
    if isinstance(options, PlanOptions):
        return make_plan(options, site, slurm)
    return plan_training(options, site, slurm)


def make_plan(options: PlanOptions, site: Site | None = None, slurm: Slurm | None = None) -> Plan:
    """Plan a whole run.

    Parameters
    ----------
    options : PlanOptions
        Of the run.
    site : Site, optional
        The cluster (default: this machine).
    slurm : Slurm, optional
        The same cluster's commands, to ask whether it has what the profile asks for.

    Raises
    ------
    CellmapError
        The options are not valid, or no case can be read.
    """
    check_choice(options)
    sizes = _sizes(options)
    planner = _Planner(site, sizes, options.work_dir)
    configs = planner.derived(options)
    stages = [] if sizes.source == "datalist" else [planner.convert(_of_conversion(options))]
    stages.append(planner.analyze(options.do_ccp))
    stages += planner.train(configs, options.algos, _folds(options), options.gpus_per_training)
    if sizes.testing:
        stages.append(planner.ensemble(configs))
    else:
        planner.doubts.append("no case to predict: there is no ensemble")
    return planner.finished(stages, slurm, options.output_dir)


def plan_training(
    options: TrainOptions, site: Site | None = None, slurm: Slurm | None = None
) -> Plan:
    """Plan the training of bundles that were generated; see `make_plan`.

    Raises
    ------
    CellmapError
        A bundle or the datalist is missing.
    """
    bundles = bundles_of(options.work_dir, options.algos, options.num_fold, options.folds)
    configs = {b.name: read_bundle_config(b.folder) for b in bundles if is_ours(b.folder)}
    known = [config.datalist for config in configs.values()]
    datalist = known[0] if known else working_datalist_of(options.work_dir)
    sizes = cases_of_datalist(datalist, options.num_fold, "auto")
    planner = _Planner(site, sizes, options.work_dir)
    stages = planner.train(configs, options.algos, _folds(options), options.gpus_per_training)
    return planner.finished(list(stages), slurm, None)


def write_plan(work_dir: Path, plan: Plan) -> None:
    """Keep the plan that a run is started with."""
    write_json(work_dir / PLAN_NAME, plan.model_dump(mode="json"))


def read_plan(work_dir: Path) -> Plan | None:
    """The plan that a work folder's last run was started with; None where there is none."""
    try:
        return Plan.model_validate_json((work_dir / PLAN_NAME).read_bytes())
    except (OSError, ValidationError):
        return None


def trainings_of(work_dir: Path, plan: Plan) -> tuple[Training, ...]:
    """The trainings of a plan that have begun, as they tell of themselves."""
    begun = []
    for stage in (s for s in plan.stages if s.stage == "train"):
        for folder in sorted(work_dir.glob(f"{stage.item}_*")):
            _, _, fold = folder.name.rpartition("_")
            if fold.isdigit():
                bundle = BundleRef(algo=stage.item, fold=int(fold), folder=folder)
                begun.append(_training(stage, bundle))
    return tuple(begun)


def _training(stage: StagePlan, bundle: BundleRef) -> Training:
    records = read_epochs(bundle)
    peak = _peak(records)
    own = JobUse(
        stage="train",
        item=bundle.name,
        run_seconds=sum(r["seconds"] for r in records),
        cores=stage.cores,
        gpus=stage.gpus,
        peak_host_bytes=peak,
        end="done" if read_result(bundle) else "not finished",
    )
    return Training(
        name=bundle.name,
        places=places(bundle),
        peak_host_bytes=peak,
        own=own if records else None,
    )


class _Planner:
    """Plans stage after stage, and gathers what is too big and what was assumed."""

    def __init__(self, site: Site | None, sizes: CaseSizes, work_dir: Path) -> None:
        self.site, self.sizes, self.work_dir = site, sizes, work_dir
        self.problems: list[str] = []
        self.doubts: list[str] = []
        self._speeds: dict[str, Speed] = {}
        self._makespans: list[float] = []
        if sizes.unread:
            self.doubts.append(
                f"{len(sizes.unread)} cases could not be looked at and count for nothing; the "
                f"first: {sizes.unread[0]}"
            )

    @property
    def _name(self) -> str:
        return self.site.name if self.site else "this machine"

    def _asked(self, stage: Stage, trainings: int = 1, gpus_each: int = 1) -> Resources:
        """What a job of a stage asks for: of the profile, or its part of this machine."""
        if self.site is not None:
            return self.site.of(stage)
        asked = _of_machine(stage, trainings, gpus_each)
        few = len(machine.gpus()) % gpus_each
        if stage == "train" and few and asked.jobs * gpus_each > len(machine.gpus()):
            self._doubt(f"one training at a time has {few} GPUs, not {gpus_each}: it takes longer")
        return asked

    def _memory(self, asked: Resources) -> Memory:
        """The memory that a training's job has."""
        if self.site is None:
            return memory_there()
        if not asked.gpus:
            size = max(1, int(asked.memory_gb * _GB / _GIB)) * _GIB
            return Memory(kind="host", size_bytes=size)
        if asked.gpu_memory_gb is None:
            self._doubt(
                "stages.train.gpu_memory_gb is not set in the site profile: "
                f"{_USUAL_GPU.size_bytes // _GIB} GiB are assumed"
            )
            return _USUAL_GPU
        return memory_there(asked.gpu_memory_gb)

    def _problem(self, text: str) -> None:
        if text not in self.problems:
            self.problems.append(text)

    def _doubt(self, text: str) -> None:
        if text not in self.doubts:
            self.doubts.append(text)

    def derived(self, options: PlanOptions) -> dict[str, TrainConfig]:
        """The values that ``generate`` will give each bundle, by name of the bundle."""
        templates = options.templates or OWN_TEMPLATES
        ours = [a for a in options.algos if is_ours(templates / a) and a in ALGORITHMS]
        there = (
            memory_there(options.gpu_memory_gb)
            if options.gpu_memory_gb
            else self._memory(self._asked("train"))
        )
        configs = {}
        for algo in ours:
            for fold in _folds(options):
                bundle = BundleRef(algo=algo, fold=fold, folder=self.work_dir / f"{algo}_{fold}")
                before = None if options.gpu_memory_gb else made_for(bundle)
                identity = {
                    "algo": algo, "fold": fold, "num_epochs": options.num_epochs,
                    "datalist": self.work_dir / "datalist.json", "ckpt_path": bundle.folder,
                    "classes": self.sizes.classes,
                }  # fmt: skip
                facts = self._facts(fold, before or there)
                try:
                    configs[bundle.name] = derive_from(facts, identity, options.overrides)
                except OptionError as error:
                    # Such as the least patch that a network can take, cut down for the memory.
                    self._problem(f"train {algo}: {error}")
        return configs

    def _facts(self, fold: int, memory: Memory) -> Facts:
        """What the rules look at: of the statistics where they are, else of the metadata."""
        training, validation = self.sizes.split(fold)
        report = self.work_dir / "datastats.yaml"
        if self.sizes.source == "datalist" and report.is_file():
            return facts_of(
                read_summary(report), len(training),
                validation_cases=len(validation), memory=memory,
            )  # fmt: skip
        self._doubt(
            "no statistics yet: patches and batches follow from the sizes in the "
            + ("images' headers" if self.sizes.source == "datalist" else "crops' metadata")
            + "; plan again after the analysis"
        )
        return Facts(
            shape_vox=self.sizes.median_shape_vox(),
            voxel_nm=self.sizes.median_voxel_nm(),
            intensity={},
            scale=_ANY_SCALE,
            training_cases=len(training),
            validation_cases=len(validation),
            memory=memory,
        )

    def convert(self, options: ConvertOptions) -> StagePlan:
        """Conversion of all cases."""
        voxels = sum(c.voxels for c in self.sizes.everything)
        size = _CONVERTED_BYTES if options.compression == "gzip" else _PLAIN_BYTES
        self._doubt(
            f"conversion: {_CONVERT_RATE / 1e6:.0f} Mvoxel/s a core, measured on local files of "
            "four classes; many classes and a network are slower"
        )
        return self._spread("convert", voxels / _CONVERT_RATE, round(size * voxels))

    def analyze(self, components: bool) -> StagePlan:
        """Analysis of all training cases."""
        voxels = sum(c.voxels for c in self.sizes.training)
        rate = _COMPONENTS_RATE if components else _ANALYZE_RATE
        self._doubt(f"analysis: {rate / 1e6:.0f} Mvoxel/s a core, as measured with 15 classes")
        return self._spread("analyze", voxels / rate, 0)

    def _spread(self, stage: Stage, core_seconds: float, disk_bytes: int) -> StagePlan:
        """A stage whose cases are spread over the cores of its jobs."""
        asked = self._asked(stage)
        jobs = max(1, min(asked.jobs, math.ceil(len(self.sizes.everything) / asked.cores)))
        hours = core_seconds / (jobs * asked.cores) / _HOUR
        needed = asked.cores * _WORKER_GB[stage]
        self._check_memory(stage, asked, needed, f"{asked.cores} workers")
        self._makespans.append(hours)
        return self._stage(
            stage, asked, jobs=jobs, hours=[hours] * jobs, needed_gb=needed, disk_bytes=disk_bytes
        )

    def train(
        self,
        configs: Mapping[str, TrainConfig],
        algos: Sequence[str],
        folds: Sequence[int],
        gpus_per_training: int,
    ) -> Iterator[StagePlan]:
        """The trainings of each algorithm."""
        trainings = len(algos) * len(folds)
        asked = self._asked("train", trainings, gpus_per_training)
        if self.site and gpus_per_training > max(1, asked.gpus):
            self.problems.append(
                f"train: gpus_per_training is {gpus_per_training}, a job has {asked.gpus}; set "
                "stages.train.gpus in the site profile or lower gpus_per_training"
            )
        if not asked.gpus:
            self._doubt(f"{self._name} trains without a GPU: this takes long")
        cached = self._cache_bytes()
        lasting: list[float] = []
        for algo in algos:
            chosen = [c for n in folds if (c := configs.get(f"{algo}_{n}"))]
            if not chosen:
                if not any(p.startswith(f"train {algo}: ") for p in self.problems):
                    self._doubt(f"{algo} is another template's: nothing tells what it takes")
                yield self._stage("train", asked, item=algo, jobs=len(folds), hours=[None],
                                  needed_gb=0.0)  # fmt: skip
                continue
            stage = self._algorithm(algo, chosen, asked, cached)
            cached = 0
            lasting += [stage.hours or 0.0] * stage.jobs
            yield stage
        self._makespans.append(_makespan(lasting, asked.jobs))

    def _algorithm(
        self, algo: str, configs: Sequence[TrainConfig], asked: Resources, cached: int
    ) -> StagePlan:
        memory = self._memory(asked)
        needed = self._check_training(algo, configs, memory)
        host = self._host_gb(algo, configs, asked, memory, needed)
        self._check_memory("train", asked, host, f"a training of {algo}")
        speed = self._speed(algo, configs, asked)
        hours = [total_flops(c, self.sizes.split(c.fold)[1]) / speed.flops / _HOUR for c in configs]
        weights = algorithm(algo).need(configs[0].model_dump()).parameters
        finished = sum(
            read_result(BundleRef(algo=algo, fold=c.fold, folder=self._bundle(c))) is not None
            for c in configs
        )
        said = [_sizes_said(configs)]
        if finished:
            said.append(f"{finished} of {len(configs)} are trained already, and count all the same")
        return self._stage(
            "train",
            asked,
            item=algo,
            jobs=len(configs),
            hours=hours,
            needed_gb=host,
            gpu_needed=needed if memory.kind == "gpu" else None,
            gpu_there=memory,
            disk_bytes=round(len(configs) * weights * _CHECKPOINT_BYTES) + cached,
            findings=tuple(said),
        )

    def _check_training(self, algo: str, configs: Sequence[TrainConfig], memory: Memory) -> int:
        """Bytes that the largest micro-batch takes; too big where not even one patch fits."""
        kind = algorithm(algo)
        values = [c.model_dump() for c in configs]
        one = max(training_bytes(kind, memory, v) for v in values)
        if one > usable_bytes(memory):
            narrower = next(iter(kind.width_rules))
            self.problems.append(
                f"train {algo}: one patch takes some {one / _GIB:.1f} GiB by estimate, of "
                f"{memory.size_bytes / _GIB:.0f} GiB of {memory.kind} memory "
                f"{usable_bytes(memory) / _GIB:.1f} can be used; set a smaller "
                f"{algo}.patch_size_vox or {algo}.{narrower} in the overrides"
            )
            return one
        most = max(training_bytes(kind, memory, v, v["micro_batch"]) for v in values)
        if most > usable_bytes(memory):
            self._doubt(
                f"train {algo}: a micro_batch of {configs[0].micro_batch} does not fit into the "
                "memory by estimate; the training will halve it"
            )
            return one
        return most

    def _host_gb(
        self, algo: str, configs: Sequence[TrainConfig], asked: Resources, memory: Memory, took: int
    ) -> float:
        """Host memory of a training: as earlier ones took, else by estimate."""
        records = [r for c in configs for r in read_epochs(
            BundleRef(algo=algo, fold=c.fold, folder=self._bundle(c)))]  # fmt: skip
        if peak := _peak(records):
            return peak / _GB * max(1, asked.gpus)
        if memory.kind == "gpu":
            self._doubt(f"{_GPU_PROCESS_GB:g} GB of host memory are assumed for a process on a GPU")
            return _GPU_PROCESS_GB * max(1, asked.gpus)
        return _HOST_PROCESS_GB + took / _GB

    def _bundle(self, config: TrainConfig) -> Path:
        return self.work_dir / f"{config.algo}_{config.fold}"

    def _speed(self, algo: str, configs: Sequence[TrainConfig], asked: Resources) -> Speed:
        """Of a training of an algorithm: measured in this work folder, else assumed."""
        if algo in self._speeds:
            return self._speeds[algo]
        device: Device = "gpu" if asked.gpus else "host"
        processors = asked.gpus or asked.cores
        folds = [c.fold for c in configs]
        found = measured_speed(self.work_dir, algo, folds, self.sizes, device)
        speed = found or assumed_speed(device, processors)
        voxels = speed.flops / step_flops(configs[0]) / 1e6
        if found:
            self._doubt(
                f"{algo}: {voxels:.3g} Mvoxel/s trained, measured over {found.epochs} epochs of "
                "this work folder, on whatever they ran on"
            )
        else:
            where = f"{processors} {'GPU' if asked.gpus else 'core'}{'s' * (processors > 1)}"
            self._doubt(
                f"{algo}: no training of this kind has been timed here yet: assumed "
                f"{voxels:.3g} Mvoxel/s ({forward_flops(configs[0]) / 1e3:.0f}·10³ operations a "
                f"voxel to predict, {step_flops(configs[0]) / 1e3:.0f}·10³ to train, "
                f"{speed.flops / 1e12:g}·10¹² a second on {where}); an order of magnitude, plan "
                "again after the first epochs"
            )
        self._speeds[algo] = speed
        return speed

    def ensemble(self, configs: Mapping[str, TrainConfig]) -> StagePlan:
        """Prediction of the testing cases by all models, one after another."""
        asked = self._asked("ensemble")
        seconds = 0.0
        for config in configs.values():
            speed = self._speeds[config.algo].flops
            seconds += prediction_flops(config, self.sizes.testing) / speed
        hours = seconds / _HOUR if configs else None
        needed = _GPU_PROCESS_GB if asked.gpus else _HOST_PROCESS_GB + 1
        self._check_memory("ensemble", asked, needed, "the prediction of a block")
        voxels = sum(c.voxels for c in self.sizes.testing)
        a_voxel = _MASK_BYTES * (len(self.sizes.classes) + 1) + 1 + self.sizes.id_bytes
        self._makespans.append(hours or 0.0)
        return self._stage(
            "ensemble", asked, jobs=1, hours=[hours], needed_gb=needed,
            disk_bytes=round(voxels * a_voxel),
        )  # fmt: skip

    def _cache_bytes(self) -> int:
        """Decompressed volumes of the training cases, which all trainings share."""
        return sum(c.voxels for c in self.sizes.training) * (1 + self.sizes.id_bytes)

    def _stage(
        self,
        stage: Stage,
        asked: Resources,
        *,
        jobs: int,
        hours: Sequence[float | None],
        needed_gb: float,
        item: str = "",
        gpu_needed: int | None = None,
        gpu_there: Memory | None = None,
        disk_bytes: int = 0,
        findings: tuple[str, ...] = (),
    ) -> StagePlan:
        told = [h for h in hours if h is not None]
        longest = max(told, default=None)
        chain, wall = 1, None
        if self.site:
            wall = asked.hours
            # What is told of the end early saves and leaves then.
            useful = asked.hours - self.site.warn_seconds / _HOUR
            chain = max(1, math.ceil(longest / useful)) if longest else 1
        on_gpu = gpu_there is not None and gpu_there.kind == "gpu"
        return StagePlan(
            stage=stage,
            item=item,
            jobs=jobs,
            at_once=min(jobs, asked.jobs),
            cores=asked.cores,
            memory_gb=asked.memory_gb,
            memory_needed_gb=needed_gb,
            gpus=asked.gpus,
            gpu_memory_gib=gpu_there.size_bytes / _GIB if gpu_there and on_gpu else None,
            gpu_memory_needed_gib=gpu_needed / _GIB if gpu_needed else None,
            hours=sum(told) / len(told) if told else None,
            longest_hours=longest,
            wall_hours=wall,
            chain=chain,
            disk_bytes=disk_bytes,
            findings=findings,
        )

    def _check_memory(self, stage: Stage, asked: Resources, needed_gb: float, what: str) -> None:
        if needed_gb <= asked.memory_gb:
            return
        ways = []
        if self.site:
            ways.append(f"raise stages.{stage}.memory_gb in the site profile")
        if self.site and stage in _WORKER_GB:
            ways.append(f"lower stages.{stage}.cores in it")
        if stage == "train":
            ways.append("set a smaller micro_batch or patch_size_vox in the overrides")
        do = ", or ".join(ways) or "use a machine with more memory"
        self.problems.append(
            f"{stage}: {what} will take some {needed_gb:.1f} GB of host memory, a job has "
            f"{asked.memory_gb:.1f}; {do}"
        )

    def finished(
        self, stages: list[StagePlan], slurm: Slurm | None, output_dir: Path | None
    ) -> Plan:
        """The plan, with the run's own job before the others' and all that is too big."""
        if self.site:
            asked = self._asked("flow")
            said = ("the run itself, which waits for the others; time in the queue comes on top",)
            flow = self._stage(
                "flow", asked, jobs=1, hours=[sum(self._makespans)], needed_gb=_FLOW_GB,
                findings=said,
            )  # fmt: skip
            stages.insert(0, flow)
            self._check_memory("flow", asked, _FLOW_GB, "the run itself")
        self.problems += _disk_problems(stages, output_dir, self.work_dir)
        if self.site and slurm:
            try:
                asked_of = [s for s in STAGES if any(p.stage == s for p in stages)]
                self.problems += problems_of(self.site, slurm, asked_of)
            except (SchedulerUnavailable, SubmissionRefused) as error:
                self._doubt(f"the cluster could not be asked ({error})")
        return Plan(
            site=self._name,
            stages=tuple(stages),
            problems=tuple(self.problems),
            doubts=tuple(self.doubts),
        )


def _sizes(options: PlanOptions) -> CaseSizes:
    if options.datalist is None and options.datasplit is not None:
        return cases_of_crops(_of_conversion(options), options.num_fold, options.fold_by)
    datalist = datalist_of(options.datalist, options.output_dir)
    return cases_of_datalist(datalist, options.num_fold, options.fold_by)


def _of_conversion(options: PlanOptions) -> ConvertOptions:
    return ConvertOptions(**{n: getattr(options, n) for n in ConvertOptions.model_fields})


def _folds(options: PlanOptions | TrainOptions) -> tuple[int, ...]:
    return tuple(range(options.num_fold)) if options.folds is None else tuple(options.folds)


def _sizes_said(configs: Sequence[TrainConfig]) -> str:
    """The sizes of the first fold's training."""
    c = configs[0]
    patch = " × ".join(map(str, c.patch_size_vox))
    return (
        f"patches of {patch} voxels, {c.batch_size} a step ({c.micro_batch} at once), "
        f"{c.num_steps_per_epoch} steps an epoch, {c.num_epochs} epochs at most"
    )


def _of_machine(stage: Stage, trainings: int, gpus_each: int) -> Resources:
    """What a stage has of this machine: all of it, or a training its slot's part."""
    cores, memory_gb, devices = machine.cores(), machine.memory_bytes() / _GB, len(machine.gpus())
    if stage == "train":
        slots = max(1, min(trainings, math.ceil(devices / gpus_each) if devices else cores))
        return Resources(
            jobs=slots,
            cores=max(1, cores // slots),
            memory_gb=memory_gb / slots,
            gpus=min(gpus_each, devices),
        )
    if stage in ("convert", "analyze"):
        workers = max(1, min(cores, int(memory_gb * _GB) // _GIB))
        return Resources(cores=workers, memory_gb=memory_gb)
    on_gpu = min(1, devices) if stage == "ensemble" else 0
    return Resources(cores=1 if stage == "flow" else cores, memory_gb=memory_gb, gpus=on_gpu)


def _makespan(hours: Iterable[float], slots: int) -> float:
    """Time until all are done, each beginning as soon as a slot is free."""
    free = [0.0] * slots
    for lasting in hours:
        heapq.heappush(free, heapq.heappop(free) + lasting)
    return max(free)


def _disk_problems(
    stages: Sequence[StagePlan], output_dir: Path | None, work_dir: Path
) -> Iterator[str]:
    """File systems with less room than what is still to come there."""
    folders: dict[int, tuple[Path, float]] = {}
    converted = sum(s.disk_bytes for s in stages if s.stage == "convert")
    rest = sum(s.disk_bytes for s in stages if s.stage != "convert")
    places = [(work_dir, max(0, rest - _left(work_dir)))]
    if output_dir is not None:
        places.append((output_dir, max(0, converted - _left(output_dir))))
    for folder, needed in places:
        there = next(p for p in (folder.resolve(), *folder.resolve().parents) if p.exists())
        device = there.stat().st_dev
        first, before = folders.get(device, (there, 0.0))
        folders[device] = first, before + needed
    for folder, total in folders.values():
        free = shutil.disk_usage(folder).free
        if total > free:
            yield (
                f"disk: some {total / _GB:.1f} GB will be written to the file system of {folder}, "
                f"{free / _GB:.1f} GB are free; free some, or name other folders"
            )


def _left(folder: Path) -> int:
    """Bytes of what earlier runs left and this one will not write again."""
    total = 0
    for pattern in ("images/*", "labels/*", f"{CACHE_NAME}/*", f"*/{MODEL_FOLDER}/*.pt"):
        for path in folder.glob(pattern):
            try:
                total += path.stat().st_size
            except OSError:
                continue
    return total


def _peak(records: Iterable[Mapping[str, object]]) -> int | None:
    sizes = [m.get("host_bytes", 0) for r in records if isinstance(m := r.get("memory"), dict)]
    return max(sizes, default=0) or None

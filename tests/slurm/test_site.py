"""A site profile against a real cluster, before anything is submitted."""

import os

import pytest

from cellmap_core.cluster.check import check_site, nodes_of, problems_of
from cellmap_core.cluster.profiles import STAGES, Site, Stages
from cellmap_core.cluster.slurm import Slurm
from cellmap_core.errors import ProfileError

#: Of the tests' cluster: nodes of four cores, 8000 MB and, in two of its partitions, two GPUs.
SMALL = {"cores": 1, "memory_gb": 1, "hours": 1}
FITTING = {
    "flow": SMALL,
    "convert": {**SMALL, "partition": "cpu", "cores": 4, "memory_gb": 8},
    "analyze": {**SMALL, "partition": "cpu,gpu"},
    "train": {**SMALL, "partition": "gpu", "gpus": 2, "gpu_type": "a100", "constraint": "a100"},
    "ensemble": {**SMALL, "partition": "gpu_low", "gpus": 1, "gpu_form": "gpus-per-node"},
}


@pytest.fixture
def slurm(cluster):
    return Slurm({**os.environ, **cluster.environment})


def site(**changes):
    """The fitting profile with changes in the training's stage."""
    stages = FITTING | {"train": FITTING["train"] | changes}
    return Site(name="tests", stages=Stages.model_validate(stages))


def test_the_nodes_are_seen_as_they_are(slurm):
    nodes = {(n.name, n.partition): n for n in nodes_of(slurm)}
    assert len(nodes) == 8
    assert nodes["gpu1", "gpu"].gpus == {"a100": 2}
    assert nodes["gpu1", "gpu"].features == {"a100"}
    assert nodes["gpu1", "gpu"].minutes is None
    assert nodes["cpu1", "cpu"].default
    assert not nodes["cpu1", "short"].default
    assert nodes["cpu1", "short"].minutes == 2
    assert nodes["cpu2", "cpu"].cores == 4
    assert nodes["cpu2", "cpu"].memory_mib == 8000


def test_a_right_profile_passes_and_leaves_no_job(slurm, cluster):
    check_site(site(), slurm)
    assert not cluster.run("squeue", "--noheader")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"partition": "gpus"}, "partition: no 'gpus'; did you mean gpu"),
        ({"partition": "x"}, "partition: no 'x'; valid: cpu, gpu, gpu_low, short"),
        ({"gpu_type": "a1000"}, "gpu_type: no 'a1000'; did you mean a100?"),
        ({"constraint": "l40s"}, "constraint: no node has 'l40s'; valid: a100"),
        ({"gpus": 3}, "gpus: 3 asked, a node of gpu has 2"),
        ({"partition": "cpu", "constraint": None}, "gpus: no node of cpu has a GPU"),
        ({"cores": 5}, "cores: 5 asked, a node of gpu has 4"),
        ({"memory_gb": 9}, "memory_gb: 9 asked, a node of gpu has 8.4 for jobs"),
    ],
)
def test_what_the_cluster_does_not_have_is_named(changes, said, slurm):
    with pytest.raises(ProfileError) as caught:
        check_site(site(**changes), slurm)
    assert f"the site profile tests does not fit this cluster: stages.train.{said}" in str(
        caught.value
    )


def test_too_many_hours_for_the_partition(slurm):
    wrong = site(partition="short", gpus=0, gpu_type=None, constraint=None, hours=1)
    (problem,) = problems_of(wrong, slurm)
    assert problem == "stages.train.hours: 1 asked, short allows 0.0333"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reservation": "nobodys"}, "reservation"),
        # Each is on some node, but all together on none.
        ({"partition": "cpu,gpu", "constraint": "cpu"}, "configuration is not available"),
    ],
)
def test_what_only_slurm_knows_is_told_in_its_words(changes, said, slurm):
    (problem,) = problems_of(site(**changes), slurm)
    assert problem.startswith("stages.train: sbatch: ")
    assert said in problem.lower()


def test_only_the_stages_asked_for_are_looked_at(slurm):
    wrong = site(cores=99)
    assert list(problems_of(wrong, slurm, [s for s in STAGES if s != "train"])) == []

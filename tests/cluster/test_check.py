"""What sinfo prints, read as nodes; and a profile against them, with a SLURM of paper."""

import pytest

from cellmap_core.cluster.check import _gpus_of, _minutes, check_site, nodes_of, problems_of
from cellmap_core.cluster.profiles import Site, Stages
from cellmap_core.errors import ProfileError, SubmissionRefused

SINFO = """\
big1|cpu*|64|515000|(null)|(null)|2-00:00:00
big1|all|64|515000|(null)|(null)|infinite
g1|gpu|48|386000+|gpu:a100:4(S:0-1)|a100,ib|1-00:00:00
g2|gpu|48|386000|gpu:l40s:8(S:0-1),lustre:1|l40s,ib|1-00:00:00
g3|old|16|64000|gpu:4|(null)|30:00
"""


class Paper:
    """A cluster that is only what sinfo says of it."""

    def __init__(self, said=SINFO, refusal=""):
        self.said = said
        self.refusal = refusal
        self.tested = []

    def show(self, *command):
        assert command[0] == "sinfo"
        return self.said

    def test(self, spec):
        self.tested.append(spec)
        if self.refusal:
            raise SubmissionRefused(self.refusal)


def site(**asked):
    flow = {"hours": 1, "cores": 1, "memory_gb": 1}
    return Site(name="x", stages=Stages.model_validate({"flow": flow | asked}))


def problems(slurm=None, **asked):
    return list(problems_of(site(**asked), slurm or Paper(), ["flow"]))


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("gpu:a100:2(S:0-1)", {"a100": 2}),
        ("gpu:a100:2(IDX:0-1)", {"a100": 2}),
        ("gpu:4", {"": 4}),
        ("gpu:4(S:0)", {"": 4}),
        ("(null)", {}),
        ("", {}),
        ("gpu:a100:2,gpu:l40s:1", {"a100": 2, "l40s": 1}),
        ("gpu:a100:2(S:0),gpu:a100:2(S:1)", {"a100": 4}),
        ("gpu:nvidia_a100_80gb_pcie:4(S:0-1)", {"nvidia_a100_80gb_pcie": 4}),
        ("gpu:nvidia_a100-sxm4-40gb_1g.5gb:7", {"nvidia_a100-sxm4-40gb_1g.5gb": 7}),
        ("lustre:1,gpu:v100:8", {"v100": 8}),
        ("shard:8,gpu:t4:1", {"t4": 1}),
        ("tmpdisk:900G", {}),
    ],
)
def test_gpus_in_every_form(gres, gpus):
    assert _gpus_of(gres) == gpus


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [
        ("1-00:00:00", 1440),
        ("7-12:30:00", 10830),
        ("2:00:00", 120),
        ("30:00", 30),
        ("0:30", 0),
        ("infinite", None),
        ("n/a", None),
    ],
)
def test_wall_times_in_every_form(limit, minutes):
    assert _minutes(limit) == minutes


def test_a_node_is_seen_once_for_each_partition():
    nodes = nodes_of(Paper())
    assert [(n.name, n.partition, n.default) for n in nodes][:2] == [
        ("big1", "cpu", True),
        ("big1", "all", False),
    ]
    assert nodes[2].memory_mib == 386000
    assert nodes[2].features == {"a100", "ib"}


def test_a_right_profile_is_tested_by_slurm_itself():
    slurm = Paper()
    check_site(
        site(partition="gpu", gpus=4, gpu_type="a100", constraint="a100&ib"), slurm, ["flow"]
    )
    (spec,) = slurm.tested
    assert "--gres=gpu:a100:4" in spec.arguments()
    assert problems() == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"partition": "gpus"}, "partition: no 'gpus'; did you mean gpu"),
        ({"partition": "xyz"}, "partition: no 'xyz'; valid: all, cpu, gpu, old"),
        ({"partition": "gpu,cqu"}, "partition: no 'cqu'; did you mean cpu"),
        ({"partition": "gpu", "constraint": "l40|a100"}, "constraint: no node has 'l40'; did you"),
        ({"gpus": 1}, "gpus: no node of the default partition has a GPU"),
        ({"partition": "gpu", "gpus": 1, "gpu_type": "h100"}, "gpu_type: no 'h100'; did you mean"),
        ({"partition": "gpu", "gpus": 1, "gpu_type": "v"}, "gpu_type: no 'v'; valid: a100, l40s"),
        (
            {"partition": "old", "gpus": 1, "gpu_type": "v100", "hours": 0.4},
            "gpu_type: no 'v100'; the cluster names none there: leave it out",
        ),
        ({"partition": "old", "constraint": "x", "hours": 0.4}, "constraint: no node has 'x'; the"),
        ({"partition": "gpu", "constraint": "[a100*2&4xl40]"}, "constraint: no node has '4xl40'"),
        ({"partition": "gpu", "gpus": 9}, "gpus: 9 asked, a node of gpu has 8"),
        ({"partition": "gpu", "gpus": 8, "gpu_type": "a100"}, "gpus: 8 asked, a node of gpu has 4"),
        ({"cores": 65}, "cores: 65 asked, a node of the default partition has 64"),
        ({"memory_gb": 600}, "memory_gb: 600 asked, a node of the default partition has 540.0"),
        ({"hours": 49}, "hours: 49 asked, the default partition allows 48"),
        ({"partition": "old", "hours": 1}, "hours: 1 asked, old allows 0.5"),
    ],
)
def test_what_the_cluster_does_not_have_is_named(asked, said):
    slurm = Paper()
    (problem,) = problems(slurm, **asked)
    assert problem.startswith("stages.flow.")
    assert said in problem
    assert not slurm.tested


def test_every_problem_is_told_at_once():
    with pytest.raises(ProfileError) as caught:
        check_site(site(cores=100, hours=100, memory_gb=1000), Paper(), ["flow"])
    for name in ("cores", "hours", "memory_gb"):
        assert f"stages.flow.{name}: " in str(caught.value)


def test_a_cluster_without_a_default_partition():
    said = SINFO.replace("cpu*", "cpu")
    assert "the cluster has no default one; valid: all" in problems(Paper(said))[0]


def test_slurms_own_refusal_is_handed_on():
    slurm = Paper(refusal="sbatch: Invalid qos specification")
    assert problems(slurm) == ["stages.flow: sbatch: Invalid qos specification"]


def test_what_one_node_has_not_altogether_is_slurms_to_tell():
    """Each limit is met by some node; whether one meets all, SLURM says."""
    slurm = Paper()
    assert problems(slurm, partition="gpu", gpus=8, constraint="a100") == []
    assert slurm.tested


def test_lines_of_another_form_are_passed_over():
    assert nodes_of(Paper("garbage\n\nbig|cpu*|1|1|(null)|(null)|infinite\n"))[0].name == "big"
    assert nodes_of(Paper("")) == []

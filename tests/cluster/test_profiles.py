"""Site profiles: what is read from a file, and how it says what is wrong with it."""

from pathlib import Path

import pytest

from cellmap_core.cluster.profiles import SITE_VARIABLE, STAGES, read_site, site_of
from cellmap_core.errors import ProfileError
from tests.conftest import ROOT

SITES = sorted((ROOT / "deployments" / "sites").glob("*.yaml"))


def read(folder, text):
    path = folder / "site.yaml"
    path.write_text(text)
    return read_site(path)


def refusal(folder, text):
    with pytest.raises(ProfileError) as caught:
        read(folder, text)
    return str(caught.value)


@pytest.mark.parametrize("path", SITES, ids=lambda p: p.stem)
def test_the_profiles_that_ship_can_be_read(path, monkeypatch):
    monkeypatch.setenv("USER", "somebody")
    assert read_site(path).name == path.stem


def test_the_documented_profile_explains_every_name():
    from cellmap_core.cluster.jobs import Mail, Resources
    from cellmap_core.cluster.profiles import Site

    text = (ROOT / "deployments" / "sites" / "generic.yaml").read_text()
    for name in {*Site.model_fields, *Mail.model_fields, *Resources.model_fields, *STAGES}:
        # Descriptions are for people; every other name has a line.
        assert name in text, name


def test_the_documented_profile_says_the_defaults(tmp_path):
    assert read_site(ROOT / "deployments" / "sites" / "generic.yaml").stages == (
        read(tmp_path, "name: mine").stages
    )


def test_the_requested_cluster_has_large_cpu_nodes_and_two_kinds_of_gpus():
    site = read_site(ROOT / "deployments" / "sites" / "cpu_l40s_a100.yaml")
    assert site.stages.analyze.memory_gb >= 200
    assert site.stages.analyze.gpus == 0
    assert site.stages.train.constraint == "l40s|a100"
    assert site.stages.train.gpus == 1
    assert {asked.account for asked in site.each().values()} == {"cellmap"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: x\npartitions: gpu", "unknown partitions; valid: name"),
        ("name: x\nmial: {user: me}", "unknown mial; did you mean mail"),
        ("name: x\nstages: {trian: {}}", "unknown stages.trian; did you mean train"),
        ("name: x\nstages: {training: {gpu: 1}}", "unknown stages.training; did you mean train"),
        ("name: x\nstages: {train: {gpu: 1}}", "unknown stages.train.gpu; did you mean gpus"),
        ("name: x\ndefaults: {partitoin: cpu}", "unknown defaults.partitoin; did you mean"),
        ("name: x\nmail: {user: me, event: [END]}", "unknown mail.event; did you mean events"),
        ("name: x\nmail: {user: me, evnt: [END]}", "events"),
        ("name: x\nmail: {user: me, events: [DONE]}", "'BEGIN', 'END', 'FAIL'"),
        ("name: x\nmail: {user: 'a,b'}", "mail.user 'a,b'"),
        ("name: x\nstages: {train: {gpu_form: tres}}", "'gres' or 'gpus-per-node'"),
        ("name: x\nstages: {train: {cores: many}}", "stages.train.cores 'many'"),
        ("name: x\nstages: {train: {cores: 0}}", "greater than or equal to 1"),
        ("name: x\nstages: {train: {memory_gb: -1}}", "stages.train.memory_gb -1"),
        ("name: x\nstages: {train: {hours: 0.001}}", "whole minutes"),
        ("name: x\nstages: {train: 3}", "stages.train 3"),
        ("name: x\nstages: [train]", "stages ['train']"),
        ("name: x\ndefaults: cpu", "defaults 'cpu'"),
        ("name: x\ndefaults: {cores: none}", "defaults.cores 'none'"),
        ("name: x\nstages: {train: {hours: 48:00:00}}", "stages.train.hours '48:00:00'"),
        ("name: x\nstages: {train: {hours: 2:30}}", "stages.train.hours '2:30'"),
        ("name: x\nstages: {train: {hours: 1.0e+9}}", "less than or equal to 8760"),
        ("name: x\nstages: {train: {memory_gb: .inf}}", "stages.train.memory_gb inf"),
        ("name: x\nstages: {train: {hours: .nan}}", "stages.train.hours nan"),
        ("name: x\nname: y", "'name' stands there twice"),
        ("name: x\nmail: {usr: me}", "unknown mail.usr; did you mean user"),
        ("name: x\nenvironment: {A B: x}", "environment.A B"),
        ("name: x\nenvironment: {A=B: x}", "environment.A=B"),
        ("stages: {}", "name is missing"),
        ("name: [x", "cannot be read"),
        ("- name", "holds no profile"),
        ("", "holds no profile"),
        ("name: x\nwarn_seconds: 10", "warn_seconds 10"),
        ("name: x\nstages: {train: {hours: 0.1}}", "stages.train.hours is 0.1, less than twice"),
        ("name: x\nwarn_seconds: 40000", "less than twice warn_seconds"),
        ("name: x\nlog_dir: $NOT_SET_ANYWHERE/logs", "$NOT_SET_ANYWHERE is not set"),
        ("name: x\nscratch: 3", "scratch 3"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_valid(text, said, tmp_path):
    message = refusal(tmp_path, text)
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize("field", ["partition", "account", "qos", "reservation", "gpu_type"])
@pytest.mark.parametrize("value", ["a b", "x\n#SBATCH --x", "$(id)", "`id`", "a;b", "'", "a%j"])
def test_names_that_are_no_names_are_refused(field, value, tmp_path):
    message = refusal(tmp_path, f"name: x\nstages: {{train: {{{field}: {value!r}}}}}")
    assert f"stages.train.{field}" in message
    assert "letters, digits" in message


@pytest.mark.parametrize("value", ["a100|l40s", "[rack1*2&rack2*4]", "!old", "a100&ib"])
def test_features_may_be_joined(value, tmp_path):
    site = read(tmp_path, f"name: x\nstages: {{train: {{constraint: '{value}'}}}}")
    assert f"--constraint={value}" in site.of("train").arguments()


@pytest.mark.parametrize("value", ["a100 l40s", "$(id)", "a;b", "a\nb"])
def test_features_are_not_shell(value, tmp_path):
    assert "features joined by" in refusal(
        tmp_path, f"name: x\nstages: {{train: {{constraint: {value!r}}}}}"
    )


def test_defaults_hold_for_the_stages_that_say_nothing(tmp_path):
    site = read(
        tmp_path,
        "name: x\n"
        "defaults: {account: lab, hours: 4}\n"
        "stages: {train: {account: other}, analyze: }\n",
    )
    assert site.of("train").account == "other"
    assert site.of("analyze").account == "lab"
    assert {asked.hours for asked in site.each().values()} == {4}
    # What the defaults do not say stays as it is for each stage.
    assert site.of("train").gpus == 1
    assert site.of("flow").gpus == 0


def test_empty_sections_are_none(tmp_path):
    assert read(tmp_path, "name: x\nstages:\ndefaults:\n") == read(tmp_path, "name: x")


def test_places_may_be_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    site = read(tmp_path, "name: x\nlog_dir: ~/logs\nscratch: ${SCRATCH}/tmp")
    assert site.log_dir == Path("/home/me/logs")
    assert site.scratch == Path("/scratch/me/tmp")


def test_the_environment_names_the_profile(tmp_path):
    assert site_of({}) is None
    assert site_of({SITE_VARIABLE: ""}) is None
    (tmp_path / "a.yaml").write_text("name: mine")
    assert site_of({SITE_VARIABLE: str(tmp_path / "a.yaml")}).name == "mine"
    with pytest.raises(ProfileError, match=r"no site profile /no/site\.yaml"):
        site_of({SITE_VARIABLE: "/no/site.yaml"})


def test_a_folder_or_bytes_are_no_profile(tmp_path):
    with pytest.raises(ProfileError, match="cannot be read"):
        read_site(tmp_path)
    (tmp_path / "site.yaml").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(ProfileError, match="cannot be read"):
        read_site(tmp_path / "site.yaml")


def test_numbers_are_texts_in_the_environment(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text("name: x\nenvironment: {OMP_NUM_THREADS: 4, RATE: 0.5}\n")
    assert read_site(path).environment == {"OMP_NUM_THREADS": "4", "RATE": "0.5"}

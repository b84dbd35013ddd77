"""All three algorithms: their values, their networks, and two epochs of each."""

import json

import pytest
import torch

from cellmap_core.bundles.generate import generate
from cellmap_core.datalist import read_datalist
from cellmap_core.datastats.analyze import analyze
from cellmap_core.errors import CheckpointError, OptionError, TrainingInterrupted
from cellmap_core.inference.inferer import InferClass
from cellmap_core.nifti import read_grid
from cellmap_core.options import GenerateOptions
from cellmap_core.training.algorithms import ALGORITHMS, algorithm, build_network
from cellmap_core.training.algorithms.dints import read_architecture
from cellmap_core.training.config_files import CONFIG_NAME, read_bundle_config
from cellmap_core.training.facts import Facts, Memory
from cellmap_core.training.patches import SEARCH_STREAM
from cellmap_core.training.rules import _patch, training_bytes
from cellmap_core.training.run import train
from tests.tiny_project import make_datastats, make_project

#: Networks that train in seconds on a CPU.
SMALL = {
    "num_steps_per_epoch": 2,
    "batch_size": 2,
    "segresnet.init_filters": 8,
    "segresnet.blocks_down": [1, 1, 1],
    "segresnet.patch_size_vox": [32, 32, 32],
    "swinunetr.feature_size": 12,
    "swinunetr.patch_size_vox": [64, 32, 32],
    "dints.channel_mul": 0.25,
    "dints.num_blocks": 3,
    "dints.num_depths": 2,
    "dints.patch_size_vox": [32, 32, 32],
}


def tiny_bundles(root, algos=tuple(ALGORITHMS), **overrides):
    """Bundles of all algorithms, one fold each."""
    datalist = make_project(root / "nifti data")
    datastats = make_datastats(root / "work dir" / "datastats.yaml")
    options = GenerateOptions(
        algos=list(algos), num_fold=2, num_epochs=2, overrides={**SMALL, **overrides}
    )
    return generate(datalist, datastats, root / "work dir", options, folds=[0]).bundles


@pytest.fixture(scope="module")
def phantom_bundles(converted, tmp_path_factory):
    """All three, trained for two epochs on the phantom."""
    work = tmp_path_factory.mktemp("a project") / "work dir"
    datastats = analyze(converted.datalist, work).datastats
    options = GenerateOptions(algos=list(ALGORITHMS), num_fold=2, num_epochs=2, overrides=SMALL)
    made = generate(converted.datalist, datastats, work, options, folds=[0]).bundles
    return {b.algo: (b, train(read_bundle_config(b.folder), b.folder)) for b in made}


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_trains_validates_and_predicts(converted, phantom_bundles, algo):
    bundle, result = phantom_bundles[algo]
    assert result.epochs == 2
    scored = [d for d in result.dice.values() if d is not None]
    assert scored
    assert all(0 <= d <= 1 for d in scored)
    assert result.host_bytes > 0
    config = read_bundle_config(bundle.folder)
    datalist = read_datalist(converted.datalist)
    entry = datalist.training[0]
    predicted = InferClass(bundle.folder / CONFIG_NAME).infer(datalist.path(entry.image))
    size = read_grid(datalist.path(entry.image)).shape_vox[::-1]
    assert predicted.shape == (len(config.classes), *size)
    assert 0 <= float(predicted.min()) < float(predicted.max()) <= 1


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_softmax_has_a_background_and_trains_too(tmp_path, algo):
    bundle = tiny_bundles(tmp_path, [algo], activation="softmax", num_steps_per_epoch=1)[0]
    config = read_bundle_config(bundle.folder)
    assert config.channels == 3
    result = train(config.model_copy(update={"num_epochs": 1}), bundle.folder)
    assert result.epochs == 1


def test_search_is_kept_and_gone_on_with(tmp_path):
    bundle = tiny_bundles(tmp_path, ["dints"], num_steps_per_epoch=4)[0]
    config = read_bundle_config(bundle.folder)
    with pytest.raises(CheckpointError, match="has no architecture yet"):
        build_network(config)
    first = train(config, bundle.folder)
    model = bundle.folder / "model"
    kept = {n: (model / n).read_bytes() for n in ("architecture.json", "result.json")}
    weights = torch.load(model / "best.pt", weights_only=True)
    assert (model / "search" / "metrics.jsonl").is_file()
    assert not list((model / "search").glob("*.pt"))
    (model / "architecture.json").unlink()
    for name in ("best.pt", "last.pt", "previous.pt"):
        (model / name).unlink()
    asked = iter(range(10**6))
    # In the search, once its architecture learns; then in the training.
    for after in (3, 9):
        with pytest.raises(TrainingInterrupted):
            train(config, bundle.folder, lambda after=after: next(asked) >= after)
    again = train(config, bundle.folder)
    assert (model / "architecture.json").read_bytes() == kept["architecture.json"]
    assert again.dice == first.dice
    after = torch.load(model / "best.pt", weights_only=True)
    assert all(torch.equal(v, after["model"][k]) for k, v in weights["model"].items())
    assert after["architecture"] == json.loads(kept["architecture.json"])


def test_search_changes_the_architecture_by_the_data(tmp_path):
    from cellmap_core.training.data import open_fold
    from cellmap_core.training.search import SearchLearner, search_config
    from cellmap_core.training.team import alone

    bundle = tiny_bundles(tmp_path, ["dints"])[0]
    config = search_config(read_bundle_config(bundle.folder))
    data = open_fold(config, tmp_path / "cache")
    torch.manual_seed(0)
    learner = SearchLearner(config, data, alone())
    start = [p.detach().clone() for p in learner._chosen()]
    learner.step(data.sampler.batch(0), 0)
    assert all(torch.equal(a, b) for a, b in zip(start, learner._chosen(), strict=True))
    learner.step(data.sampler.batch(1), 1)
    assert not any(torch.equal(a, b) for a, b in zip(start, learner._chosen(), strict=True))


def test_values_of_one_algorithm_do_not_reach_the_others(tmp_path):
    made = {b.algo: read_bundle_config(b.folder) for b in tiny_bundles(tmp_path, seed=7)}
    assert made["swinunetr"].patch_size_vox == (64, 32, 32)
    assert made["dints"].patch_size_vox == (32, 32, 32)
    assert {c.seed for c in made.values()} == {7}
    with pytest.raises(OptionError, match=r"unknown override feature_size; .*\(segresnet\)"):
        tiny_bundles(tmp_path / "b", ["segresnet"], feature_size=24)


@pytest.mark.parametrize(
    ("algo", "values"),
    [
        ("segresnet", {"init_filters": 8, "blocks_down": (1, 1, 1)}),
        ("segresnet", {"init_filters": 16, "blocks_down": (1, 2, 2, 4)}),
        ("swinunetr", {"feature_size": 12, "use_checkpoint": False}),
        ("dints", {"channel_mul": 0.25, "num_blocks": 4, "num_depths": 3}),
    ],
)
def test_memory_is_estimated_near_what_a_network_keeps(tmp_path, algo, values):
    """Weights, and what autograd keeps for one patch, against the rule's estimate."""
    overrides = {f"{algo}.{k}": list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    bundle = tiny_bundles(tmp_path, [algo], **overrides)[0]
    config = read_bundle_config(bundle.folder)
    if algo == "dints":
        from cellmap_core.training.algorithms.dints import build_space

        network = build_space(config)
    else:
        network = build_network(config)
    weights = sum(p.numel() for p in network.parameters())
    kept, seen = 0, []

    def count(tensor):
        nonlocal kept
        place = tensor.untyped_storage().data_ptr()
        if not isinstance(tensor, torch.nn.Parameter) and place not in {p for p, _ in seen}:
            seen.append((place, tensor))
            kept += tensor.untyped_storage().nbytes()
        return tensor

    size = (64, 64, 64) if algo == "swinunetr" else (32, 32, 32)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        network.train()(torch.zeros(1, 1, *size))
    need = algorithm(algo).need(values)
    assert 0.7 < need.parameters / weights < 1.4
    assert 0.5 < need.voxel_bytes * torch.Size(size).numel() / kept < 2


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize(("gib", "voxel_nm"), [(80, (8, 8, 8)), (11, (8, 8, 8)), (6, (40, 8, 8))])
def test_patch_fits_into_the_memory(algo, gib, voxel_nm):
    facts = Facts(
        shape_vox=(400, 400, 400), voxel_nm=voxel_nm, intensity={}, training_cases=1,
        memory=Memory(kind="gpu", size_bytes=gib << 30),
    )  # fmt: skip
    chosen = algorithm(algo)
    values = {"classes": tuple("abcdefghijklmn")}
    for name, make in chosen.width_rules.items():
        values[name] = make(facts, values)[0]
    patch, reason, _ = _patch(chosen, facts, values)
    values["patch_size_vox"] = patch
    assert all(n % chosen.multiple == 0 and n >= chosen.least_edge for n in patch)
    least = all(n == chosen.least_edge for n in patch)
    assert least or training_bytes(chosen, facts.memory, values) <= 0.8 * (gib << 30)
    assert ("cut down" in reason) == (max(patch) < 96)


def test_a_damaged_architecture_is_taken_from_the_best_model(tmp_path):
    bundle = tiny_bundles(tmp_path, ["dints"])[0]
    config = read_bundle_config(bundle.folder)
    first = train(config, bundle.folder)
    path = bundle.folder / "model" / "architecture.json"
    found = json.loads(path.read_text())
    found["cells"] = found["cells"][:1]
    path.write_text(json.dumps(found))
    assert read_architecture(path.parent, config) is None
    assert train(config, bundle.folder).dice == first.dice


def test_the_architecture_learns_from_its_own_patches_alone(tmp_path):
    """Gradients of the weights' step must not be left on the architecture's parameters."""
    from cellmap_core.training.data import open_fold
    from cellmap_core.training.search import SearchLearner, search_config
    from cellmap_core.training.team import alone

    bundle = tiny_bundles(tmp_path, ["dints"])[0]
    config = search_config(read_bundle_config(bundle.folder))
    data = open_fold(config, tmp_path / "cache")
    gradients = []
    for steps_before in (0, 1):
        torch.manual_seed(0)
        learner = SearchLearner(config, data, alone())
        kept = {k: v.clone() for k, v in learner.network.state_dict().items()}
        for number in range(steps_before):
            learner.step(data.sampler.batch(number), 0)
        learner.network.load_state_dict(kept)
        learner._gradients(data.sampler.batch(5, stream=SEARCH_STREAM))
        gradients.append([p.grad.clone() for p in learner._chosen()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)

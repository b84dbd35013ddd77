"""Bundles: made once, made anew when stale, and readable by MONAI."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from cellmap_core.bundles.generate import generate
from cellmap_core.bundles.names import OWN_TEMPLATES, available_algos, check_algos
from cellmap_core.datalist import read_datalist, write_datalist
from cellmap_core.datastats.analyze import analyze
from cellmap_core.datastats.reports import read_summary
from cellmap_core.errors import BundleError, DatalistError, OptionError, StatisticsError
from cellmap_core.options import GenerateOptions
from cellmap_core.training.config_files import read_bundle_config
from tests.tiny_project import TINY, make_datastats, make_project, pretend_training


@pytest.fixture
def make(tmp_path):
    datalist = make_project(tmp_path / "nifti data")
    stats = make_datastats(tmp_path / "work dir" / "datastats.yaml")

    def run(folds=None, overrides=None, **options):
        given = {"num_fold": 2, "num_epochs": 2} | options
        settings = GenerateOptions(overrides=TINY | (overrides or {}), **given)
        return generate(datalist, stats, tmp_path / "work dir", settings, folds)

    run.datalist, run.stats, run.work_dir = datalist, stats, tmp_path / "work dir"
    return run


def snapshot(folder: Path):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_bundles_are_where_auto3dseg_has_them(make):
    result = make()
    assert (result.done, result.current) == (2, 0)
    assert [b.name for b in result.bundles] == ["segresnet_0", "segresnet_1"]
    for bundle in result.bundles:
        assert bundle.folder == make.work_dir / bundle.name
        assert (bundle.folder / "algo_object.json").is_file()
        config = read_bundle_config(bundle.folder)
        assert (config.fold, config.num_epochs, config.init_filters) == (bundle.fold, 2, 8)
    assert (make.work_dir / "algorithm_templates" / "segresnet" / "scripts" / "algo.py").is_file()
    source = yaml.safe_load((make.work_dir / "data_src_cfg.yaml").read_text())
    assert source["datalist"] == str(make.datalist)


def test_second_run_touches_nothing(make):
    for bundle in make().bundles:
        pretend_training(bundle, 1)
    before = snapshot(make.work_dir)
    result = make()
    assert result.up_to_date
    assert snapshot(make.work_dir) == before


def test_only_asked_folds_are_made_and_the_others_kept(make):
    kept = make(folds=[1]).bundles[0]
    pretend_training(kept, 1)
    before = snapshot(kept.folder)
    result = make()
    assert (result.done, result.current) == (1, 1)
    assert snapshot(kept.folder) == before


@pytest.mark.parametrize("change", ["epochs", "override", "datalist", "datastats", "template"])
def test_stale_bundle_is_made_anew_without_its_model(make, change, tmp_path):
    options = {"templates": tmp_path / "templates"}
    shutil.copytree(OWN_TEMPLATES, options["templates"])
    for bundle in make(**options).bundles:
        pretend_training(bundle, 1)
    if change == "epochs":
        options["num_epochs"] = 3
    elif change == "override":
        options["overrides"] = {"seed": 3}
    elif change == "datalist":
        cases = read_datalist(make.datalist)
        fewer = tuple(e.model_copy(update={"annotated_classes": (1,)}) for e in cases.training)
        write_datalist(make.datalist, cases.model_copy(update={"training": fewer}))
    elif change == "datastats":
        make_datastats(make.stats, mean=99.0)
    else:
        with (options["templates"] / "segresnet" / "scripts" / "train.py").open("a") as file:
            file.write("# changed\n")
    result = make(**options)
    assert (result.done, result.current) == (2, 0)
    assert not any((b.folder / "model").exists() for b in result.bundles)


def test_another_case_to_predict_keeps_the_models(make):
    kept = make().bundles[0]
    pretend_training(kept, 1)
    cases = read_datalist(make.datalist)
    write_datalist(make.datalist, cases.model_copy(update={"testing": cases.training[:1]}))
    assert make().current == 2
    assert (kept.folder / "model").exists()


def test_half_made_bundle_is_made_anew(make):
    bundle = make().bundles[0]
    (bundle.folder / "scripts" / "infer.py").unlink()
    assert make().done == 1
    assert (bundle.folder / "scripts" / "infer.py").is_file()


def test_monai_reads_the_bundles_and_their_scores(make):
    from monai.apps.auto3dseg.ensemble_builder import AlgoEnsembleBestN, AlgoEnsembleBuilder
    from monai.apps.auto3dseg.utils import import_bundle_algo_history

    for number, bundle in enumerate(make().bundles):
        pretend_training(bundle, number)
    history = import_bundle_algo_history(str(make.work_dir), only_trained=True)
    assert [(h["identifier"], h["best_metric"]) for h in history] == [
        ("segresnet_0", 0.5),
        ("segresnet_1", 0.51),
    ]
    builder = AlgoEnsembleBuilder(history, str(make.work_dir / "data_src_cfg.yaml"))
    builder.set_ensemble_method(AlgoEnsembleBestN(n_best=2))
    out = builder.get_ensemble()({"sigmoid": True})
    assert len(out) == 1
    assert tuple(out[0].shape) == (2, 44, 40, 36)
    assert torch.equal(out[0].affine[:3, 3], torch.tensor([26.0, 52.0, 104.0]).double())


def test_monais_own_generator_makes_our_bundles(make, tmp_path):
    from monai.apps.auto3dseg.bundle_gen import BundleGen

    make()
    stats = analyze(make.datalist, tmp_path / "stats", do_ccp=True).datastats
    work = tmp_path / "monai"
    work.mkdir()
    maker = BundleGen(
        algo_path=str(work),
        algos="segresnet",
        templates_path_or_url=str(OWN_TEMPLATES),
        data_stats_filename=str(stats),
        data_src_cfg_name=str(make.work_dir / "data_src_cfg.yaml"),
    )
    maker.generate(str(work), num_fold=2)
    assert read_bundle_config(work / "segresnet_1").fold == 1
    made = read_bundle_config(work / "segresnet_1")
    assert made.num_epochs == 100
    scale = read_summary(stats)["normalisation"]
    assert made.normalisation.model_dump() == pytest.approx(scale)


def test_copied_work_dir_reads_its_own_score(make, tmp_path):
    from monai.auto3dseg.utils import algo_from_json

    pretend_training(make().bundles[0], 1)
    shutil.copytree(make.work_dir, tmp_path / "copy")
    shutil.rmtree(make.work_dir)
    algo, _ = algo_from_json(str(tmp_path / "copy" / "segresnet_0" / "algo_object.json"))
    assert algo.get_score() == 0.51


def test_algo_trains_in_a_folder_with_spaces(make):
    from monai.auto3dseg.utils import algo_from_json

    bundle = make().bundles[0]
    algo, meta = algo_from_json(str(bundle.folder / "algo_object.json"))
    assert meta == {}
    algo.train({"num_epochs": 1})
    assert algo.get_score() > 0
    assert json.loads((bundle.folder / "model" / "result.json").read_text())["epochs"] == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"algos": ["unet"]},
            OptionError,
            "unknown algorithm unet; expected any of dints, segresnet, swinunetr",
        ),
        ({"algos": ["segresnet"] * 2}, OptionError, "each algorithm once"),
        ({"overrides": {"lr": 1}}, OptionError, "unknown override lr; .*learning_rate"),
        (
            {"num_fold": 5},
            DatalistError,
            "4 crops to train on; expected .* each of 5",
        ),
        ({"num_fold": 3}, DatalistError, "fold 2 has 4 training and 0 validation cases"),
        ({"templates": Path("/nowhere")}, BundleError, "no algorithm template in /nowhere"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_made(make, options, error, message):
    before = snapshot(make.work_dir)
    with pytest.raises(error, match=message) as raised:
        make(**options)
    assert raised.value.exit_code == 2
    assert snapshot(make.work_dir) == before


def test_missing_datastats_are_told(make):
    make.stats.unlink()
    with pytest.raises(StatisticsError, match="run the analysis first"):
        make()


def test_every_own_template_is_an_algorithm():
    assert "segresnet" in available_algos()
    check_algos(["segresnet"])
    for name in available_algos():
        for script in ("algo", "train", "infer"):
            assert (OWN_TEMPLATES / name / "scripts" / f"{script}.py").is_file()


def test_what_does_not_change_the_model_leaves_it_alone(make):
    for bundle in make().bundles:
        pretend_training(bundle, 1)
    changes = {"micro_batch": 1, "sw_batch_size": 2, "cache": "memory", "compile": True}
    assert make(overrides=changes).up_to_date
    assert make(overrides={"swinunetr.feature_size": 12}).up_to_date


def test_a_look_from_a_machine_with_other_memory_leaves_the_models_alone(make):
    small = {k: v for k, v in TINY.items() if k not in {"patch_size_vox", "init_filters"}}
    options = {"algos": ["segresnet"], "gpu_memory_gb": 1.0}
    settings = GenerateOptions(num_fold=2, num_epochs=2, overrides=small, **options)
    first = generate(make.datalist, make.stats, make.work_dir, settings)
    assert first.done == 2
    again = settings.model_copy(update={"gpu_memory_gb": None})
    assert generate(make.datalist, make.stats, make.work_dir, again).up_to_date

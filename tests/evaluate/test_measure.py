import csv
import os
import shutil

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from fusionx_jax import checkpoint
from fusionx_jax import encoder as encoder_lib
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate import features, measure, subsets
from fusionx_jax.evaluate import rows as rows_lib


@pytest.fixture(scope="module")
def evaluated(trained, simulated, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("evaluated") / "w"
    shutil.copytree(trained, workdir)
    measure.evaluate(measure.prepare_setting(str(workdir), simulated, []))
    return workdir


def test_rows_cover_methods_fractions_seeds_metrics_and_modalities(evaluated):
    rows = rows_lib.read(evaluated / rows_lib.FILE_NAME)
    assert {r.method for r in rows} == {"fusionx", *measure.BASELINES}
    assert {r.modalities for r in rows if r.method == "fusionx"} == {"s1+s2", "s1"}
    assert {r.label_fraction for r in rows} == {0.05, 0.5, 1.0}
    for method in ("fusionx", *measure.BASELINES):
        named = {r.metric for r in rows if r.method == method and "/" not in r.metric}
        single = set() if method == "supervised" else {"top1", "balanced_accuracy"}
        assert named == single | {"macro_map", "micro_map", "macro_f1", "micro_f1"}
    for r in rows:
        if r.seed == rows_lib.ALL_SEEDS and "/" not in r.metric:
            assert 0 <= r.ci_low <= r.ci_high <= 1
    assert {r.num_seeds for r in rows if r.label_fraction == 1.0} == {1}
    assert all(r.simulated for r in rows)


ONLY_PROBES = (
    "--config.evaluate.tasks=('multi',)",
    "--config.evaluate.modalities=('s1',)",
    "--config.evaluate.baselines=()",
)


def test_selection_on_the_validation_split_is_named_apart(evaluated, simulated, tmp_path):
    workdir = shutil.copytree(evaluated, tmp_path / "w")
    both = "--config.evaluate.selection=('cv', 'validation')"
    measure.evaluate(
        measure.prepare_setting(str(workdir), simulated, [*ONLY_PROBES, both, "--config.label_fractions=(0.5,)"])
    )
    rows = rows_lib.read(workdir / rows_lib.FILE_NAME)
    protocols = {r.protocol.split(";")[1].strip() for r in rows if r.method == "fusionx"}
    assert protocols == {"strength by 3-fold cv inside the labels", "strength by validation: all val labels"}


def test_a_reported_number_is_that_of_scikit_learn_on_the_same_features_and_ids(evaluated, simulated):
    setting = measure.prepare_setting(str(evaluated), simulated, [])
    ids = measure.read_labels(setting)[0].ids
    with open(next(evaluated.glob("subsets/simulated-*/multi/fraction0.5_seed1.txt"))) as f:
        members = [ids.index(line.strip()) for line in f]
    encoder = measure.encoders(setting)["fusionx"]
    pools = {s: features.extract(encoder, setting.prepared, s, ["s1", "s2"], 64) for s in ("train", "test")}
    train, test = features.standardize(*(encoder_lib.assemble(pools[s], "mean_std") for s in ("train", "test")))
    rows = rows_lib.select(
        rows_lib.read(evaluated / rows_lib.FILE_NAME),
        method="fusionx",
        modalities="s1+s2",
        label_fraction=0.5,
        seed="1",
    )
    row = next(r for r in rows if r.metric == "micro_map" and " cv " in r.protocol)
    labels = measure.read_labels(setting)[0].targets
    scores = np.zeros_like(labels["test"])
    for k in range(scores.shape[1]):
        y = labels["train"][members, k]
        if y.min() == y.max():
            scores[:, k] = -10.0 if y.max() == 0 else 10.0
            continue
        c = 1 / (len(members) * float(row.regularization))
        model = LogisticRegression(C=c, tol=1e-7, max_iter=5000).fit(train[members], y)
        scores[:, k] = model.decision_function(test)
    from sklearn.metrics import average_precision_score

    theirs = average_precision_score(labels["test"] > 0, scores, average="micro")
    assert row.value == pytest.approx(theirs, abs=0.005)


def test_id_files_are_reused_and_a_second_evaluation_gives_the_same_numbers(evaluated, simulated, tmp_path):
    first = (evaluated / rows_lib.FILE_NAME).read_text()
    again = tmp_path / "again"
    shutil.copytree(evaluated, again)
    written = next(evaluated.glob("subsets/simulated-*/multi"))
    subsets_from = f"--config.evaluate.subset_dir={written}"
    setting = measure.prepare_setting(str(again), simulated, [*ONLY_PROBES, subsets_from])
    measure.evaluate(setting)

    def values(text):
        return {
            tuple(r[k] for k in ("method", "modalities", "label_fraction", "seed", "metric", "protocol")): float(
                r["value"]
            )
            for r in csv.DictReader(text.splitlines())
            if r["task"] == "multi" and r["method"] == "fusionx" and r["modalities"] == "s1"
        }

    a, b = values(first), values((again / rows_lib.FILE_NAME).read_text())
    assert a.keys() == b.keys()
    assert all(a[k] == pytest.approx(b[k], abs=2e-3, nan_ok=True) for k in a)


def test_a_class_absent_from_a_subset_is_recorded_and_still_scored(evaluated):
    rows = rows_lib.read(evaluated / rows_lib.FILE_NAME)
    small = [r for r in rows if r.label_fraction == 0.05 and r.task == "multi" and r.method == "fusionx"]
    absent = {c for r in small for c in rows_lib.split_names(r.absent_classes)}
    assert absent  # seven tiles cannot hold twelve classes' long tail
    name = f"ap/{sorted(absent)[0]}"
    assert all(np.isfinite(r.value) for r in small if r.metric == name and name not in r.unscored_classes)


def test_data_that_do_not_match_the_weights_are_refused(trained, simulated, tmp_path):
    copy = tmp_path / "grd"
    shutil.copytree(simulated, copy)
    text = (copy / "contract.json").read_text().replace('"level": "RTC"', '"level": "GRD"')
    (copy / "contract.json").write_text(text)
    with pytest.raises(InputError, match=r"s1: .* is level 'GRD', but .* expects 'RTC'"):
        measure.prepare_setting(trained, str(copy), [])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--config.evaluate.pooling=sum", "mean, mean_std, class"),
        ("--config.evaluate.tasks=('depth',)", "no task of depth"),
        ("--config.evaluate.modalities=('s9',)", "the network reads s1, s2"),
        ("--config.evaluate.baselines=('magic',)", "magic"),
        ("--config.evaluate.selection=('luck',)", "luck"),
        ("--config.label_fractions=(2.0,)", "fractions lie above 0"),
        ("--config.evaluate.subset_dir=/nonexistent", "no such folder"),
        ("--config.evaluate.seeds=0", "evaluate.seeds is 0"),
        ("--config.evaluate.evaluators=('magic',)", "linear_probe, linear_probe_each, knn, finetune"),
        ("--config.evaluate.score_split=dev", "score_split is 'dev'"),
        ("--config.evaluate.knn.k=0", "must be positive"),
        ("--config.evaluate.statistics=mine", "one of checkpoint, dataset"),
        ("--config.evaluate.finetune.learning_rates=()", "at least one is needed"),
        ("--config.evaluate.supervised.eval_every=0", "eval_every is 0"),
        ("dataset=", "directory is empty"),
    ],
)
def test_settings_that_make_no_sense_are_refused(trained, simulated, tmp_path, override, words):
    workdir = tmp_path / "w"
    shutil.copytree(trained, workdir)
    cheap = ["--config.evaluate.baselines=()"] if "baselines" not in override else []
    cheap += ["--config.evaluate.evaluators=('knn',)"] if "knn" in override else []
    dataset, override = ("", []) if override == "dataset=" else (simulated, [override])
    with pytest.raises(InputError, match=words):
        measure.evaluate(measure.prepare_setting(str(workdir), dataset, [*cheap, *override]))
    assert not os.path.exists(workdir / rows_lib.FILE_NAME)


def test_checkpoint_is_named_in_the_rows(evaluated):
    rows = rows_lib.read(evaluated / rows_lib.FILE_NAME)
    assert {r.checkpoint for r in rows if r.method == "fusionx"} == {checkpoint.find(str(evaluated)).path}


@pytest.mark.slow
def test_every_evaluator_gives_rows_of_its_own_metrics(evaluated, simulated, tmp_path):
    workdir = shutil.copytree(evaluated, tmp_path / "w", ignore=shutil.ignore_patterns("cells"))
    quick = [f"--config.evaluate.finetune.{k}" for k in ("num_steps=3", "min_steps=2", "eval_every=2", "seeds=1")]
    settings = [
        "--config.evaluate.tasks=('single', 'pixel')", "--config.evaluate.baselines=('band_statistics',)",
        "--config.evaluate.evaluators=('knn', 'finetune', 'segment_linear', 'segment_decoder', 'ridge_cover')",
        "--config.label_fractions=(0.5,)", "--config.evaluate.shots=(2,)", "--config.evaluate.seeds=1",
        "--config.evaluate.modalities=('s1+s2',)", "--config.evaluate.segmentation.num_steps=3", *quick,
        "--config.evaluate.finetune.ema=0.5", "--config.evaluate.finetune.learning_rates=(1e-3,)",
    ]  # fmt: skip
    measure.evaluate(measure.prepare_setting(str(workdir), simulated, settings))
    rows = rows_lib.read(workdir / rows_lib.FILE_NAME)
    assert {r.evaluator for r in rows if r.task == "single"} == {"knn", "finetune"}
    assert {r.evaluator for r in rows if r.task == "pixel"} == {"segment_linear", "segment_decoder", "ridge_cover"}
    assert {r.label for r in rows} == {"0.5", "2-shot"}
    assert {r.method for r in rows if r.evaluator == "segment_linear"} == {"fusionx", "band_statistics"}
    whole = [r for r in rows if r.seed == rows_lib.ALL_SEEDS and r.metric in ("miou", "pixel_accuracy", "top1")]
    assert all(0 <= r.ci_low <= r.value <= r.ci_high <= 1 for r in whole)
    assert any(r.metric.startswith("iou/") for r in rows)
    assert all(r.ci_low <= r.value <= 1 for r in rows if r.metric == "r2" and r.seed == rows_lib.ALL_SEEDS)


def test_absent_sensors_are_left_out_and_beside_it_filled_with_zeros(evaluated, simulated, tmp_path):
    workdir = shutil.copytree(evaluated, tmp_path / "w", ignore=shutil.ignore_patterns("cells"))
    settings = [*ONLY_PROBES, "--config.evaluate.evaluators=('knn',)", "--config.evaluate.zero_fill=True"]
    measure.evaluate(measure.prepare_setting(str(workdir), simulated, settings))
    rows = [r for r in rows_lib.read(workdir / rows_lib.FILE_NAME) if r.metric == "macro_map" and r.label == "0.5"]
    of = {r.modalities: r.value for r in rows if r.seed == rows_lib.ALL_SEEDS}
    assert set(of) == {"s1", "s1 (zeros for s2)"}
    assert of["s1"] != of["s1 (zeros for s2)"]


def test_a_probe_can_read_every_sensor_alone_beside_all_together(evaluated, simulated, tmp_path, monkeypatch):
    workdir = str(shutil.copytree(evaluated, tmp_path / "w"))
    read = {}
    standardize = features.standardize
    monkeypatch.setattr(features, "standardize", lambda train, *x: read.update(train=train) or standardize(train, *x))
    setting = measure.prepare_setting(
        workdir, simulated, [*ONLY_PROBES, "--config.evaluate.evaluators=('linear_probe_each',)",
                             "--config.evaluate.baselines=('band_statistics',)",
                             "--config.evaluate.modalities=('s1+s2', 's1')"],
    )  # fmt: skip
    found = measure.measure(setting)
    assert list(found) == [("fusionx", "s1+s2", "multi", "linear_probe_each")]  # alone means nothing for the others
    kept = {group[3] for group in measure.measure(setting, with_earlier=True)}
    assert kept >= {"linear_probe", "linear_probe_each"}  # what was measured before stays in the table
    assert "of each alone" in next(iter(found.values()))["0.5", 0].protocol
    encoder = measure.encoders(setting)["fusionx"]
    parts = [
        encoder_lib.assemble(features.extract(encoder, setting.prepared, "train", shown, 64), "mean_std")
        for shown in (["s1", "s2"], ["s1"], ["s2"])
    ]
    assert np.allclose(read["train"], np.concatenate(parts, axis=1), atol=1e-5)


def test_cells_are_measured_once_and_what_is_added_alone(evaluated, simulated, tmp_path, monkeypatch):
    workdir = str(shutil.copytree(evaluated, tmp_path / "w"))
    before = measure.measure(measure.prepare_setting(workdir, simulated, [*ONLY_PROBES]))
    measured = []
    judge = measure.Judge.cell
    monkeypatch.setattr(measure.Judge, "cell", lambda self, *a: measured.append(a[1:3]) or judge(self, *a))
    after = measure.measure(measure.prepare_setting(workdir, simulated, [*ONLY_PROBES, "--config.evaluate.seeds=3"]))
    assert sorted(measured) == [("0.05", 2), ("0.5", 2)]  # the third seed; with all labels there is one subset
    (group,) = before
    assert set(after[group]) - set(before[group]) == {("0.05", 2), ("0.5", 2)}
    for key, cell in before[group].items():
        assert (after[group][key].values["macro_map"] == cell.values["macro_map"]).all()
    damaged = next(p for p in (tmp_path / "w" / "cells").rglob("*.npz") if "fusionx-s1-multi" in p.name)
    for left in (b"x", b""):  # cut off, or never flushed
        damaged.write_bytes(left)
        assert len(measure.measure(measure.prepare_setting(workdir, simulated, [*ONLY_PROBES]))[group]) == len(
            before[group]
        )


def test_cells_belong_to_their_labeled_tiles_and_to_all_that_the_command_line_changes(evaluated, simulated, tmp_path):
    workdir = str(shutil.copytree(evaluated, tmp_path / "w", ignore=shutil.ignore_patterns("cells", "subsets")))
    few = [*ONLY_PROBES, "--config.evaluate.evaluators=('knn',)", "--config.label_fractions=(0.5,)"]

    def measured(*more):
        setting = measure.prepare_setting(workdir, simulated, [*few, *more])
        (cells,) = measure.measure(setting).values()
        (labels,) = measure.read_labels(setting)
        drawn = measure.label_subsets(setting, labels)
        for (label, seed), cell in cells.items():
            assert cell.subset == subsets.digest(drawn[seed][label])
            assert cell.num_labels == len(drawn[seed][label])
        return cells

    one = measured("--config.evaluate.shots=(5,)")
    both = measured("--config.evaluate.shots=(1,5)")  # what is nested depends on all that is asked for
    assert {label for label, _ in both} == {"0.5", "1-shot", "5-shot"}
    assert all(one["0.5", s].subset == both["0.5", s].subset for s in (0, 1))
    stores = {
        measure.cell_store(measure.prepare_setting(workdir, simulated, [*few, *more])).directory
        for more in ([], ["--config.seed=1"], ["--config.model.dtype=bfloat16"], ["--config.evaluate.seeds=3"])
    }
    assert len(stores) == 3  # more label subsets are added to what is there


def test_what_chose_its_settings_on_the_split_that_is_scored_says_so(evaluated, simulated, tmp_path):
    workdir = str(shutil.copytree(evaluated, tmp_path / "w", ignore=shutil.ignore_patterns("cells")))
    settings = [*ONLY_PROBES, "--config.evaluate.score_split=val", "--config.evaluate.selection=('cv','validation')",
                "--config.label_fractions=(0.5,)"]  # fmt: skip
    found = measure.measure(measure.prepare_setting(workdir, simulated, settings))
    told = {group[3]: next(iter(cells.values())).protocol for group, cells in found.items()}
    assert "too good" in told["linear_probe_validation"]
    assert "too good" not in told["linear_probe"]

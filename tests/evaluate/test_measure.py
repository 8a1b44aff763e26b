import os
import shutil

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from fusionx_jax import checkpoint
from fusionx_jax import encoder as encoder_lib
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate import compare, features, measure, metrics, rows, subsets
from fusionx_jax.evaluate.evaluation import open_evaluation
from fusionx_jax.evaluate.evaluators import EVALUATORS, probe
from fusionx_jax.evaluate.records import CellKey, LabelBudget, Method, MetricKey, ModalitySet

HALF = LabelBudget(0.5)
ONE_DATE = ("untrained", "band_statistics", "supervised")  # of tests.helpers.TINY
ONLY_PROBES = (
    "--config.evaluate.tasks=('multi',)",
    "--config.evaluate.modalities=('s1',)",
    "--config.evaluate.baselines=()",
)
ONLY_KNN = (*ONLY_PROBES, "--config.evaluate.evaluators=('knn',)", "--config.label_fractions=(0.5,)")


@pytest.fixture
def workdir(evaluated, tmp_path):
    """A copy of the evaluated workdir without its cells."""
    return str(shutil.copytree(evaluated, tmp_path / "w", ignore=shutil.ignore_patterns("cells", "*.csv")))


@pytest.fixture
def with_cells(evaluated, tmp_path):
    return str(shutil.copytree(evaluated, tmp_path / "w"))


@pytest.fixture
def scored(monkeypatch):
    """The label subsets that evaluators fit from here on, as (evaluator, key)."""
    fitted = []
    for cls in {type(e) for e in EVALUATORS.values()}:
        if "score" in vars(cls):

            def score(self, source, problem, keys, original=cls.score):
                fitted.extend((self.name, key) for key in keys)
                return original(self, source, problem, keys)

            monkeypatch.setattr(cls, "score", score)
    return fitted


def test_rows_cover_methods_budgets_seeds_metrics_and_modalities(evaluated):
    found = rows.read(evaluated / rows.FILE_NAME)
    assert {r.method for r in found} == {"fusionx", *ONE_DATE}
    assert {r.modalities for r in found if r.method == "fusionx"} == {"s1+s2", "s1"}
    assert {r.label_fraction for r in found} == {0.05, 0.5, 1.0}
    for method in ("fusionx", *ONE_DATE):
        tasks = ("multi",) if method == "supervised" else ("multi", "single")
        names = {(r.task, r.metric) for r in found if r.method == method}
        assert names == {(task, m.name) for task in tasks for m in metrics.metrics_of(task)}
    for r in rows.select(found, level=rows.MEAN, class_name=""):
        assert 0 <= r.ci_low <= r.ci_high <= 1
    assert {r.num_subsets for r in found if r.label_fraction == 1.0} == {1}
    assert all(r.simulated for r in found)
    assert {r.checkpoint for r in found if r.method == "fusionx"} == {checkpoint.find(str(evaluated)).path}
    assert {r.pooling for r in found if r.method == "band_statistics"} == {""}


def test_differences_of_a_run_are_paired_with_its_own_method(evaluated):
    table = rows.read_table(evaluated / measure.DIFFERENCES_FILE, compare.Difference)
    assert {d.method for d in table} == set(ONE_DATE)
    means = {
        (r.method, r.modalities, r.label): r.value
        for r in rows.select(rows.read(evaluated / rows.FILE_NAME), metric="macro_map", level=rows.MEAN)
    }
    same_subsets = [d for d in table if d.metric == "macro_map" and d.method != "supervised"]
    assert same_subsets
    for d in same_subsets:
        gap = means["fusionx", d.modalities, d.label] - means[d.method, d.modalities, d.label]
        assert d.reference_minus_method == pytest.approx(gap, abs=1e-5)


def test_selection_on_the_validation_split_has_a_name_of_its_own(workdir, simulated):
    both = "--config.evaluate.evaluators=('linear_probe','linear_probe_validation')"
    measure.evaluate(open_evaluation(workdir, simulated, [*ONLY_PROBES, both, "--config.label_fractions=(0.5,)"]))
    protocols = {
        r.evaluator: r.protocol.split(";")[1].strip() for r in rows.read(os.path.join(workdir, rows.FILE_NAME))
    }
    assert protocols == {
        "linear_probe": "regularization by 3-fold cross-validation inside the labels",
        "linear_probe_validation": "regularization by all labels of the validation split",
    }


def test_a_reported_number_is_that_of_scikit_learn_on_the_same_features_and_ids(evaluated, simulated):
    opened = open_evaluation(str(evaluated), simulated, [])
    labels = opened.labels[0]
    with open(next(evaluated.glob("subsets/simulated-*/multi/fraction0.5_seed1.txt"))) as f:
        members = [labels.ids["train"].tolist().index(line.strip()) for line in f]
    pools = {s: features.extract(opened.trained, opened.prepared, s, ["s1", "s2"], 64) for s in ("train", "test")}
    train, test = features.standardize(*(encoder_lib.assemble(pools[s], "mean_std") for s in ("train", "test")))
    (row,) = rows.select(
        rows.read(evaluated / rows.FILE_NAME),
        method="fusionx", modalities="s1+s2", label="0.5", level=rows.SUBSET, seed=1, metric="micro_map",
    )  # fmt: skip
    scores = np.zeros_like(labels.targets["test"])
    for k in range(scores.shape[1]):
        y = labels.targets["train"][members, k]
        if y.min() == y.max():
            scores[:, k] = -10.0 if y.max() == 0 else 10.0
            continue
        c = 1 / (len(members) * float(row.selected))
        model = LogisticRegression(C=c, tol=1e-7, max_iter=5000).fit(train[members], y)
        scores[:, k] = model.decision_function(test)
    reference = average_precision_score(labels.targets["test"] > 0, scores, average="micro")
    assert row.value == pytest.approx(reference, abs=0.005)


def test_id_files_are_reused_and_a_second_evaluation_gives_the_same_numbers(evaluated, workdir, simulated):
    written = next(evaluated.glob("subsets/simulated-*/multi"))
    again = [*ONLY_PROBES, f"--config.evaluate.subset_dir={written}"]
    measure.evaluate(open_evaluation(workdir, simulated, again))

    def values(folder):
        chosen = rows.select(rows.read(os.path.join(folder, rows.FILE_NAME)), task="multi", method="fusionx")
        return {(r.label, r.level, r.seed, r.metric, r.class_name): r.value for r in chosen if r.modalities == "s1"}

    first, second = values(evaluated), values(workdir)
    assert first.keys() == second.keys()
    assert all(first[k] == pytest.approx(second[k], abs=2e-3, nan_ok=True) for k in first)


def test_a_class_absent_from_a_subset_is_recorded_and_still_scored(evaluated):
    small = rows.select(rows.read(evaluated / rows.FILE_NAME), label="0.05", task="multi", method="fusionx")
    absent = {c for r in small for c in rows.split_names(r.absent_classes)}
    unscored = {c for r in small for c in rows.split_names(r.unscored_classes)}
    assert absent - unscored  # seven tiles cannot hold twelve classes' long tail
    of_absent = [r for r in small if r.metric == "ap" and r.class_name in absent - unscored]
    assert of_absent
    assert all(np.isfinite(r.value) for r in of_absent)


def test_data_that_do_not_match_the_weights_are_refused(trained, simulated, tmp_path):
    copy = shutil.copytree(simulated, tmp_path / "grd")
    text = (copy / "contract.json").read_text().replace('"level": "RTC"', '"level": "GRD"')
    (copy / "contract.json").write_text(text)
    with pytest.raises(InputError, match=r"s1: .* is level 'GRD', but .* expects 'RTC'"):
        open_evaluation(trained, str(copy), [])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--config.evaluate.pooling=sum", "mean, mean_std, class"),
        ("--config.evaluate.tasks=('depth',)", "evaluate.tasks .'depth',"),
        ("--config.evaluate.modalities=('s9',)", "the network reads s1, s2"),
        ("--config.evaluate.baselines=('magic',)", "magic"),
        ("--config.label_fractions=(2.0,)", "it must be above 0 and at most 1"),
        ("--config.label_fractions=(0.001,)", "fewer than 2 of the 140 training tiles"),
        ("--config.evaluate.subset_dir=/nonexistent", "no such folder"),
        ("--config.evaluate.seeds=0", "evaluate.seeds is 0"),
        ("--config.evaluate.cv_folds=1", "evaluate.cv_folds is 1"),
        (
            "--config.evaluate.evaluators=('magic',)",
            "linear_probe, linear_probe_each, linear_probe_apart, linear_probe_components, linear_probe_validation, knn",
        ),
        ("--config.evaluate.score_split=dev", "score_split is 'dev'"),
        ("--config.evaluate.knn.k=0", "evaluate.knn.k is 0; it must be at least 1"),
        ("--config.evaluate.statistics=mine", "one of checkpoint, dataset"),
        ("--config.evaluate.finetune.learning_rates=()", "at least one is needed"),
        ("--config.evaluate.supervised.eval_every=0", "eval_every is 0"),
        ("dataset=", "directory is empty"),
    ],
)
def test_settings_that_make_no_sense_are_refused(trained, simulated, tmp_path, override, words):
    workdir = shutil.copytree(trained, tmp_path / "w")
    cheap = ["--config.evaluate.baselines=()"] if "baselines" not in override and "supervised" not in override else []
    for part in ("knn", "finetune"):
        cheap += [f"--config.evaluate.evaluators=('{part}',)"] if part in override else []
    dataset, override = ("", []) if override == "dataset=" else (simulated, [override])
    with pytest.raises(InputError, match=words):
        measure.evaluate(open_evaluation(str(workdir), dataset, [*cheap, *override]))
    assert not os.path.exists(workdir / rows.FILE_NAME)


@pytest.mark.slow
def test_every_evaluator_gives_rows_of_its_own_metrics(workdir, simulated):
    quick = [f"--config.evaluate.finetune.{k}" for k in ("num_steps=3", "min_steps=2", "eval_every=2", "seeds=1")]
    overrides = [
        "--config.evaluate.tasks=('single', 'pixel')", "--config.evaluate.baselines=('band_statistics',)",
        "--config.evaluate.evaluators=('knn', 'finetune', 'segment_linear', 'segment_decoder', 'ridge_cover')",
        "--config.label_fractions=(0.5,)", "--config.evaluate.shots=(2,)", "--config.evaluate.seeds=1",
        "--config.evaluate.modalities=('s1+s2',)", "--config.evaluate.segmentation.num_steps=3", *quick,
        "--config.evaluate.finetune.ema=0.5", "--config.evaluate.finetune.learning_rates=(1e-3,)",
    ]  # fmt: skip
    measure.evaluate(open_evaluation(workdir, simulated, overrides))
    found = rows.read(os.path.join(workdir, rows.FILE_NAME))
    assert {r.evaluator for r in found if r.task == "single"} == {"knn", "finetune"}
    assert {r.evaluator for r in found if r.task == "pixel"} == {"segment_linear", "segment_decoder", "ridge_cover"}
    assert {r.label for r in found} == {"0.5", "2-shot"}
    assert {r.method for r in found if r.evaluator == "segment_linear"} == {"fusionx", "band_statistics"}
    for kind in ("single", "pixel", "cover"):
        chosen = rows.select(found, kind=kind, level=rows.MEAN)
        assert {r.metric for r in chosen} == {m.name for m in metrics.metrics_of(kind)}
        for r in chosen:
            metric = metrics.find(kind, r.metric)
            assert not r.ci_high < r.ci_low
            assert np.isnan(r.value) or metric.low <= r.value <= metric.high


def test_missing_modalities_are_left_out_and_beside_that_filled_with_zeros(workdir, simulated):
    measure.evaluate(open_evaluation(workdir, simulated, [*ONLY_KNN, "--config.evaluate.zero_fill=True"]))
    found = rows.select(rows.read(os.path.join(workdir, rows.FILE_NAME)), metric="macro_map", level=rows.MEAN)
    values = {r.modality_set: r.value for r in found}
    left_out, filled = ModalitySet(("s1",)), ModalitySet(("s1",), ("s2",))
    assert set(values) == {left_out, filled}
    assert values[left_out] != values[filled]
    assert ["zeros in place of s2" in r.protocol for r in found] == [r.zero_filled == "s2" for r in found]


def test_a_probe_can_read_every_modality_alone_beside_all_together(with_cells, simulated, monkeypatch):
    probed = {}
    standardize = features.standardize
    monkeypatch.setattr(probe, "standardize", lambda train, *x: probed.update(train=train) or standardize(train, *x))
    opened = open_evaluation(
        with_cells, simulated, [*ONLY_PROBES, "--config.evaluate.evaluators=('linear_probe_each',)",
                                "--config.evaluate.baselines=('band_statistics',)",
                                "--config.evaluate.modalities=('s1+s2', 's1')"],
    )  # fmt: skip
    (group,) = measure.measure(opened)  # alone means nothing for one modality, or for statistics of bands
    assert (group.method, group.modalities.name, group.evaluator) == (Method("fusionx"), "s1+s2", "linear_probe_each")
    earlier = {g.evaluator for g in measure.measure(opened, with_earlier=True)}
    assert earlier >= {"linear_probe", "linear_probe_each"}  # what was measured before stays in the table
    parts = [
        encoder_lib.assemble(features.extract(opened.trained, opened.prepared, "train", given, 64), "mean_std")
        for given in (["s1", "s2"], ["s1"], ["s2"])
    ]
    assert np.allclose(probed["train"], np.concatenate(parts, axis=1), atol=1e-5)


def test_cells_are_measured_once_and_added_ones_alone(with_cells, simulated, scored):
    before = measure.measure(open_evaluation(with_cells, simulated, [*ONLY_PROBES]))
    assert not scored
    after = measure.measure(open_evaluation(with_cells, simulated, [*ONLY_PROBES, "--config.evaluate.seeds=3"]))
    third = [CellKey(LabelBudget(0.05), 2), CellKey(HALF, 2)]  # with all labels there is one subset
    assert [key for _, key in scored] == third
    (group,) = before
    assert set(after[group]) - set(before[group]) == set(third)
    for key, cell in before[group].items():
        assert all(np.array_equal(after[group][key].values[m], v, equal_nan=True) for m, v in cell.values.items())


def test_adding_a_fraction_keeps_the_cells_whose_tiles_stay_the_same(workdir, simulated, scored):
    few = [*ONLY_PROBES, "--config.evaluate.evaluators=('knn',)"]
    measure.measure(open_evaluation(workdir, simulated, [*few, "--config.label_fractions=(0.5,1.0)"]))
    scored.clear()
    measure.measure(open_evaluation(workdir, simulated, [*few, "--config.label_fractions=(0.2,0.5,1.0)"]))
    assert {key.budget for _, key in scored} == {LabelBudget(0.2)}


def test_cells_identify_their_labeled_tiles_and_all_settings_that_affect_them(workdir, simulated):
    def measured(*more):
        opened = open_evaluation(workdir, simulated, [*ONLY_KNN, *more])
        (cells,) = measure.measure(opened).values()
        (labels,) = opened.labels
        drawn = opened.label_subsets(opened.divisions(labels)[0])
        for key, cell in cells.items():
            assert cell.subset == subsets.digest(drawn[key])
            assert cell.num_labels == len(drawn[key])
        return cells

    one = measured("--config.evaluate.shots=(5,)")
    both = measured("--config.evaluate.shots=(1,5)")  # nested subsets depend on all budgets
    assert {key.budget.name for key in both} == {"0.5", "1-shot", "5-shot"}
    assert all(one[CellKey(HALF, s)].subset == both[CellKey(HALF, s)].subset for s in (0, 1))

    def folder(*more):
        return open_evaluation(workdir, simulated, [*ONLY_KNN, *more]).cell_store().directory

    assert len({folder(), folder("--config.seed=1"), folder("--config.model.dtype=bfloat16")}) == 3
    assert folder() == folder("--config.evaluate.seeds=3") == folder("--config.log_every=7")


def test_hyperparameters_selected_on_the_scored_split_are_marked(workdir, simulated):
    overrides = [*ONLY_PROBES, "--config.evaluate.score_split=val", "--config.label_fractions=(0.5,)",
                 "--config.evaluate.evaluators=('linear_probe','linear_probe_validation')"]  # fmt: skip
    found = measure.measure(open_evaluation(workdir, simulated, overrides))
    protocols = {group.evaluator: next(iter(cells.values())).protocol for group, cells in found.items()}
    assert protocols["linear_probe_validation"].optimistic
    assert "optimistic" in protocols["linear_probe_validation"].title
    assert not protocols["linear_probe"].optimistic


def test_a_new_or_corrected_metric_is_measured_in_kept_cells_and_nothing_else(workdir, simulated, scored, monkeypatch):
    tasks = ("--config.evaluate.tasks=('multi','single')", "--config.evaluate.single_sensor_tasks=('multi','single')")
    opened = [workdir, simulated, [*ONLY_KNN, *tasks]]
    before = {g.task: cells for g, cells in measure.measure(open_evaluation(*opened)).items()}
    scored.clear()
    name = metrics.register(metrics.Metric("positives", "positives", "multi", lambda s: s.weights.T @ s.targets.sum(1)))
    try:
        added = {g.task: cells for g, cells in measure.measure(open_evaluation(*opened)).items()}
        assert {e for e, _ in scored} == {"knn"}
        assert len(scored) == len(before["multi"])  # the other task has no such metric
        for key, cell in before["multi"].items():
            assert MetricKey("positives") in added["multi"][key].values
            assert all(np.array_equal(added["multi"][key].values[m], v, equal_nan=True) for m, v in cell.values.items())
        scored.clear()
        measure.measure(open_evaluation(*opened))
        assert not scored
    finally:
        metrics.METRICS.unregister(f"multi/{name.name}")
    corrected = metrics.find("single", "top1")._replace(version=2, compute=lambda s: 0 * s.single["top1"])
    monkeypatch.setitem(metrics.METRICS._entries, "single/top1", corrected)
    again = {g.task: cells for g, cells in measure.measure(open_evaluation(*opened)).items()}
    assert len(scored) == len(before["single"])
    for key, cell in before["single"].items():
        assert again["single"][key].value("top1") == 0
        same = MetricKey("balanced_accuracy")
        assert (again["single"][key].values[same] == cell.values[same]).all()


def test_a_new_version_of_an_evaluator_measures_its_own_cells_again(workdir, simulated, scored, monkeypatch):
    opened = [workdir, simulated, [*ONLY_KNN, "--config.evaluate.evaluators=('knn','linear_probe')"]]
    measure.measure(open_evaluation(*opened))
    scored.clear()
    monkeypatch.setattr(type(EVALUATORS["knn"]), "version", 2)
    measure.measure(open_evaluation(*opened))
    assert {name for name, _ in scored} == {"knn"}


def test_the_encoder_is_read_once_and_compiled_once_a_shape(workdir, simulated, monkeypatch):
    loads = []
    load = checkpoint.load_params
    monkeypatch.setattr(checkpoint, "load_params", lambda *a, **k: loads.append(a) or load(*a, **k))
    encoder_lib._compile_pooled.cache_clear()
    opened = open_evaluation(
        workdir, simulated, [*ONLY_KNN, "--config.evaluate.modalities=('s1+s2','s1','s2')",
                             "--config.evaluate.baselines=('untrained',)"],
    )  # fmt: skip
    shutil.rmtree(opened.feature_cache)
    measure.measure(opened)
    assert len(loads) == 1
    program = encoder_lib.pooled_program(opened.trained)
    assert encoder_lib._compile_pooled.cache_info().currsize == 1
    shapes = {
        (m, n) for m in ("s1+s2", "s1", "s2") for n in (64, 40)
    }  # a batch of 64 of 140 tiles, and the 40 test tiles
    assert program._cache_size() == len(shapes)

"""Labels of what changed between two dates, through the evaluators of all tasks."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from fusionx_jax import config, pretrain
from fusionx_jax import encoder as encoder_lib
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate import features, measure, rows, segmentation
from fusionx_jax.evaluate.batches import DeviceReader
from fusionx_jax.evaluate.evaluation import open_evaluation
from fusionx_jax.prepared import store
from tests import two_dates as source
from tests.conftest import TINY
from tests.evaluate import toy
from tests.helpers import ROOT

PATCH = 4


@pytest.fixture(scope="module")
def workdir(two_dates, tmp_path_factory) -> str:
    """A pretraining of two steps, evaluated by folds."""
    out = str(tmp_path_factory.mktemp("change"))
    c = config.override(
        config.override(config.load_file(str(ROOT / "configs/demo.py")), TINY),
        [
            f"--config.dataset={two_dates}", "--config.num_steps=2", "--config.model.patch_size=4",
            "--config.label_fractions=(0.5,1.0)", "--config.evaluate.seeds=2", "--config.evaluate.folds=3",
            "--config.evaluate.tasks=('change','change_pixel')", "--config.evaluate.modalities=('s1+s2',)",
            "--config.evaluate.evaluators=('linear_probe','linear_probe_apart','ridge_cover')",
            "--config.evaluate.baselines=('band_statistics','difference_of_means','change_vector')",
        ],
    )  # fmt: skip
    assert pretrain.run(c, out) == 0
    measure.evaluate(open_evaluation(out, two_dates, []))
    return out


def _arrays(two_dates):
    prepared = store.PreparedSet(two_dates)
    batch = prepared.read("test", np.arange(11), ["s1", "s1@2", "s2", "s2@2"])
    m = prepared.contract.modalities
    physical = {f: sensor.decode(batch[f]) for f, _, sensor in source.TwoDates().describe().features()}
    return prepared, {f: (v - np.array(m[f[:2]].mean)) / np.array(m[f[:2]].std) for f, v in physical.items()}


def test_the_compared_tokens_are_those_of_both_dates(two_dates):
    prepared = store.PreparedSet(two_dates)
    single = toy.encoder(prepared)
    both = dataclasses.replace(single, acquisitions=2)
    batch = jax.tree.map(jnp.asarray, prepared.read("test", np.arange(4), ["s1", "s1@2", "s2", "s2@2"]))
    first = single.tokens({m: batch[m] for m in ("s1", "s2")})
    second = single.tokens({m: batch[f"{m}@2"] for m in ("s1", "s2")})
    compared = both.tokens(batch)
    for name, tokens in compared.groups.items():
        a, b = np.asarray(first.groups[name]), np.asarray(second.groups[name])
        assert np.allclose(tokens, np.concatenate([a, b, abs(b - a), a * b], -1), atol=1e-5)
    assert both.architecture_key() != single.architecture_key()
    pooled = encoder_lib.assemble(jax.tree.map(np.asarray, both.pooled(batch)), "mean_std")
    assert pooled.shape == (4, 2 * 2 * 4 * 32)


def test_statistics_of_two_dates_equal_numpy(two_dates):
    prepared, x = _arrays(two_dates)
    got = features.difference_of_means(prepared, "test", ["s1", "s2"])[:11]
    expected = np.concatenate([abs(x[f"{m}@2"].mean((1, 2)) - x[m].mean((1, 2))) for m in ("s1", "s2")], axis=1)
    assert np.allclose(got, expected, atol=1e-4)
    length = np.sqrt(sum(((x[f"{m}@2"] - x[m]) ** 2).sum(-1) for m in ("s1", "s2")))
    got = features.change_vector(prepared, "test", ["s1", "s2"])[:11]
    assert np.allclose(got, np.stack([length.mean((1, 2)), length.std((1, 2)), length.max((1, 2))], 1), atol=1e-3)
    got = features.band_statistics(prepared, "test", ["s1"], acquisitions=2)[:11]
    planes = [x["s1"], x["s1@2"], abs(x["s1@2"] - x["s1"]), x["s1"] * x["s1@2"]]
    assert np.allclose(got, np.concatenate([f((1, 2)) for p in planes for f in (p.mean, p.std)], 1), atol=1e-3)


def test_scores_of_folds_are_joined_and_equal_scikit_learn(workdir, two_dates):
    opened = open_evaluation(workdir, two_dates, [])
    (labels,) = [t for t in opened.labels if t.name == "change"]
    scores, truth = [], []
    (row,) = rows.select(
        rows.read(os.path.join(workdir, rows.FILE_NAME)),
        method="change_vector", task="change", label="1", metric="macro_map", level=rows.MEAN,
    )  # fmt: skip
    every = lambda split: features.change_vector(opened.prepared, split, ["s1", "s2"])  # noqa: E731
    for division in opened.divisions(labels):
        select = division.select(every, opened.prepared.contract)
        train, test = features.standardize(select("train"), select("test"))
        y = division.labels.targets["train"][:, 0]
        model = LogisticRegression(C=1 / (len(y) * 3e-4), tol=1e-7, max_iter=5000).fit(train, y)
        scores.append(model.decision_function(test))
        truth.append(division.labels.targets["test"][:, 0])
    reference = average_precision_score(np.concatenate(truth), np.concatenate(scores))
    assert row.value == pytest.approx(reference, abs=0.01)
    assert row.value > 0.95  # the square that changes is far brighter
    assert row.score_split == "folds"
    assert "3 folds of whole scenes" in row.protocol


def test_every_evaluator_finds_the_change(workdir):
    found = rows.select(rows.read(os.path.join(workdir, rows.FILE_NAME)), label="1", level=rows.MEAN, class_name="")
    best = {(r.method, r.task, r.evaluator): r.value for r in found if r.metric in ("macro_map", "r2")}
    probes = {("fusionx", "change", e) for e in ("linear_probe", "linear_probe_apart")}
    floors = {(b, "change", "linear_probe") for b in ("band_statistics", "difference_of_means", "change_vector")}
    shares = {(m, "change_pixel", "ridge_cover") for m in ("fusionx", "band_statistics")}
    assert set(best) == probes | floors | shares
    assert min(best[k] for k in floors) > 0.9


def test_cells_of_folds_are_kept(workdir, two_dates, monkeypatch):
    monkeypatch.setattr("fusionx_jax.evaluate.measure._score", lambda *_: pytest.fail("measured again"))
    measure.measure(open_evaluation(workdir, two_dates, []))


def test_selection_on_a_validation_split_is_refused_with_folds(workdir, two_dates):
    name = "linear_probe_validation"
    with pytest.raises(InputError, match=f"'{name}' selects hyperparameters on the val split, and evaluate.folds is 3"):
        measure.measure(open_evaluation(workdir, two_dates, [f"--config.evaluate.evaluators=('{name}',)"]))


def test_fine_tuning_selects_inside_the_labels_of_each_fold(workdir, two_dates):
    quick = ("num_steps=4", "min_steps=4", "eval_every=2", "seeds=1", "tasks=('change',)", "learning_rates=(1e-3,)")
    overrides = [
        "--config.evaluate.evaluators=('finetune',)", "--config.evaluate.modalities=('s1+s2',)",
        "--config.evaluate.baselines=()", "--config.label_fractions=(1.0,)",
        *(f"--config.evaluate.finetune.{k}" for k in quick),
    ]  # fmt: skip
    measure.evaluate(open_evaluation(workdir, two_dates, overrides))
    found = rows.read(os.path.join(workdir, rows.FILE_NAME))
    (row,) = rows.select(found, metric="macro_map", level=rows.MEAN, evaluator="finetune")
    assert row.value > 0.9  # as the probe that it starts from
    assert row.score_split == "folds"
    assert "selected on 20% of the labels" in row.protocol


def test_a_head_learns_changed_pixels_from_both_dates(two_dates):
    prepared = store.PreparedSet(two_dates)
    encoder = dataclasses.replace(toy.encoder(prepared), acquisitions=2)
    reader = DeviceReader(prepared, [*features.images(("s1", "s2"), 2), "label_pixel"])
    settings = segmentation.Settings(16, 120, 5e-3, 1e-2)
    trainer = segmentation.HeadTrainer(encoder, reader, "label_pixel", 2, settings, head="linear")
    confusion = trainer.confusion(trainer.train(np.arange(48), 0, toy.Count()), "test").sum(0)
    assert confusion[1, 1] / confusion[1].sum() > 0.7
    assert confusion[0, 0] / confusion[0].sum() > 0.9

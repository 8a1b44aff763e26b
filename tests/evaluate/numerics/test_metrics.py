import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from fusionx_jax.evaluate.numerics import bootstrap, metrics
from tests.helpers import run_script


def _case(seed, n=60, k=4, ties=False):
    rng = np.random.default_rng(seed)
    truth = rng.random((n, k)) < np.array([0.5, 0.3, 0.15, 0.7])[:k]
    truth[0], truth[1] = True, False
    scores = truth * 0.8 + rng.normal(size=(n, k))
    return (np.round(scores) if ties else scores), truth, rng


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_multi_label_metrics_equal_scikit_learn(seed, ties):
    scores, truth, _ = _case(seed, ties=ties)
    out = metrics.multi_label(scores, truth, np.ones((len(scores), 1), int))
    assert out["macro_map"][0] == pytest.approx(sk.average_precision_score(truth, scores, average="macro"))
    assert out["micro_map"][0] == pytest.approx(sk.average_precision_score(truth, scores, average="micro"))
    assert out["macro_f1"][0] == pytest.approx(sk.f1_score(truth, scores > 0, average="macro", zero_division=0))
    assert out["micro_f1"][0] == pytest.approx(sk.f1_score(truth, scores > 0, average="micro", zero_division=0))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_single_label_metrics_equal_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    truth = np.append(np.arange(4), rng.integers(0, 4, 50))
    scores = np.eye(4)[truth] + rng.normal(size=(54, 4))
    out = metrics.single_label(scores, truth, np.ones((54, 1), int))
    assert out["top1"][0] == pytest.approx(sk.accuracy_score(truth, scores.argmax(1)))
    assert out["balanced_accuracy"][0] == pytest.approx(sk.balanced_accuracy_score(truth, scores.argmax(1)))
    assert out["macro_f1"][0] == pytest.approx(sk.f1_score(truth, scores.argmax(1), average="macro", zero_division=0))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("resamples", "largest"), [(3, 1), (600, 1), (3, 1000)])  # 600: split over threads
def test_resamples_equal_scikit_learn_with_sample_weights(ties, resamples, largest):
    scores, truth, rng = _case(0, n=80, ties=ties)
    weights = bootstrap.resample_weights(80, resamples, seed=0).astype(int)
    weights *= rng.integers(1, largest + 1, weights.shape)  # above 255: 16 bits
    by_class = metrics.per_class_ap(scores, truth, weights)
    found = metrics.multi_label(scores, truth, weights)
    for column in (0, 1, resamples // 2, resamples):
        expected = functools.partial(sk.average_precision_score, truth, scores, sample_weight=weights[:, column])
        assert np.allclose(by_class[column], expected(average=None), rtol=1e-12)
        assert found["macro_map"][column] == pytest.approx(expected(), rel=1e-12)
        assert found["micro_map"][column] == pytest.approx(expected(average="micro"), rel=1e-12)
        f1 = functools.partial(sk.f1_score, truth, scores > 0, sample_weight=weights[:, column], zero_division=0)
        assert found["macro_f1"][column] == pytest.approx(f1(average="macro"), rel=1e-12)
        assert found["micro_f1"][column] == pytest.approx(f1(average="micro"), rel=1e-12)
    again = metrics.multi_label(scores, truth, weights, by_class)
    assert all(np.array_equal(found[name], again[name]) for name in metrics.MULTI)
    assert np.array_equal(metrics.average_precision(scores[:, 1], truth[:, 1], weights), by_class[:, 1])


def test_sums_under_weights_are_exact_over_several_blocks_of_examples():
    rng = np.random.default_rng(0)
    truth, scores = rng.integers(0, 3, 20_000), rng.normal(size=(20_000, 3))
    weights = rng.integers(0, 256, (20_000, 4)).astype(np.uint8)
    found = metrics.single_label(scores, truth, weights)
    for column in range(4):
        right = (scores.argmax(1) == truth) @ weights[:, column].astype(int)
        assert found["top1"][column] == right / weights[:, column].sum(dtype=int)


def test_the_compiler_is_imported_when_it_is_first_used():
    script = """
import sys
from fusionx_jax.evaluate.numerics import bootstrap, metrics
print("numba" in sys.modules)
"""
    assert run_script(script).stdout == "False\n"


def test_a_class_absent_from_the_test_split_is_left_out_of_macro_metrics():
    scores, truth, _ = _case(1)
    truth[:, 2] = False
    assert metrics.scored_classes(truth).tolist() == [True, True, False, True]
    out = metrics.multi_label(scores, truth, np.ones((60, 1), int))
    kept = [0, 1, 3]
    assert out["macro_map"][0] == pytest.approx(
        sk.average_precision_score(truth[:, kept], scores[:, kept], average="macro")
    )


def test_resamples_without_a_positive_of_a_class_say_nothing_of_it():
    truth = np.zeros((40, 2), bool)
    truth[:20, 0] = truth[0, 1] = True  # one tile alone has the second class
    scores = np.where(truth, 1.0, -1.0)  # a perfect classifier
    weights = bootstrap.resample_weights(40, 200, seed=0)
    found = metrics.multi_label(scores, truth, weights)
    assert np.isclose(found["macro_f1"], 1).all()
    assert np.isclose(found["macro_map"], 1).all()
    by_class = metrics.per_class_ap(scores, truth, weights)
    assert np.isnan(by_class[:, 1]).sum() > 30
    assert bootstrap.interval(by_class[:, 1][None], seed=0) == (1.0, 1.0, 1.0)


def test_segmentation_scores_equal_scikit_learn_under_weights():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, (6, 50))
    truth[:, :5] = 255  # unlabeled
    predicted = np.where(rng.random((6, 50)) < 0.6, truth, rng.integers(0, 4, (6, 50))) % 4
    tiles = np.stack([metrics.confusion(p, t, 4) for p, t in zip(predicted, truth)])
    weights = np.stack([np.ones(6, int), [2, 0, 1, 1, 2, 0]], axis=1)
    found = metrics.segmentation(tiles, weights)
    for column in range(2):
        p = np.repeat(predicted, weights[:, column], axis=0).ravel()
        t = np.repeat(truth, weights[:, column], axis=0).ravel()
        known = t < 4
        each = sk.jaccard_score(t[known], p[known], average=None, labels=range(4))
        assert found["miou"][column] == pytest.approx(each.mean())
        assert found["iou/2"][column] == pytest.approx(each[2])
        assert found["pixel_accuracy"][column] == pytest.approx(sk.accuracy_score(t[known], p[known]))


def test_regression_scores_equal_scikit_learn_and_pass_over_unknown_values():
    rng = np.random.default_rng(1)
    truth = rng.normal(5, 2, (40, 2))
    predicted = truth + rng.normal(0, 1, truth.shape)
    weights = np.stack([np.ones(40, int), rng.multinomial(40, np.full(40, 1 / 40))], axis=1)
    found = metrics.regression(predicted, truth, weights)
    for column in range(2):
        w = weights[:, column]
        assert found["r2"][column] == pytest.approx(sk.r2_score(truth, predicted, sample_weight=w))
        rmse = np.mean([np.sqrt(sk.mean_squared_error(truth[:, k], predicted[:, k], sample_weight=w)) for k in (0, 1)])
        assert found["rmse"][column] == pytest.approx(rmse)
    truth[3, 0] = np.nan
    assert np.isfinite(metrics.regression(predicted, truth, weights)["r2"]).all()

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from fusionx_jax.evaluate import metrics


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


def test_a_resample_equals_scikit_learn_on_the_drawn_examples():
    scores, truth, rng = _case(0)
    drawn = rng.integers(0, 60, 60)
    weights = np.bincount(drawn, minlength=60)[:, None]
    ours = metrics.per_class_ap(scores, truth, weights)[0]
    theirs = sk.average_precision_score(truth[drawn], scores[drawn], average=None)
    assert np.allclose(ours, theirs)


def test_a_class_absent_from_the_test_split_is_left_out_of_macro_metrics():
    scores, truth, _ = _case(1)
    truth[:, 2] = False
    assert metrics.scored_classes(truth).tolist() == [True, True, False, True]
    out = metrics.multi_label(scores, truth, np.ones((60, 1), int))
    kept = [0, 1, 3]
    assert out["macro_map"][0] == pytest.approx(
        sk.average_precision_score(truth[:, kept], scores[:, kept], average="macro")
    )


def test_bootstrap_interval_of_a_mean_covers_as_often_as_it_says():
    hits = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        right = rng.random(300) < 0.7
        weights = metrics.resample_weights(300, 300, seed=trial)
        accuracy = right @ weights / weights.sum(0)
        value, low, high = metrics.interval(accuracy[None], seed=0)
        assert value == pytest.approx(right.mean())
        hits += low <= 0.7 <= high
    assert 178 <= hits <= 200  # 95 % of 200, four binomial deviations


def test_intervals_widen_when_scenes_are_drawn_and_when_seeds_differ():
    rng = np.random.default_rng(0)
    scenes = np.repeat(np.arange(10), 30)
    right = (rng.random(10)[scenes] > 0.5).astype(float)  # all tiles of a scene alike
    by_tile = metrics.resample_weights(300, 400, 0)
    by_scene = metrics.resample_weights(300, 400, 0, groups=scenes)
    width = [np.ptp(metrics.interval((right @ w / w.sum(0))[None], 0)[1:]) for w in (by_tile, by_scene)]
    assert width[1] > 3 * width[0]
    one = rng.normal(0.7, 0.01, (1, 401))
    same, spread = np.repeat(one, 5, 0), np.repeat(one, 5, 0) + np.linspace(-0.1, 0.1, 5)[:, None]
    assert np.ptp(metrics.interval(spread, 0)[1:]) > 2 * np.ptp(metrics.interval(same, 0)[1:])


def test_resamples_without_a_positive_of_a_class_say_nothing_of_it():
    truth = np.zeros((40, 2), bool)
    truth[:20, 0] = truth[0, 1] = True  # one tile alone has the second class
    scores = np.where(truth, 1.0, -1.0)  # a perfect classifier
    weights = metrics.resample_weights(40, 200, seed=0)
    found = metrics.multi_label(scores, truth, weights)
    assert np.isclose(found["macro_f1"], 1).all()
    assert np.isclose(found["macro_map"], 1).all()
    by_class = metrics.per_class_ap(scores, truth, weights)
    assert np.isnan(by_class[:, 1]).sum() > 30
    assert metrics.interval(by_class[:, 1][None], seed=0) == (1.0, 1.0, 1.0)

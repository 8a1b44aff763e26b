import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from fusionx_jax.evaluate.numerics import metrics


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


@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_intervals_cover_pretraining_seeds_and_label_subsets(seeds):
    rng = np.random.default_rng(0)
    spread, noise = 0.03, 0.01
    covered = []
    for trial in range(300):
        pretrainings = 0.6 + rng.normal(0, spread, (seeds, 1, 1))
        tiles = np.append(rng.normal(0, noise), rng.normal(0, noise, 200))  # the sample's own luck, then resamples'
        tiles[1:] += tiles[0]
        values = pretrainings + rng.normal(0, noise, (seeds, 5, 1)) + tiles
        _, low, high = metrics.percentiles(metrics.resampled_means(values, seed=trial))
        covered.append(low <= 0.6 <= high)
    assert np.mean(covered) > 0.91  # 95 % less three binomial deviations; with two seeds it is nearly always


def test_intervals_of_average_precision_lie_about_its_value():
    """Examples drawn twice raise it in every resample: plain percentiles would lie above."""
    offsets = []
    for trial in range(30):
        rng = np.random.default_rng(trial)
        truth = rng.random(200) < 0.15
        scores = rng.normal(0, 1, 200) + truth
        weights = metrics.resample_weights(200, 200, seed=1000 + trial)
        resampled = metrics.average_precision(scores, truth, weights)
        value, low, high = metrics.interval(resampled[None], seed=0)
        assert value == pytest.approx(sk.average_precision_score(truth, scores))
        offsets.append((resampled[1:].mean() - value) / (high - low))
        assert abs(np.mean([low, high]) - value) < 0.2 * (high - low)
    assert np.mean(offsets) > 0.03  # so there is something to correct


def test_paired_differences_are_narrower_than_two_intervals():
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 0.05, (1, 4, 301))
    a, b = 0.60 + shared, 0.58 + shared
    means = [metrics.resampled_means(x, seed=0) for x in (a, b)]
    value, low, high = metrics.percentiles(means[0] - means[1])
    assert (value, low, high) == pytest.approx((0.02, 0.02, 0.02))


def test_labels_needed_lie_where_the_curve_crosses():
    counts = [10, 100, 1000]
    curve = np.array([[0.2, 0.6, 0.1], [0.4, 0.7, 0.2], [0.6, 0.8, 0.3]])
    found = metrics.labels_needed(counts, curve, np.array([0.5, 0.5, 0.5]))
    assert found[0] == pytest.approx(10**2.5)
    assert found[1] == 10
    assert found[2] == np.inf

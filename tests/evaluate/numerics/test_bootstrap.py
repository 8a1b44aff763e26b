import numpy as np
import pytest
from sklearn import metrics as sk

from fusionx_jax.evaluate.numerics import bootstrap, metrics


def test_bootstrap_interval_of_a_mean_covers_as_often_as_it_says():
    hits = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        right = rng.random(300) < 0.7
        weights = bootstrap.resample_weights(300, 300, seed=trial)
        accuracy = right @ weights.astype(float) / 300
        value, low, high = bootstrap.interval(accuracy[None], seed=0)
        assert value == pytest.approx(right.mean())
        hits += low <= 0.7 <= high
    assert 178 <= hits <= 200  # 95 % of 200, four binomial deviations


def test_intervals_widen_when_scenes_are_drawn_and_when_seeds_differ():
    rng = np.random.default_rng(0)
    scenes = np.repeat(np.arange(10), 30)
    right = (rng.random(10)[scenes] > 0.5).astype(float)  # all tiles of a scene alike
    by_tile = bootstrap.resample_weights(300, 400, 0)
    by_scene = bootstrap.resample_weights(300, 400, 0, groups=scenes)
    width = [np.ptp(bootstrap.interval((right @ w / w.sum(0))[None], 0)[1:]) for w in (by_tile, by_scene)]
    assert width[1] > 3 * width[0]
    one = rng.normal(0.7, 0.01, (1, 401))
    same, spread = np.repeat(one, 5, 0), np.repeat(one, 5, 0) + np.linspace(-0.1, 0.1, 5)[:, None]
    assert np.ptp(bootstrap.interval(spread, 0)[1:]) > 2 * np.ptp(bootstrap.interval(same, 0)[1:])


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
        _, low, high = bootstrap.percentiles(bootstrap.resampled_means(values, seed=trial))
        covered.append(low <= 0.6 <= high)
    assert np.mean(covered) > 0.91  # 95 % less three binomial deviations; with two seeds it is nearly always


def test_intervals_of_average_precision_lie_about_its_value():
    """Examples drawn twice raise it in every resample: plain percentiles would lie above."""
    offsets = []
    for trial in range(30):
        rng = np.random.default_rng(trial)
        truth = rng.random(200) < 0.15
        scores = rng.normal(0, 1, 200) + truth
        weights = bootstrap.resample_weights(200, 200, seed=1000 + trial)
        resampled = metrics.average_precision(scores, truth, weights)
        value, low, high = bootstrap.interval(resampled[None], seed=0)
        assert value == pytest.approx(sk.average_precision_score(truth, scores))
        offsets.append((resampled[1:].mean() - value) / (high - low))
        assert abs(np.mean([low, high]) - value) < 0.2 * (high - low)
    assert np.mean(offsets) > 0.03  # so there is something to correct


def test_paired_differences_are_narrower_than_two_intervals():
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 0.05, (1, 4, 301))
    a, b = 0.60 + shared, 0.58 + shared
    means = [bootstrap.resampled_means(x, seed=0) for x in (a, b)]
    value, low, high = bootstrap.percentiles(means[0] - means[1])
    assert (value, low, high) == pytest.approx((0.02, 0.02, 0.02))


def test_labels_needed_lie_where_the_curve_crosses():
    counts = [10, 100, 1000]
    curve = np.array([[0.2, 0.6, 0.1], [0.4, 0.7, 0.2], [0.6, 0.8, 0.3]])
    found = bootstrap.labels_needed(counts, curve, np.array([0.5, 0.5, 0.5]))
    assert found[0] == pytest.approx(10**2.5)
    assert found[1] == 10
    assert found[2] == np.inf


def test_resamples_draw_as_many_examples_and_whole_scenes():
    scenes = np.repeat(["a", "b", "c"], [5, 20, 15])
    for groups in (None, scenes):
        weights = bootstrap.resample_weights(40, 130, seed=3, groups=groups)
        assert weights.shape == (40, 131)
        assert (weights[:, 0] == 1).all()
        units = weights if groups is None else weights[[0, 5, 25]]
        assert (units.sum(0) == len(units)).all()
    assert all((weights[scenes == s] == weights[scenes == s][:1]).all() for s in "abc")
    # As drawn one after another: what was measured before can be compared.
    rng = np.random.default_rng(3)
    assert all(
        (rng.multinomial(40, np.full(40, 1 / 40)) == w).all() for w in bootstrap.resample_weights(40, 9, 3).T[1:]
    )

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from fusionx_jax.evaluate.numerics import significance


def test_the_p_value_of_bootstrap_means_is_that_of_a_t_test():
    """Of many examples, whose mean is normal."""
    rng = np.random.default_rng(0)
    for mean in (0.0, 0.05, 0.1):
        sample = rng.normal(mean, 1, 2000)
        resampled = rng.choice(sample, (4000, len(sample))).mean(1)
        ours = significance.p_value(np.concatenate([[sample.mean()], resampled]))
        assert ours == pytest.approx(ttest_1samp(sample, 0).pvalue, rel=0.25, abs=1e-4)


def test_without_variation_there_is_no_p_value():
    assert np.isnan(significance.p_value(np.array([0.3, 0.3, 0.3])))
    assert np.isnan(significance.p_value(np.array([0.3])))


def test_holm_multiplies_by_the_tests_that_remain_and_never_descends():
    """The example of Holm's procedure worked by hand: 0.01 * 4, 0.02 * 3, max(0.03 * 2, before), 0.04 * 1."""
    np.testing.assert_allclose(significance.holm([0.04, 0.01, 0.03, 0.02]), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(significance.holm([0.5, 0.9]), [1.0, 1.0])
    np.testing.assert_allclose(significance.holm([0.01, np.nan, 0.03]), [0.02, np.nan, 0.03])
    assert significance.holm([]).shape == (0,)


def test_holm_keeps_the_family_wise_error():
    rng = np.random.default_rng(1)
    rejected = [significance.holm(rng.random(20).tolist()).min() < 0.05 for _ in range(2000)]
    assert np.mean(rejected) < 0.065

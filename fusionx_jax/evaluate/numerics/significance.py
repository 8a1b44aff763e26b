"""Significance of differences: p-values of bootstrap resamples, and their correction where many are tested."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def p_value(resampled: Float[np.ndarray, "resamples_and_one"]) -> float:
    """Two-sided p-value of a difference being zero, from its value and its bootstrap resamples, which follow it.

    Normal approximation with the deviation of the resamples (Efron and Tibshirani, "An Introduction to the Bootstrap",
    1993, chapter 12): shares of a thousand resamples are too coarse to be corrected for dozens of tests. Not a number
    where there are fewer than two resamples, or they do not vary.
    """
    from scipy.stats import norm

    value, resamples = resampled[0], resampled[1:]
    deviation = resamples.std(ddof=1) if len(resamples) > 1 else 0.0
    return float(2 * norm.sf(abs(value) / deviation)) if deviation > 0 else float("nan")


def holm(p_values: Sequence[float]) -> Float[np.ndarray, "tests"]:
    """Holm's step-down correction ("A simple sequentially rejective multiple test procedure", 1979).

    Below 0.05, differences are apart from zero with a family-wise error of 5 %. Values that are not numbers are no
    tests and stay so.
    """
    p = np.asarray(p_values, np.float64)
    out = np.full(len(p), np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    remaining = len(order) - np.arange(len(order))
    out[order] = np.minimum(np.maximum.accumulate(remaining * p[order]), 1.0)
    return out

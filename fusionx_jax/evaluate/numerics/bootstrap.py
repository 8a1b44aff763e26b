"""Bootstrap resamples of test examples, pretraining seeds and label subsets, and the intervals made from them.

Percentile intervals after Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13, centered on the
sample's value and widened for few seeds (see `percentiles` and `_widening`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.special
from jaxtyping import Float, Shaped, UInt

_BLOCK = 64  # resamples drawn before they are transposed together


class Interval(NamedTuple):
    """A value and the ends of its interval."""

    value: float
    low: float
    high: float


def resample_weights(
    count: int, resamples: int, seed: int, groups: Shaped[np.ndarray, "examples"] | None = None
) -> UInt[np.ndarray, "examples columns"]:
    """How often each test example is drawn: column 0 is the sample itself, the others are bootstrap draws.

    With `groups` (scene names) whole groups are drawn, since tiles of one scene are not independent. The numbers are
    8 bits wide where they fit (16 otherwise): convert them before adding them up.
    """
    rng = np.random.default_rng(seed)
    if groups is None:
        units, member = count, None
    else:
        names, member = np.unique(groups, return_inverse=True)
        units = len(names)
    share = np.full(units, 1 / units)
    out = np.ones((count, resamples + 1), np.uint8)
    for first in range(1, resamples + 1, _BLOCK):
        size = min(_BLOCK, resamples + 1 - first)
        drawn = np.stack([rng.multinomial(units, share) for _ in range(size)])
        if drawn.max() > np.iinfo(out.dtype).max:
            out = out.astype(np.uint16)
        out[:, first : first + size] = (drawn if member is None else drawn[:, member]).T
    return out


def resampled_means(
    values: Float[np.ndarray, "pretrainings subsets resamples"], seed: int
) -> Float[np.ndarray, "resamples"]:
    """Means over pretraining seeds and label subsets: of the sample itself (column 0) and of bootstrap resamples.

    In each resample the test examples (columns) are drawn, and with them the pretraining seeds and the label subsets,
    crossed. The draws depend on their numbers and `seed` alone, so the difference of two methods' means is paired.
    Intervals from a handful of seeds would be too narrow: what drawn seeds and subsets add is widened, see `_widening`.
    """
    pretrainings, subsets, columns = values.shape
    draws = columns - 1
    first = np.random.default_rng([seed, 0, pretrainings]).integers(0, pretrainings, (draws, pretrainings))
    second = np.random.default_rng([seed, 1, subsets]).integers(0, subsets, (draws, subsets))
    column = np.arange(1, columns)
    mean = values.mean((0, 1))  # NaN where a resample of the tiles has no value
    by_pretraining = values.mean(1)[first.T, column].mean(0) - mean[1:]
    by_subset = values.mean(0)[second.T, column].mean(0) - mean[1:]
    together = values[first[:, :, None], second[:, None, :], column[:, None, None]].mean((1, 2)) - mean[1:]
    wider, wider_subsets = _widening(pretrainings), _widening(subsets)
    interaction = together - by_pretraining - by_subset
    drawn = mean[1:] + wider * by_pretraining + wider_subsets * by_subset + wider * wider_subsets * interaction
    return np.concatenate([mean[:1], drawn])


def _widening(count: int, level: float = 0.95) -> float:
    """The factor that widens the deviations of `count` units drawn with replacement.

    Bootstrapped variances are too small by (count - 1) / count, and Student's t is wider than the normal distribution.
    This is the expanded percentile interval (Hesterberg, "What teachers should know about the bootstrap", arXiv
    1411.5279), here for seeds and label subsets alone: test examples are many.
    """
    if count < 2:
        return 1.0  # one unit does not vary
    upper = 0.5 * (1 + level)
    return float(np.sqrt(count / (count - 1)) * scipy.special.stdtrit(count - 1, upper) / scipy.special.ndtri(upper))


def percentiles(means: Float[np.ndarray, "resamples"], level: float = 0.95) -> Interval:
    """The sample's value (column 0) and the percentile interval of the resamples; NaN ends where all of them are NaN.

    Resamples contain duplicates, which raises average precision in all of them. Their distribution is therefore
    shifted to have the sample's value as its mean.
    """
    known = means[1:][np.isfinite(means[1:])]
    if not len(known):
        return Interval(float(means[0]), float("nan"), float("nan"))
    low, high = np.percentile(known - known.mean() + means[0], [50 * (1 - level), 50 * (1 + level)])
    return Interval(float(means[0]), float(low), float(high))


def interval(by_seed: Float[np.ndarray, "seeds resamples"], seed: int, level: float = 0.95) -> Interval:
    """Mean over seeds and its percentile interval, from resamples of test examples (columns) and of seeds (rows)."""
    return percentiles(resampled_means(by_seed[None], seed), level)


def labels_needed(
    counts: Sequence[float | int],
    curve: Float[np.ndarray, "labels resamples"],
    target: Float[np.ndarray, "resamples"],
) -> Float[np.ndarray, "resamples"]:
    """The number of labels at which a curve first reaches a target, linear between points in the logarithm of labels.

    `counts` ascends. Infinite where the target is never reached; the smallest count where the first point reaches it.
    """
    x = np.log(np.asarray(counts, np.float64))
    out = np.full(curve.shape[1], np.inf)
    for r in range(curve.shape[1]):
        reached = np.flatnonzero(curve[:, r] >= target[r])
        if not len(reached):
            continue
        i = reached[0]
        if i == 0:
            out[r] = counts[0]
            continue
        share = (target[r] - curve[i - 1, r]) / (curve[i, r] - curve[i - 1, r])
        out[r] = np.exp(x[i - 1] + share * (x[i] - x[i - 1]))
    return out

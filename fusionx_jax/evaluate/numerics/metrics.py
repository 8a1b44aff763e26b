"""Metrics with bootstrap intervals. Whole split at once, never averaged over batches.

Definitions are scikit-learn's (`average_precision_score`, `f1_score`, `balanced_accuracy_score`), to which the tests
compare; they are written here in the weighted, vectorized form that makes hundreds of resamples affordable.
"""

from collections.abc import Sequence

import numpy as np
import scipy.special
from jaxtyping import Bool, Float, Int, Integer

MULTI = ("macro_map", "micro_map", "macro_f1", "micro_f1")
SINGLE = ("top1", "balanced_accuracy", "macro_f1")
RANGES = {"r2": (-np.inf, 1.0), "rmse": (0.0, np.inf)}  # all others lie between 0 and 1
_AT_ONCE = 1 << 18  # numbers that sums over resamples hold at a time


def average_precision(
    scores: Float[np.ndarray, "examples"],
    truth: Bool[np.ndarray, "examples"],
    weights: Int[np.ndarray, "examples resamples"],
) -> Float[np.ndarray, "resamples"]:
    """Average precision of one ranking under each column of example weights; NaN where one holds no positive.

    Ties share one threshold, as in scikit-learn.
    """
    return _average_precision(scores, truth, np.ascontiguousarray(weights.T), np.arange(len(scores)))


def _average_precision(scores: np.ndarray, truth: np.ndarray, draws: np.ndarray, member: np.ndarray) -> np.ndarray:
    """As `average_precision`, with a row of `draws` a resample; example i weighs what its column member[i] says.

    Sums run along rows, a few resamples at a time, so that they stay in a core's cache: five times as fast as along
    columns for the micro average, whose ranking holds every tile once a class.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, positive = scores[order], np.flatnonzero(truth[order])
    # Recall rises at positives only: precision is needed there, at the end of each one's tie.
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    at = ends[np.searchsorted(ends, positive)]
    last = np.searchsorted(positive, at, side="right") - 1
    ranked_member = member[order]
    out, rows = np.empty(len(draws)), max(1, _AT_ONCE // max(1, len(order)))
    for first in range(0, len(draws), rows):
        some = draws[first : first + rows]
        seen = np.cumsum(some.take(ranked_member, axis=1), axis=1, dtype=np.int32).take(at, axis=1)
        gained = some.take(ranked_member[positive], axis=1)
        hits = np.cumsum(gained, axis=1, dtype=np.int32).take(last, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = hits / np.maximum(seen, 1)
            out[first : first + rows] = (precision * gained).sum(1) / gained.sum(1)
    return out


def resample_weights(
    count: int, resamples: int, seed: int, groups: np.ndarray | None = None
) -> Int[np.ndarray, "examples resamples"]:
    """How often each test example is drawn: column 0 is the sample itself, the others bootstrap draws.

    With `groups` (scene names) whole groups are drawn, since tiles of one scene are not independent.
    """
    rng = np.random.default_rng(seed)
    rows = [np.ones(count, np.int16)]
    if groups is None:
        rows += [rng.multinomial(count, np.full(count, 1 / count)).astype(np.int16) for _ in range(resamples)]
    else:
        names, member = np.unique(groups, return_inverse=True)
        for _ in range(resamples):
            drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)))
            rows.append(drawn[member].astype(np.int16))
    return np.ascontiguousarray(np.stack(rows, axis=1))


def scored_classes(truth: Bool[np.ndarray, "examples classes"]) -> Bool[np.ndarray, "classes"]:
    """Classes with at least one positive and one negative in the test split; the others have no macro score."""
    positives = truth.sum(0)
    return (positives > 0) & (positives < len(truth))


def multi_label(
    scores: Float[np.ndarray, "examples classes"],
    truth: Bool[np.ndarray, "examples classes"],
    weights: Int[np.ndarray, "examples resamples"],
    by_class: Float[np.ndarray, "resamples classes"] | None = None,
) -> dict[str, Float[np.ndarray, "resamples"]]:
    """Macro and micro average precision and F1 (threshold: probability one half, score zero) by resample.

    `by_class` is `per_class_ap` of the same arguments, where it is known already.
    """
    kept = scored_classes(truth)
    per_class = (per_class_ap(scores, truth, weights) if by_class is None else by_class)[:, kept]
    macro = _mean_of_known(per_class)
    tile = np.repeat(np.arange(len(truth)), truth.shape[1])
    micro = _average_precision(scores.reshape(-1), truth.reshape(-1), np.ascontiguousarray(weights.T), tile)
    predicted = scores > 0
    real = weights.T.astype(np.float64)  # BLAS multiplies floats only
    hit = real @ (predicted & truth)
    wrong = real @ (predicted ^ truth)
    positives = real @ truth
    with np.errstate(invalid="ignore", divide="ignore"):
        # A resample without a positive of a class says nothing of it, as in average precision.
        f1 = np.where(positives > 0, 2 * hit / (2 * hit + wrong), np.nan)
        micro_f1 = 2 * hit.sum(1) / (2 * hit.sum(1) + wrong.sum(1))
    return {
        "macro_map": macro,
        "micro_map": micro,
        "macro_f1": _mean_of_known(f1[:, kept]),
        "micro_f1": np.nan_to_num(micro_f1),
    }


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean of each row's finite entries; NaN for a row without any."""
    known = np.isfinite(values)
    count = known.sum(1)
    return np.where(count, np.where(known, values, 0.0).sum(1) / np.maximum(count, 1), np.nan)


def per_class_ap(
    scores: Float[np.ndarray, "examples classes"],
    truth: Bool[np.ndarray, "examples classes"],
    weights: Int[np.ndarray, "examples resamples"],
) -> Float[np.ndarray, "resamples classes"]:
    """Average precision of each class by resample."""
    draws, all_tiles = np.ascontiguousarray(weights.T), np.arange(len(truth))
    columns = range(truth.shape[1])
    return np.stack([_average_precision(scores[:, k], truth[:, k], draws, all_tiles) for k in columns], axis=1)


def single_label(
    scores: Float[np.ndarray, "examples classes"],
    truth: Int[np.ndarray, "examples"],
    weights: Int[np.ndarray, "examples resamples"],
) -> dict[str, Float[np.ndarray, "resamples"]]:
    """Top-1 accuracy, balanced accuracy (mean recall of the classes in the test split) and macro F1 by resample."""
    predicted = scores.argmax(1)
    classes = scores.shape[1]
    is_true = np.eye(classes)[truth]
    is_predicted = np.eye(classes)[predicted]
    weights = weights.T.astype(np.float64)  # BLAS multiplies floats only
    hits = weights @ (is_true * is_predicted)
    actual, claimed = weights @ is_true, weights @ is_predicted
    kept = is_true.any(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.where(actual > 0, hits / actual, np.nan)[:, kept]
        f1 = np.where(actual > 0, 2 * hits / (actual + claimed), np.nan)[:, kept]
    balanced, macro_f1 = _mean_of_known(recall), _mean_of_known(f1)
    return {"top1": hits.sum(1) / weights.sum(1), "balanced_accuracy": balanced, "macro_f1": macro_f1}


def confusion(
    predicted: Integer[np.ndarray, "*examples"], truth: Integer[np.ndarray, "*examples"], classes: int
) -> Int[np.ndarray, "classes classes"]:
    """How often each true class (row) was called each class (column); examples of other classes are passed over."""
    kept = truth < classes
    places = truth[kept].astype(np.int64) * classes + predicted[kept]
    return np.bincount(places, minlength=classes**2).reshape(classes, classes)


def segmentation(
    by_tile: Int[np.ndarray, "examples classes classes"], weights: Int[np.ndarray, "examples resamples"]
) -> dict[str, Float[np.ndarray, "resamples"]]:
    """Intersection over union of each class, their mean and pixel accuracy, from each tile's confusion counts.

    Pixels of all tiles are counted together (Jaccard index as in scikit-learn's `jaccard_score`); the mean is over
    classes that the test split holds.
    """
    classes = by_tile.shape[1]
    counts = (weights.T.astype(np.float64) @ by_tile.reshape(len(by_tile), -1)).reshape(-1, classes, classes)
    hit = np.diagonal(counts, axis1=1, axis2=2)
    actual, claimed = counts.sum(2), counts.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = np.where(actual > 0, hit / (actual + claimed - hit), np.nan)
    kept = by_tile.sum((0, 2)) > 0
    accuracy = hit.sum(1) / np.maximum(counts.sum((1, 2)), 1)
    return {"miou": _mean_of_known(iou[:, kept]), "pixel_accuracy": accuracy} | {
        f"iou/{k}": iou[:, k] for k in range(classes)
    }


def regression(
    predicted: Float[np.ndarray, "examples values"],
    truth: Float[np.ndarray, "examples values"],
    weights: Int[np.ndarray, "examples resamples"],
) -> dict[str, Float[np.ndarray, "resamples"]]:
    """Coefficient of determination and root mean squared error, means over the values; unknown (NaN) ones left out."""
    r2, rmse = [], []
    for k in range(truth.shape[1]):
        known = np.isfinite(truth[:, k])
        w = weights[known].T.astype(np.float64)
        y, total = truth[known, k], w.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            error = w @ (predicted[known, k] - y) ** 2
            spread = w @ y**2 - (w @ y) ** 2 / total
            r2.append(np.where(spread > 1e-12 * total, 1 - error / spread, np.nan))
            rmse.append(np.sqrt(error / total))
    return {"r2": _mean_of_known(np.stack(r2, 1)), "rmse": _mean_of_known(np.stack(rmse, 1))}


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
    own, other = _widening(pretrainings), _widening(subsets)
    both = together - by_pretraining - by_subset  # what neither explains alone
    drawn = mean[1:] + own * by_pretraining + other * by_subset + own * other * both
    return np.concatenate([mean[:1], drawn])


def _widening(count: int, level: float = 0.95) -> float:
    """By how much the deviations of `count` units drawn with replacement are widened: bootstrapped variances are
    (count - 1) / count too small, and Student's t is wider than the normal distribution. This is the expanded
    percentile interval (Hesterberg, "What teachers should know about the bootstrap", arXiv 1411.5279), here for seeds
    and label subsets alone: of test examples there are enough."""
    if count < 2:
        return 1.0  # one unit does not vary
    upper = 0.5 * (1 + level)
    return float(np.sqrt(count / (count - 1)) * scipy.special.stdtrit(count - 1, upper) / scipy.special.ndtri(upper))


def percentiles(means: Float[np.ndarray, "resamples"], level: float = 0.95) -> tuple[float, float, float]:
    """The sample's own value (column 0) and the percentile interval of the others; NaN where there are none.

    Resamples hold examples twice, which makes average precision larger in all of them: their distribution is moved to
    have the sample's value as its mean.
    """
    known = means[1:][np.isfinite(means[1:])]
    if not len(known):
        return float(means[0]), float("nan"), float("nan")
    low, high = np.percentile(known - known.mean() + means[0], [50 * (1 - level), 50 * (1 + level)])
    return float(means[0]), float(low), float(high)


def interval(
    by_seed: Float[np.ndarray, "seeds resamples"], seed: int, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean over seeds and its percentile interval, from resamples of test examples (columns) and of seeds (rows)."""
    return percentiles(resampled_means(by_seed[None], seed), level)


def labels_needed(
    counts: Sequence[float | int],
    curve: Float[np.ndarray, "labels resamples"],
    target: Float[np.ndarray, "resamples"],
) -> Float[np.ndarray, "resamples"]:
    """The number of labels with which a curve first reaches a target, between points linear in the logarithm of labels.

    `counts` rises. Infinite where the target is never reached; the smallest count where the first point has it.
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

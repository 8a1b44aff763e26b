"""Metrics of a whole test split, under many example weights (bootstrap resamples) at once.

Definitions are scikit-learn's (`average_precision_score`, `f1_score`, `balanced_accuracy_score`, `jaccard_score`,
`r2_score`), to which the tests compare. Each function returns an array by resample for every metric. `weights` holds
how often each test example counts in each resample, see `bootstrap.resample_weights`.
"""

import functools

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Shaped

from fusionx_jax.evaluate.numerics import ranking

# Their place is bootstrap.py; callers that still name them here are being moved.
from fusionx_jax.evaluate.numerics.bootstrap import (  # noqa: F401
    interval,
    labels_needed,
    percentiles,
    resample_weights,
    resampled_means,
)

MULTI = ("macro_map", "micro_map", "macro_f1", "micro_f1")
SINGLE = ("top1", "balanced_accuracy", "macro_f1")
RANGES = {"r2": (-np.inf, 1.0), "rmse": (0.0, np.inf)}  # all others lie between 0 and 1
_ROWS = 8192  # examples whose weights are converted to floats at a time; 8192 * 255 is exact in float32


def average_precision(
    scores: Float[np.ndarray, "examples"],
    truth: Bool[np.ndarray, "examples"],
    weights: Integer[np.ndarray, "examples resamples"],
) -> Float[np.ndarray, "resamples"]:
    """Average precision of one ranking by resample; NaN where a resample holds no positive.

    Equal scores share one threshold, as in scikit-learn.
    """
    return ranking.average_precisions([functools.partial(ranking.rank, scores, truth)], weights)[0]


def scored_classes(truth: Bool[np.ndarray, "examples classes"]) -> Bool[np.ndarray, "classes"]:
    """Classes with at least one positive and one negative in the test split; the others have no macro score."""
    positives = truth.sum(0)
    return (positives > 0) & (positives < len(truth))


def per_class_ap(
    scores: Float[np.ndarray, "examples classes"],
    truth: Bool[np.ndarray, "examples classes"],
    weights: Integer[np.ndarray, "examples resamples"],
) -> Float[np.ndarray, "resamples classes"]:
    """Average precision of each class by resample."""
    rankings = [functools.partial(ranking.rank, scores[:, k], truth[:, k]) for k in range(truth.shape[1])]
    return np.ascontiguousarray(ranking.average_precisions(rankings, weights).T)


def multi_label(
    scores: Float[np.ndarray, "examples classes"],
    truth: Bool[np.ndarray, "examples classes"],
    weights: Integer[np.ndarray, "examples resamples"],
    by_class: Float[np.ndarray, "resamples classes"] | None = None,
) -> dict[str, Float[np.ndarray, "resamples"]]:
    """Macro and micro average precision and F1 (threshold: probability one half, score zero) by resample.

    `by_class` is `per_class_ap` of the same arguments, where it is known already.
    """
    kept, classes = scored_classes(truth), truth.shape[1]
    weights = ranking.compact(weights)
    rankings = [functools.partial(ranking.rank, scores.reshape(-1), truth.reshape(-1), classes)]
    if by_class is None:
        rankings += [functools.partial(ranking.rank, scores[:, k], truth[:, k]) for k in range(classes)]
    micro, *rest = ranking.average_precisions(rankings, weights)
    per_class = np.stack(rest, axis=1) if by_class is None else by_class
    predicted = scores > 0
    sums = _weighted_sums(weights, np.concatenate([predicted & truth, predicted ^ truth, truth], axis=1))
    hit, wrong, positives = np.split(sums, 3, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        # F1 of a class is undefined in a resample without a positive of it, as average precision is.
        f1 = np.where(positives > 0, 2 * hit / (2 * hit + wrong), np.nan)
        micro_f1 = 2 * hit.sum(1) / (2 * hit.sum(1) + wrong.sum(1))
    return {
        "macro_map": _mean_of_known(per_class[:, kept]),
        "micro_map": micro,
        "macro_f1": _mean_of_known(f1[:, kept]),
        "micro_f1": np.nan_to_num(micro_f1),
    }


def _weighted_sums(
    weights: Integer[np.ndarray, "examples resamples"], columns: Shaped[np.ndarray, "examples columns"]
) -> Float[np.ndarray, "resamples columns"]:
    """weights.T @ columns in float64, converting a part of the weights at a time (BLAS multiplies floats alone).

    0/1 columns under 8-bit weights are multiplied in float32: twice as fast, and exact for `_ROWS` rows.
    """
    dtype = np.float32 if columns.dtype == bool and weights.dtype == np.uint8 else np.float64
    out = np.zeros((weights.shape[1], columns.shape[1]))
    for start in range(0, len(weights), _ROWS):
        rows = slice(start, start + _ROWS)
        out += weights[rows].astype(dtype).T @ columns[rows].astype(dtype)
    return out


def _mean_of_known(values: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "rows"]:
    """Mean of each row's finite entries; NaN for a row without any."""
    known = np.isfinite(values)
    count = known.sum(1)
    return np.where(count, np.where(known, values, 0.0).sum(1) / np.maximum(count, 1), np.nan)


def single_label(
    scores: Float[np.ndarray, "examples classes"],
    truth: Int[np.ndarray, "examples"],
    weights: Integer[np.ndarray, "examples resamples"],
) -> dict[str, Float[np.ndarray, "resamples"]]:
    """Top-1 accuracy, balanced accuracy (mean recall of the classes in the test split) and macro F1 by resample."""
    predicted, classes = scores.argmax(1), scores.shape[1]
    is_true = np.eye(classes, dtype=bool)[truth]
    is_predicted = np.eye(classes, dtype=bool)[predicted]
    sums = _weighted_sums(weights, np.concatenate([is_true & is_predicted, is_true, is_predicted], axis=1))
    hits, actual, claimed = np.split(sums, 3, axis=1)
    kept = is_true.any(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.where(actual > 0, hits / actual, np.nan)[:, kept]
        f1 = np.where(actual > 0, 2 * hits / (actual + claimed), np.nan)[:, kept]
    balanced, macro_f1 = _mean_of_known(recall), _mean_of_known(f1)
    return {"top1": hits.sum(1) / actual.sum(1), "balanced_accuracy": balanced, "macro_f1": macro_f1}


def confusion(
    predicted: Integer[np.ndarray, "*examples"], truth: Integer[np.ndarray, "*examples"], classes: int
) -> Int[np.ndarray, "classes classes"]:
    """Confusion counts, true class by row and predicted class by column; other true classes (unlabeled) are ignored."""
    kept = truth < classes
    places = truth[kept].astype(np.int64) * classes + predicted[kept]
    return np.bincount(places, minlength=classes**2).reshape(classes, classes)


def segmentation(
    by_tile: Int[np.ndarray, "examples classes classes"], weights: Integer[np.ndarray, "examples resamples"]
) -> dict[str, Float[np.ndarray, "resamples"]]:
    """Intersection over union of each class, their mean and pixel accuracy, from each tile's confusion counts.

    Pixels of all tiles are pooled (Jaccard index as in scikit-learn's `jaccard_score`); the mean is over the classes
    that the test split contains.
    """
    classes = by_tile.shape[1]
    counts = _weighted_sums(weights, by_tile.reshape(len(by_tile), -1)).reshape(-1, classes, classes)
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
    weights: Integer[np.ndarray, "examples resamples"],
) -> dict[str, Float[np.ndarray, "resamples"]]:
    """Coefficient of determination and root mean squared error, means over the values; NaN in `truth` is ignored."""
    r2, rmse = [], []
    for k in range(truth.shape[1]):
        known = np.isfinite(truth[:, k])
        y = truth[known, k]
        squared_error = (predicted[known, k] - y) ** 2
        sums = _weighted_sums(weights[known], np.stack([np.ones_like(y), squared_error, y, y**2], axis=1))
        total, error, first, second = sums.T
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = second - first**2 / total
            r2.append(np.where(spread > 1e-12 * total, 1 - error / spread, np.nan))
            rmse.append(np.sqrt(error / total))
    return {"r2": _mean_of_known(np.stack(r2, 1)), "rmse": _mean_of_known(np.stack(rmse, 1))}

"""Classification metrics with bootstrap intervals. Whole split at once, never averaged over batches.

Definitions are scikit-learn's (`average_precision_score`, `f1_score`, `balanced_accuracy_score`), to which the tests
compare; they are written here in the weighted, vectorised form that makes hundreds of resamples affordable.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

MULTI = ("macro_map", "micro_map", "macro_f1", "micro_f1")
SINGLE = ("top1", "balanced_accuracy", "macro_f1")


def average_precision(
    scores: Float[np.ndarray, "examples"],
    truth: Bool[np.ndarray, "examples"],
    weights: Int[np.ndarray, "examples resamples"],
) -> Float[np.ndarray, "resamples"]:
    """Average precision of one ranking under each column of example weights; NaN where one holds no positive.

    Ties share one threshold, as in scikit-learn.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, positive = scores[order], np.flatnonzero(truth[order])
    # Recall rises at positives only: precision is needed there, at the end of each one's tie.
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    at = ends[np.searchsorted(ends, positive)]
    weights = weights[order]
    gained = weights[positive]
    hits = np.cumsum(gained, axis=0, dtype=np.int32)[np.searchsorted(positive, at, side="right") - 1]
    seen = np.cumsum(weights, axis=0, dtype=np.int32)[at]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = hits / np.maximum(seen, 1)
        return (precision * gained).sum(0) / gained.sum(0)


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
) -> dict[str, Float[np.ndarray, "resamples"]]:
    """Macro and micro average precision and F1 (threshold: probability one half, score zero) by resample."""
    kept = scored_classes(truth)
    per_class = per_class_ap(scores, truth, weights)[:, kept]
    with np.errstate(invalid="ignore"):
        macro = np.array([np.nanmean(row) if np.isfinite(row).any() else np.nan for row in per_class])
    flat = np.repeat(weights, truth.shape[1], axis=0)
    micro = average_precision(scores.reshape(-1), truth.reshape(-1), flat)
    predicted = scores > 0
    real = weights.T.astype(np.float64)  # BLAS multiplies floats only
    hit = real @ (predicted & truth)
    wrong = real @ (predicted ^ truth)
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = np.where(2 * hit + wrong > 0, 2 * hit / (2 * hit + wrong), 0.0)
        micro_f1 = 2 * hit.sum(1) / (2 * hit.sum(1) + wrong.sum(1))
    return {
        "macro_map": macro,
        "micro_map": micro,
        "macro_f1": f1[:, kept].mean(1) if kept.any() else np.full(weights.shape[1], np.nan),
        "micro_f1": np.nan_to_num(micro_f1),
    }


def per_class_ap(
    scores: Float[np.ndarray, "examples classes"],
    truth: Bool[np.ndarray, "examples classes"],
    weights: Int[np.ndarray, "examples resamples"],
) -> Float[np.ndarray, "resamples classes"]:
    """Average precision of each class by resample."""
    return np.stack([average_precision(scores[:, k], truth[:, k], weights) for k in range(truth.shape[1])], axis=1)


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
        f1 = np.where(actual + claimed > 0, 2 * hits / (actual + claimed), np.nan)[:, kept]
        balanced = np.nanmean(recall, axis=1)
        macro_f1 = np.nanmean(f1, axis=1)
    return {"top1": hits.sum(1) / weights.sum(1), "balanced_accuracy": balanced, "macro_f1": macro_f1}


def interval(
    by_seed: Float[np.ndarray, "seeds resamples"], seed: int, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean over seeds and its percentile interval, from resamples of test examples (columns) and of seeds (rows).

    Column 0 holds the values of the sample itself. With one seed only the examples are resampled.
    """
    value = float(np.nanmean(by_seed[:, 0]))
    seeds, resamples = by_seed.shape
    if resamples < 2:
        return value, float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, seeds, (seeds, resamples - 1))
    means = np.nanmean(np.take_along_axis(by_seed[:, 1:], drawn, axis=0), axis=0)
    low, high = np.nanpercentile(means, [50 * (1 - level), 50 * (1 + level)])
    return value, float(low), float(high)

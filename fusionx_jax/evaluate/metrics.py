"""The registry of metrics: name, label, range, kind of scores, and the version of its definition.

A metric is registered once; measuring, rows, tables and figures read the registry. Raising a metric's version measures
it again in kept cells, and nothing else. Definitions are in `numerics/metrics.py`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer

from fusionx_jax.evaluate.numerics import metrics as numerics
from fusionx_jax.evaluate.records import MetricKey
from fusionx_jax.registry import Registry


class Scores:
    """The scores of one fit on the scored split, with labels and bootstrap weights; shared terms are computed once.

    scores: [N, K] logits for kinds "multi" and "single", [N, K] predicted class shares for "cover", [N, K, K] confusion
      counts of every tile for "pixel" (true class by row, predicted class by column).
    targets: [N, K]; 0/1, one-hot for "single", class shares for "pixel" and "cover".
    weights: [N, 1 + resamples]; column 0 is the sample itself, all ones.
    """

    def __init__(
        self,
        scores: np.ndarray,
        targets: Float[np.ndarray, "examples classes"],
        weights: Integer[np.ndarray, "examples resamples"],
    ):
        self.scores, self.targets, self.weights = scores, targets, weights

    @functools.cached_property
    def class_ap(self) -> np.ndarray:
        return numerics.per_class_ap(self.scores, self.targets > 0, self.weights)

    @functools.cached_property
    def multi(self) -> dict[str, np.ndarray]:
        return numerics.multi_label(self.scores, self.targets > 0, self.weights, self.class_ap)

    @functools.cached_property
    def single(self) -> dict[str, np.ndarray]:
        return numerics.single_label(self.scores, self.targets.argmax(1), self.weights)

    @functools.cached_property
    def pixel(self) -> dict[str, np.ndarray]:
        return numerics.segmentation(self.scores, self.weights)

    @functools.cached_property
    def cover(self) -> dict[str, np.ndarray]:
        return numerics.regression(self.scores, self.targets, self.weights)

    def confusion(self, kind: str) -> np.ndarray | None:
        """Counts [K, K] of true (rows) by predicted class, for kinds with one class a tile or pixel."""
        if kind == "single":
            predicted, truth = self.scores.argmax(1), self.targets.argmax(1)
            return numerics.confusion(predicted, truth, self.targets.shape[1])
        return self.scores.sum(0) if kind == "pixel" else None


class Metric(NamedTuple):
    """One metric of a kind of scores ("multi", "single", "pixel" or "cover"; see `Scores`).

    `compute` returns one value a resample, [1 + resamples], or [1 + resamples, K] where `per_class`. `main` marks the
    metric that leads the tables, figures and comparisons of its kind. Values lie in [low, high]; intervals are clipped
    to that range.
    """

    name: str
    label: str
    kind: str
    compute: Callable[[Scores], np.ndarray]
    low: float = 0.0
    high: float = 1.0
    main: bool = False
    per_class: bool = False
    version: int = 1

    @property
    def versioned(self) -> str:
        """Key of the definition that measured a value."""
        return f"{self.kind}/{self.name}@{self.version}"


METRICS: Registry[Metric] = Registry("metric")


def register(metric: Metric) -> Metric:
    """Adds a metric under "kind/name": kinds may share a name, such as "macro_f1"."""
    return METRICS.register(f"{metric.kind}/{metric.name}", metric)


def metrics_of(kind: str) -> list[Metric]:
    """The metrics of a kind of scores, in table order."""
    return [m for m in METRICS.values() if m.kind == kind]


def main_metric(kind: str) -> Metric:
    """The metric that leads the tables of a kind of scores."""
    return next(m for m in METRICS.values() if m.kind == kind and m.main)


def find(kind: str, name: str) -> Metric:
    """A registered metric.

    Raises:
      InputError: there is none of that kind and name.
    """
    return METRICS[f"{kind}/{name}"]


def evaluate(scores: Scores, kind: str, classes: tuple[str, ...], names: set[str]) -> dict[MetricKey, np.ndarray]:
    """The named metrics of one fit: [1 + resamples] values by metric, and by class for per-class metrics."""
    out: dict[MetricKey, np.ndarray] = {}
    for metric in metrics_of(kind):
        if metric.name not in names:
            continue
        values = metric.compute(scores)
        if metric.per_class:
            out |= {MetricKey(metric.name, c): values[:, k] for k, c in enumerate(classes)}
        else:
            out[MetricKey(metric.name)] = values
    return out


def _class_iou(scores: Scores) -> np.ndarray:
    return np.stack([scores.pixel[f"iou/{k}"] for k in range(scores.scores.shape[1])], axis=1)


register(Metric("macro_map", "macro mAP", "multi", lambda s: s.multi["macro_map"], main=True))
register(Metric("micro_map", "micro mAP", "multi", lambda s: s.multi["micro_map"]))
register(Metric("macro_f1", "macro F1", "multi", lambda s: s.multi["macro_f1"]))
register(Metric("micro_f1", "micro F1", "multi", lambda s: s.multi["micro_f1"]))
register(Metric("ap", "average precision", "multi", lambda s: s.class_ap, per_class=True))
register(Metric("top1", "top-1 accuracy", "single", lambda s: s.single["top1"], main=True))
register(Metric("balanced_accuracy", "balanced accuracy", "single", lambda s: s.single["balanced_accuracy"]))
register(Metric("macro_f1", "macro F1", "single", lambda s: s.single["macro_f1"]))
register(Metric("miou", "mean IoU", "pixel", lambda s: s.pixel["miou"], main=True))
register(Metric("pixel_accuracy", "pixel accuracy", "pixel", lambda s: s.pixel["pixel_accuracy"]))
register(Metric("iou", "intersection over union", "pixel", _class_iou, per_class=True))
register(Metric("r2", "R²", "cover", lambda s: s.cover["r2"], low=-np.inf, main=True))
register(Metric("rmse", "root mean squared error", "cover", lambda s: s.cover["rmse"], high=np.inf))

"""Weighted nearest neighbors on frozen features; see `numerics.knn`."""

from collections.abc import Iterator, Sequence

import numpy as np

from fusionx_jax.evaluate.evaluators.base import Problem, Scored, Source, TileEvaluator
from fusionx_jax.evaluate.features import standardize
from fusionx_jax.evaluate.numerics import knn
from fusionx_jax.evaluate.records import CellKey


class NearestNeighbors(TileEvaluator):
    """kNN with the settings `evaluate.knn`."""

    name = "knn"
    label = "kNN"
    line_style = ":"
    settings = ("knn",)

    def score(self, source: Source, problem: Problem, keys: Sequence[CellKey]) -> Iterator[list[Scored]]:
        settings = problem.config.knn
        train, test = standardize(source.features("train"), source.features(problem.score_split))
        training = f"kNN, k {settings.k}, temperature {settings.temperature:g}"
        for key in keys:
            scores = knn.scores(
                train,
                problem.labels.targets["train"],
                problem.subsets[key],
                test,
                k=settings.k,
                temperature=settings.temperature,
            )
            yield [Scored(key, scores.astype(np.float64), "", training)]

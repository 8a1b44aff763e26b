"""Ridge regression of class shares: how much of each class a tile holds; see `numerics.ridge`."""

from collections.abc import Iterator, Sequence

import numpy as np

from fusionx_jax.evaluate.evaluators.base import Evaluator, Problem, Scored, Source
from fusionx_jax.evaluate.features import standardize
from fusionx_jax.evaluate.numerics import logistic, ridge
from fusionx_jax.evaluate.records import CellKey


class RidgeCover(Evaluator):
    """Class shares from frozen features, for tasks with pixel labels."""

    name = "ridge_cover"
    label = "ridge regression of class shares"

    def score_kind(self, task_kind: str) -> str:
        return "cover" if task_kind == "pixel" else ""

    def score(self, source: Source, problem: Problem, keys: Sequence[CellKey]) -> Iterator[list[Scored]]:
        config, shares = problem.config, problem.labels.targets["train"]
        train, test = standardize(source.features("train"), source.features(problem.score_split))
        training = f"{self.label}; regularization by {config.cv_folds}-fold cross-validation inside the labels"
        for key in keys:
            members = problem.subsets[key]
            folds = logistic.fold_numbers(
                shares[members] > 0, config.cv_folds, np.random.default_rng([key.seed, len(members)])
            )
            predicted, selected = ridge.fit(
                train[members], shares[members], folds, np.array(sorted(config.regularization)), test
            )
            yield [Scored(key, predicted, f"{selected:.3g}", training)]

"""Random forests on features: the usual classifier of remote sensing before networks (Breiman, 2001)."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from fusionx_jax.evaluate.evaluators.base import Problem, Scored, Source, TileEvaluator
from fusionx_jax.evaluate.records import CellKey

_LEAST_SHARE = 1e-6  # of votes: keeps scores finite


class RandomForest(TileEvaluator):
    """scikit-learn's random forest with the settings `evaluate.forest`; scores are log-odds of the votes."""

    name = "random_forest"
    label = "random forest"
    line_style = "-."
    settings = ("forest",)

    def score(self, source: Source, problem: Problem, keys: Sequence[CellKey]) -> Iterator[list[Scored]]:
        from sklearn.ensemble import RandomForestClassifier

        settings, kind = problem.config.forest, problem.labels.kind
        train, test = source.features("train"), source.features(problem.score_split)
        targets = problem.labels.targets["train"]
        training = f"{self.label} of {settings.trees} trees"
        for key in keys:
            members = problem.subsets[key]
            forest = RandomForestClassifier(
                settings.trees, min_samples_leaf=settings.min_samples_leaf, random_state=key.seed, n_jobs=1
            )
            labels = targets[members].argmax(1) if kind == "single" else targets[members].astype(int)
            if labels.shape[1:] == (1,):  # it takes one class as a vector
                labels = labels[:, 0]
            forest.fit(train[members], labels)
            votes = forest.predict_proba(test)
            if kind == "single":
                share = np.zeros((len(test), targets.shape[1]))
                share[:, forest.classes_] = votes
            else:
                share = _positives(votes, forest.classes_)
            clipped = np.clip(share, _LEAST_SHARE, 1 - _LEAST_SHARE)
            yield [Scored(key, np.log(clipped) - np.log1p(-clipped), "", training)]


def _positives(
    votes: np.ndarray | list[np.ndarray], classes: np.ndarray | list[np.ndarray]
) -> Float[np.ndarray, "examples classes"]:
    """The share of votes for the presence of each class; one class gives one array, several give lists."""
    if not isinstance(votes, list):
        votes, classes = [votes], [np.asarray(classes)]
    columns = []
    for by_value, values in zip(votes, classes):
        present = np.flatnonzero(values == 1)
        columns.append(by_value[:, present[0]] if len(present) else np.zeros(len(by_value)))
    return np.stack(columns, axis=1)

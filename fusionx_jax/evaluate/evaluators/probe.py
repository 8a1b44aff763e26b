"""Linear probes on frozen features, standardized on the unlabeled training split.

The regularization is selected by cross-validation inside the label subset, or on the whole validation split: the usual
practice, which needs more labels than the subset holds and is therefore reported under a name of its own.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict

from fusionx_jax.contract import Contract
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate.evaluators.base import Problem, Scored, Source, TileEvaluator
from fusionx_jax.evaluate.evaluators.checks import check_present
from fusionx_jax.evaluate.features import moments, rescale, standardize
from fusionx_jax.evaluate.label_training import LinearStart
from fusionx_jax.evaluate.numerics import logistic
from fusionx_jax.evaluate.records import CellKey


class LinearProbe(TileEvaluator):
    """Ridge-penalized logistic regression; see `numerics.logistic`."""

    name = "linear_probe"
    label = "linear probe"
    in_figures = True

    def check(self, config: ConfigDict, contract: Contract | None = None) -> None:
        super().check(config, contract)
        if config.cv_folds < 2 or not config.regularization or min(config.regularization) <= 0:
            raise InputError(
                f"evaluate.cv_folds is {config.cv_folds} and evaluate.regularization {tuple(config.regularization)}; a "
                "linear probe needs at least 2 folds and one positive regularization."
            )

    def features(self, source: Source, split: str) -> np.ndarray:
        """What is probed."""
        return source.features(split)

    def inputs(self, config: ConfigDict, train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
        """What the logistic regression gets of the features of the training split and of others."""
        del config
        return standardize(train, *others)

    def selection(self, config: ConfigDict) -> str:
        """How the regularization is selected, for people."""
        return f"{config.cv_folds}-fold cross-validation inside the labels"

    def score(self, source: Source, problem: Problem, keys: Sequence[CellKey]) -> Iterator[list[Scored]]:
        """Subsets of one size share a program."""
        splits = ["train", problem.score_split, *(["val"] if self.selects_on_validation else [])]
        train, test, *validation = self.inputs(problem.config, *(self.features(source, split) for split in splits))
        regularization = np.array(sorted(problem.config.regularization))
        selection = (validation[0], problem.labels.targets["val"]) if validation else None
        for group in _by_size(problem, keys):
            fit = _fit(problem, group, train, test, regularization, selection)
            training = f"{self.label}; regularization by {self.selection(problem.config)}"
            yield [
                Scored(key, scores.astype(np.float64), f"{regularization[chosen]:.3g}", training)
                for key, scores, chosen in zip(group, fit.scores, fit.chosen)
            ]


def linear_starts(source: Source, problem: Problem, keys: Sequence[CellKey]) -> dict[CellKey, LinearStart]:
    """The linear probe of each label subset as a linear layer on the features of the source."""
    features = source.features("train")
    center, scale = moments(features)
    train = rescale(features, center, scale)
    # The scores of the origin are the intercepts, those of the unit vectors the coefficients added to them.
    rows = np.concatenate([np.zeros((1, features.shape[1])), np.eye(features.shape[1])]).astype(np.float32)
    regularization = np.array(sorted(problem.config.regularization))
    out: dict[CellKey, LinearStart] = {}
    for group in _by_size(problem, keys):
        scores = np.asarray(_fit(problem, group, train, rows, regularization).scores, np.float64)
        for key, of_rows in zip(group, scores):
            out[key] = LinearStart(center, scale, of_rows[1:] - of_rows[0], of_rows[0])
    return out


def _fit(
    problem: Problem,
    keys: Sequence[CellKey],
    train: np.ndarray,
    test: np.ndarray,
    regularization: np.ndarray,
    selection: tuple[np.ndarray, np.ndarray] | None = None,
) -> logistic.Fit:
    """Probes of label subsets of one size, on standardized features."""
    return logistic.fit(
        train,
        problem.labels.targets["train"],
        np.stack([problem.subsets[key] for key in keys]),
        np.stack([_folds(problem, key) for key in keys]),
        regularization,
        test,
        softmax=problem.labels.kind == "single",
        selection=selection,
    )


def _by_size(problem: Problem, keys: Sequence[CellKey]) -> list[list[CellKey]]:
    sizes = {key: len(problem.subsets[key]) for key in keys}
    return [[key for key in keys if sizes[key] == size] for size in sorted(set(sizes.values()))]


def _folds(problem: Problem, key: CellKey) -> np.ndarray:
    members = problem.subsets[key]
    labels = problem.labels.targets["train"][members] > 0
    return logistic.fold_numbers(labels, problem.config.cv_folds, np.random.default_rng([key.seed, len(members)]))


class LinearProbeEach(LinearProbe):
    """A probe on the features of all modalities together and of each alone, side by side."""

    name = "linear_probe_each"
    label = "linear probe, modalities together and alone"
    in_figures = False
    needs_each = True

    def features(self, source: Source, split: str) -> np.ndarray:
        assert source.each is not None, "planned for sources with features of each modality only"
        return np.concatenate([source.features(split), source.each(split)], axis=1)


class LinearProbeApart(LinearProbe):
    """A probe on the features of each modality encoded alone, side by side: what fusion must beat."""

    name = "linear_probe_apart"
    label = "linear probe, modalities encoded alone"
    in_figures = False
    needs_each = True

    def features(self, source: Source, split: str) -> np.ndarray:
        assert source.each is not None, "planned for sources with features of each modality only"
        return source.each(split)


class LinearProbeComponents(LinearProbe):
    """A probe on the first principal components of the features: every read-out has the same dimension.

    Methods pool different numbers of token groups, and the number of features alone changes what a probe reaches.
    Components are those of the standardized features of the unlabeled training split.
    """

    name = "linear_probe_components"
    label = "linear probe, principal components"
    in_figures = False
    settings = ("components",)

    def check(self, config: ConfigDict, contract: Contract | None = None) -> None:
        super().check(config, contract)
        check_present("evaluate", config, self.settings)

    def inputs(self, config: ConfigDict, train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
        standard = standardize(train, *others)
        axes = np.linalg.eigh(standard[0].T.astype(np.float64) @ standard[0])[1]  # by ascending variance
        first = axes[:, ::-1][:, : config.components].astype(np.float32)
        return [x @ first for x in standard]

    def selection(self, config: ConfigDict) -> str:
        return f"{super().selection(config)}; at most {config.components} principal components"


class LinearProbeValidation(LinearProbe):
    """A probe whose regularization is selected on the whole validation split."""

    name = "linear_probe_validation"
    label = "linear probe, regularization selected on the validation split"
    in_figures = False
    selects_on_validation = True

    def selection(self, config: ConfigDict) -> str:
        del config
        return "all labels of the validation split"

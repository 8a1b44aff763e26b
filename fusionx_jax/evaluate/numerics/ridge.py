"""Ridge regression on frozen features, for the share of each class in a tile.

Objective: mean squared error + regularization * |W|^2 with a free intercept (scikit-learn's `Ridge` with alpha = n *
regularization), in float64. One decomposition serves every regularization, which is selected by cross-validated error.
With more examples than features it is the eigendecomposition of X'X, added up fold by fold: the sums without one fold
are those of all less those of the fold, and no float64 copy of all examples is made.
"""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

_ROWS = 16_384  # examples in float64 at a time


class Linear(NamedTuple):
    """Coefficients [R, D, V] and intercepts [R, V] by regularization."""

    coefficients: np.ndarray
    intercepts: np.ndarray

    def predict(self, x: Float[np.ndarray, "examples dim"]) -> Float[np.ndarray, "regularizations examples values"]:
        return np.einsum("nd,sdv->snv", x, self.coefficients, optimize=True) + self.intercepts[:, None]


def fit(
    train: Float[np.ndarray, "labeled dim"],
    values: Float[np.ndarray, "labeled values"],
    folds: Int[np.ndarray, "labeled"],
    regularization: Float[np.ndarray, "regularizations"],
    test: Float[np.ndarray, "test dim"],
) -> tuple[Float[np.ndarray, "test values"], float]:
    """Predictions for `test` with the regularization of least error over held-out folds, and that regularization."""
    with threadpool_limits(1, "blas"):  # LAPACK's threads wait for one another, see logistic.fit
        model, best = _select(train, values, folds, regularization)
    return test.astype(np.float64) @ model.coefficients[0] + model.intercepts[0], float(regularization[best])


def _select(train: np.ndarray, values: np.ndarray, folds: np.ndarray, regularization: np.ndarray) -> tuple[Linear, int]:
    """The model of all labels with the best regularization, and the index of that."""
    members = [np.flatnonzero(folds == fold) for fold in np.unique(folds)]
    if len(train) - max(map(len, members)) > train.shape[1]:
        center = train.mean(0, dtype=np.float64)  # sums of centered numbers lose no digits to the mean
        sums = [_sums(train, values, rows, center) for rows in members]
        total = functools.reduce(_Sums.plus, sums)
        without = [_from_sums(total.minus(part), regularization, center) for part in sums]
        best = _least_error(train, values, members, without)
        return _from_sums(total, regularization[best : best + 1], center), best
    without = []
    for rows in members:
        kept = np.setdiff1d(np.arange(len(train)), rows)
        without.append(_from_svd(train[kept], values[kept], regularization))
    best = _least_error(train, values, members, without)
    return _from_svd(train, values, regularization[best : best + 1]), best


def _least_error(train: np.ndarray, values: np.ndarray, members: list[np.ndarray], without: list[Linear]) -> int:
    """The index of the regularization with the least squared error, each fold under the model fitted without it."""
    error = np.zeros(len(without[0].intercepts))
    for held_out, model in zip(members, without):
        for start in range(0, len(held_out), _ROWS):
            rows = held_out[start : start + _ROWS]
            error += ((model.predict(train[rows].astype(np.float64)) - values[rows]) ** 2).sum((1, 2))
    return int(error.argmin())


class _Sums(NamedTuple):
    """Sums over examples: their number, x [D], y [V], x x' [D, D] and x y' [D, V]."""

    number: int
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray

    def plus(self, other: "_Sums") -> "_Sums":
        return _Sums(
            self.number + other.number, self.x + other.x, self.y + other.y, self.xx + other.xx, self.xy + other.xy
        )

    def minus(self, other: "_Sums") -> "_Sums":
        return _Sums(
            self.number - other.number, self.x - other.x, self.y - other.y, self.xx - other.xx, self.xy - other.xy
        )


def _sums(train: np.ndarray, values: np.ndarray, members: np.ndarray, center: np.ndarray) -> _Sums:
    parts = []
    for start in range(0, len(members), _ROWS):
        rows = members[start : start + _ROWS]
        x, y = train[rows] - center, values[rows].astype(np.float64)
        parts.append(_Sums(len(rows), x.sum(0), y.sum(0), x.T @ x, x.T @ y))
    return functools.reduce(_Sums.plus, parts)


def _from_sums(sums: _Sums, regularization: np.ndarray, center: np.ndarray) -> Linear:
    mean, level = sums.x / sums.number, sums.y / sums.number
    squares, axes = np.linalg.eigh(sums.xx - sums.number * np.outer(mean, mean))
    shrunk = 1 / (np.maximum(squares, 0.0) + sums.number * regularization[:, None])  # [R, D]
    moment = axes.T @ (sums.xy - sums.number * np.outer(mean, level))
    w = np.einsum("dr,sr,rv->sdv", axes, shrunk, moment, optimize=True)
    return Linear(w, level - np.einsum("d,sdv->sv", mean + center, w))


def _from_svd(train: np.ndarray, values: np.ndarray, regularization: np.ndarray) -> Linear:
    x, y = train.astype(np.float64), values.astype(np.float64)
    center, level = x.mean(0), y.mean(0)
    u, singular, axes = np.linalg.svd(x - center, full_matrices=False)
    shrunk = singular / (singular**2 + len(x) * regularization[:, None])  # [R, rank]
    w = np.einsum("dr,sr,rv->sdv", axes.T, shrunk, u.T @ (y - level), optimize=True)
    return Linear(w, level - np.einsum("d,sdv->sv", center, w))

"""Ridge regression on frozen features: how much of each class a tile holds.

Objective: mean squared error + strength * |W|^2 with a free intercept (scikit-learn's `Ridge` with alpha = n *
strength). One singular value decomposition serves every strength; the strength is chosen by cross-validated error.
"""

import numpy as np
from jaxtyping import Float, Int


def _solutions(x: np.ndarray, y: np.ndarray, strengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [R, D, V] and intercepts [R, V]."""
    center, level = x.mean(0), y.mean(0)
    u, values, axes = np.linalg.svd(x - center, full_matrices=False)
    shrunk = values / (values**2 + len(x) * strengths[:, None])  # [R, rank]
    w = np.einsum("dr,sr,rv->sdv", axes.T, shrunk, u.T @ (y - level), optimize=True)
    return w, level - np.einsum("d,sdv->sv", center, w)


def fit(
    train: Float[np.ndarray, "labeled dim"],
    values: Float[np.ndarray, "labeled values"],
    folds: Int[np.ndarray, "labeled"],
    strengths: Float[np.ndarray, "strengths"],
    test: Float[np.ndarray, "test dim"],
) -> tuple[Float[np.ndarray, "test values"], float]:
    """Predictions for `test` with the strength of least error over held-out folds, and that strength."""
    x, y = train.astype(np.float64), values.astype(np.float64)
    error = np.zeros(len(strengths))
    for fold in np.unique(folds):
        held = folds == fold
        w, b = _solutions(x[~held], y[~held], strengths)
        error += ((np.einsum("nd,sdv->snv", x[held], w, optimize=True) + b[:, None] - y[held]) ** 2).sum((1, 2))
    best = int(error.argmin())
    w, b = _solutions(x, y, strengths[best : best + 1])
    return test.astype(np.float64) @ w[0] + b[0], float(strengths[best])

"""Linear probes: ridge-penalized logistic regression for every seed, fold and strength in one jitted program.

Objective: mean log-loss + strength/2 * |W|^2 with a free intercept (scikit-learn's with C = 1 / (n * strength)), on
features standardized by the unlabeled training split. Multi-label data are independent binary problems, single-label
data one softmax.

Solver: features are rotated into the label subset's principal axes, which leaves the ridge penalty as it is and makes
Boehning & Lindsay's bound on the Hessian ("Monotonicity of quadratic-approximation algorithms", AISM 1988) diagonal:
its inverse is the step of an accelerated gradient method with restarts (O'Donoghue & Candes, FoCM 2015). All fits of a
subset share one matrix product.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg  # noqa: F401 (its LAPACK is JAX's, and must be loaded to be held to one thread)
from jaxtyping import Array, Float, Int
from threadpoolctl import threadpool_limits

# Relative change of the coefficients at which a fit ends. The fits that only choose the strength may be rough; the one
# that scores the test split agrees with scikit-learn's metrics to 0.1 points.
_CHOOSING_TOLERANCE = 4e-3
_TOLERANCE = 2e-4
_MAX_ITERATIONS = 300
_PATIENCE = 1  # weaker penalties in a row that select worse, before weaker still are not tried
_ABSENT_LOGIT = -30.0


class Fit(NamedTuple):
    """Scores of the held-out split and what was chosen, by seed.

    scores [S, M, K]; chosen [S] index into the strengths; selection_loss [S, R] the log-loss it was chosen by (inf:
    not tried, since a stronger penalty had already proved worse than one stronger still); iterations [S].
    """

    scores: np.ndarray
    chosen: np.ndarray
    selection_loss: np.ndarray
    iterations: np.ndarray


def fold_numbers(labels: np.ndarray, folds: int, rng: np.random.Generator) -> Int[np.ndarray, "labeled"]:
    """A fold 0..folds-1 for each labeled example [n, K], the rarest label of each spread over folds in turn."""
    count = len(labels)
    folds = min(folds, count)
    order = rng.permutation(count)
    rarity = labels.sum(0)
    key = np.where(labels[order].any(1), np.where(labels[order], rarity, np.inf).argmin(1), labels.shape[1])
    out = np.empty(count, np.int64)
    out[order[np.argsort(key, kind="stable")]] = np.arange(count) % folds
    return out


def fit(
    features: Float[np.ndarray, "train dim"],
    targets: Float[np.ndarray, "train classes"],
    subsets: Int[np.ndarray, "seeds labeled"],
    folds: Int[np.ndarray, "seeds labeled"],
    strengths: Float[np.ndarray, "strengths"],
    test_features: Float[np.ndarray, "test dim"],
    *,
    softmax: bool,
    selection: tuple[np.ndarray, np.ndarray] | None = None,
) -> Fit:
    """Fits all seeds of one label fraction and scores the test split with each seed's chosen strength.

    Args:
      features: all training features, standardized. `subsets` picks each seed's labeled rows.
      targets: 0/1 (one-hot for single-label data), all training rows.
      folds: fold of each labeled row; the strength is chosen by log-loss over held-out folds.
      strengths: penalties in ascending order.
      selection: (features, targets) of another split to choose the strength on instead.
    """
    count = subsets.shape[1]
    rows = _round_up(count, 1024) - count
    columns = _round_up(features.shape[1], 256) - features.shape[1]

    def widen(x):
        return jnp.pad(jnp.asarray(x, jnp.float32), ((0, 0), (0, columns)))

    num_folds = 0 if selection is not None else int(folds.max()) + 1
    chooser = (None, None)
    if selection is not None:
        chooser = (widen(selection[0]), jnp.asarray(selection[1], jnp.float32))
    # LAPACK's threads wait for one another, for seconds where other work shares the cores; one is as fast here.
    with threadpool_limits(1, "blas"):
        out = _sweep(
            jnp.pad(widen(features)[jnp.asarray(subsets)], ((0, 0), (0, rows), (0, 0))),
            jnp.pad(jnp.asarray(targets, jnp.float32)[jnp.asarray(subsets)], ((0, 0), (0, rows), (0, 0))),
            jnp.pad(jnp.asarray(folds), ((0, 0), (0, rows))),
            jnp.asarray(strengths, jnp.float32),
            widen(test_features),
            *chooser,
            jnp.int32(count),
            num_folds=num_folds,
            softmax=softmax,
        )
        return Fit(*(np.asarray(o) for o in out))


def _round_up(size: int, least: int) -> int:
    """A size at most an eighth larger, from a short list: fractions and methods share compiled programs, whose
    compilation takes longer than running them. The rows and columns added are zero and weigh nothing."""
    step = max(1 << max(size.bit_length() - 3, 0), least // 8)
    return max(least, -(-size // step) * step)


@functools.partial(jax.jit, static_argnames=("num_folds", "softmax"))
def _sweep(x, y, folds, strengths, test, select_x, select_y, count, *, num_folds, softmax):
    one = functools.partial(
        _one_seed,
        strengths=strengths,
        test=test,
        select_x=select_x,
        select_y=select_y,
        count=count,
        num_folds=num_folds,
        softmax=softmax,
    )
    return jax.vmap(one)(x, y, folds)


def _principal_axes(x: Array) -> tuple[Array, Array, Array]:
    """Rotated features [n, r], squared singular values [r] and the axes [D, r], r = min(n, D), of centerd features."""
    n, d = x.shape
    if n < d:
        values, vectors = jnp.linalg.eigh(x @ x.T)
        values = jnp.maximum(values, 0.0)
        keep = values > values[-1] * 1e-6
        scale = jnp.where(keep, jax.lax.rsqrt(jnp.where(keep, values, 1.0)), 0.0)
        axes = (x.T @ vectors) * scale
    else:
        values, axes = jnp.linalg.eigh(x.T @ x)
    rotated = x @ axes
    return rotated, (rotated**2).sum(0), axes


def _one_seed(x, y, folds, *, strengths, test, select_x, select_y, count, num_folds, softmax):
    real = (jnp.arange(len(x)) < count).astype(x.dtype)[:, None]  # rows past the labeled ones are padding
    center = x.sum(0) / count
    z, squares, axes = _principal_axes((x - center) * real)
    # Fits of one strength: every fold held out in turn, then all labels.
    held_out = jnp.concatenate([jnp.arange(num_folds), jnp.array([-1])])
    weight = (folds[:, None] != held_out[None, :]) * real  # [n, F]
    weight = weight / weight.sum(0)
    largest = weight.max(0)[:, None]  # 1 / (labels in the fit)
    start, free = _start(weight.T @ y, largest, softmax)

    if num_folds:

        def selection_loss(w, b):
            # Out-of-fold scores: row i from the fit that did not see fold(i).
            scores = jnp.einsum("nd,fkd->nfk", z, w[:-1]) + b[:-1]
            own = jnp.take_along_axis(scores, folds[:, None, None], axis=1)[:, 0]
            return _log_loss(own, y, softmax, real / count)
    else:
        rotated = (select_x - center) @ axes

        def selection_loss(w, b):
            return _log_loss(rotated @ w[-1].T + b[-1], select_y, softmax, 1 / len(select_y))

    def body(path):
        w, b, spent = _solve(
            z, squares, y, weight, strengths[path.next], softmax, path.w, path.b, free, largest, count,
            _CHOOSING_TOLERANCE,
        )  # fmt: skip
        loss = selection_loss(w, b)
        better = loss < path.best_loss
        return _Path(
            next=path.next - 1,
            w=w,
            b=b,
            losses=path.losses.at[path.next].set(loss),
            worse=jnp.where(better, 0, path.worse + 1),
            best_loss=jnp.where(better, loss, path.best_loss),
            best=jnp.where(better, path.next, path.best),
            best_w=jnp.where(better, w[-1], path.best_w),
            best_b=jnp.where(better, b[-1], path.best_b),
            iterations=path.iterations + spent,
        )

    w = jnp.zeros((*start.shape, z.shape[1]), z.dtype)
    b = start.astype(z.dtype)
    never = jnp.asarray(jnp.inf, z.dtype)
    last = jnp.int32(len(strengths) - 1)
    path = _Path(last, w, b, jnp.full(len(strengths), jnp.inf), 0, never, last, w[-1], b[-1], jnp.int32(0))
    path = jax.lax.while_loop(lambda p: (p.next >= 0) & (p.worse < _PATIENCE), body, path)
    w, b, spent = _solve(
        z, squares, y, weight[:, -1:], strengths[path.best], softmax, path.best_w[None], path.best_b[None],
        free[-1:], largest[-1:], count, _TOLERANCE,
    )  # fmt: skip
    test_scores = ((test - center) @ axes) @ w[0].T + b[0]
    return test_scores, path.best, path.losses, path.iterations + spent


class _Path(NamedTuple):
    """The walk from the strongest penalty to the weakest, each fit from the one before: weak ones alone converge
    slowly, and it ends where weaker ones have proved worse."""

    next: Array
    w: Array
    b: Array
    losses: Array
    worse: Array
    best_loss: Array
    best: Array
    best_w: Array
    best_b: Array
    iterations: Array


def _start(share, largest, softmax):
    """Intercepts [F, K] to start from, and which have a finite optimum: a class that a fit never (or always) sees
    keeps a constant score. `share` is the weighted share of positives."""
    free = (share > 0) & (share < 1)
    if softmax:
        start = jnp.where(free, jnp.log(jnp.maximum(share, 1e-9)), jnp.where(share > 0, 0.0, _ABSENT_LOGIT))
    else:
        smooth = jnp.clip(share, 0.5 * largest, 1 - 0.5 * largest)
        start = jnp.log(smooth) - jnp.log1p(-smooth)
    return start, free


def _log_loss(scores, y, softmax, weight):
    """Mean log-loss: over examples by `weight` (sums to 1), over classes where they are problems of their own."""
    if softmax:
        return -(jax.nn.log_softmax(scores) * y * weight).sum()
    return ((jax.nn.softplus(scores) - scores * y) * weight).sum() / y.shape[1]


def _solve(z, squares, y, weight, strength, softmax, w, b, free, largest, count, tolerance):
    """Accelerated gradient descent on all folds' fits of one strength at once."""
    n, rank = z.shape
    fits, classes = b.shape
    curvature = 0.5 if softmax else 0.25
    # Coefficients are [F, K, r]: with r first, loops on CPUs take three times as long.
    step_w = free[..., None] / (curvature * squares * largest[..., None] + strength)
    step_b = free / (curvature * count * largest)

    def gradient(w, b):
        scores = (z @ w.reshape(-1, rank).T).reshape(n, fits, classes) + b
        probability = jax.nn.softmax(scores) if softmax else jax.nn.sigmoid(scores)
        error = (probability - y[:, None, :]) * weight[:, :, None]
        return (error.reshape(n, -1).T @ z).reshape(fits, classes, rank) + strength * w, error.sum(0)

    def body(carry):
        w, b, vw, vb, t, i, _ = carry
        gw, gb = gradient(vw, vb)
        new_w, new_b = vw - step_w * gw, vb - step_b * gb
        # A multi-label fit is one problem per class, a softmax fit one problem: momentum restarts for each alone.
        uphill = (gw * (new_w - w)).sum(-1) + gb * (new_b - b)
        restart = (uphill.sum(-1, keepdims=True) if softmax else uphill) > 0
        t = jnp.where(restart, 1.0, t)
        next_t = 0.5 * (1 + jnp.sqrt(1 + 4 * t * t))
        momentum = jnp.where(restart, 0.0, (t - 1) / next_t)
        size = jnp.abs(new_w - w).max() / jnp.maximum(jnp.abs(new_w).max(), 1e-3)
        size = jnp.maximum(size, 0.1 * jnp.abs(new_b - b).max())
        return (
            new_w,
            new_b,
            new_w + momentum[..., None] * (new_w - w),
            new_b + momentum * (new_b - b),
            next_t,
            i + 1,
            size,
        )

    def going(carry):
        return (carry[-1] > tolerance) & (carry[-2] < _MAX_ITERATIONS)

    t0 = jnp.ones((fits, 1 if softmax else classes), z.dtype)
    begin = (w, b, w, b, t0, jnp.int32(0), jnp.asarray(jnp.inf, z.dtype))
    w, b, *_, iterations, _ = jax.lax.while_loop(going, body, begin)
    return w, b, iterations

"""Linear probes: ridge-penalized logistic regression for every seed, fold and regularization in one jitted program.

Objective: mean log-loss + regularization/2 * |W|^2 with a free intercept (scikit-learn's with C = 1 / (n *
regularization)), on features standardized by the unlabeled training split. Multi-label data are independent binary
problems, single-label data one softmax.

Solver: features are rotated into the label subset's principal axes, which leaves the ridge penalty as it is and makes
Boehning & Lindsay's bound on the Hessian ("Monotonicity of quadratic-approximation algorithms", AISM 1988) diagonal:
its inverse is the step of an accelerated gradient method with restarts (O'Donoghue & Candes, FoCM 2015). All fits of a
subset share one matrix product. The seeds are vmapped where their features fit `_VMAPPED_BYTES`, and fitted one after
another above. Matrix products are float32 on every backend; the default on TPU would be bfloat16.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg  # noqa: F401 (JAX calls its LAPACK, which threadpool_limits sees only once it is loaded)
from jaxtyping import Array, Bool, Float, Int, PyTree
from threadpoolctl import threadpool_limits

from fusionx_jax import progress

# Relative change of the coefficients at which a fit ends. Fits that only select the regularization may be rough; the
# one that scores the test split agrees with scikit-learn's metrics to 0.1 points (tests/evaluate/numerics).
_SELECTION_TOLERANCE = 4e-3
_TOLERANCE = 2e-4
_USUAL_ITERATIONS = 300  # a fit that needs more is reported
_MAX_ITERATIONS = 10 * _USUAL_ITERATIONS
_PATIENCE = 1  # weaker regularizations in a row that select worse, before still weaker ones are skipped
_ABSENT_LOGIT = -30.0
_VMAPPED_BYTES = 1 << 29  # of one array of features for all seeds; a program holds several

_Loss = Callable[[Array, Array], Array]  # coefficients and intercepts of all fits to the selection loss


class Fit(NamedTuple):
    """Scores of the test split and what was selected, by seed.

    scores [S, M, K]; chosen [S] index of the regularization; selection_loss [S, R] the log-loss it was chosen by (inf:
    skipped, since a stronger regularization had already proved worse than one stronger still); iterations [S] in total;
    longest [S] of one solve; converged [S] whether every solve reached its tolerance.
    """

    scores: Array | np.ndarray
    chosen: Array | np.ndarray
    selection_loss: Array | np.ndarray
    iterations: Array | np.ndarray
    longest: Array | np.ndarray
    converged: Array | np.ndarray


def fold_numbers(
    labels: Bool[np.ndarray, "labeled classes"], folds: int, rng: np.random.Generator
) -> Int[np.ndarray, "labeled"]:
    """A fold 0..folds-1 for each labeled example; examples of one rarest label are dealt to the folds in turn."""
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
    regularization: Float[np.ndarray, "regularizations"],
    test_features: Float[np.ndarray, "test dim"],
    *,
    softmax: bool,
    selection: tuple[np.ndarray, np.ndarray] | None = None,
    max_iterations: int = _MAX_ITERATIONS,
) -> Fit:
    """Fits all seeds of one label fraction and scores the test split with each seed's selected regularization.

    Args:
      features: all training features, standardized. `subsets` picks each seed's labeled rows.
      targets: 0/1 (one-hot for single-label data), all training rows.
      folds: fold of each labeled row; the regularization is selected by log-loss over held-out folds.
      regularization: values in ascending order.
      selection: (features, targets) of another split to select the regularization on instead.
      max_iterations: of one solve. A fit that stops there is logged, and not `converged`.
    """
    num_folds = 0 if selection is not None else int(folds.max()) + 1
    rows = max(subsets.shape[1], len(test_features), len(selection[0]) if selection is not None else 0)
    vmapped = 4 * len(subsets) * rows * features.shape[1] <= _VMAPPED_BYTES
    limits = _Limits(np.asarray(regularization, np.float32), max_iterations, num_folds, softmax)
    # LAPACK's threads wait for one another, for seconds where other work shares the cores; one is as fast here.
    with threadpool_limits(1, "blas"):
        fit_all = _fit_vmapped if vmapped else _fit_in_turn
        out = fit_all(features, targets, subsets, folds, test_features, selection, limits)
    _report(out, subsets.shape[1], limits)
    return out


class _Limits(NamedTuple):
    """What the seeds of a fit have in common beside the data."""

    regularization: np.ndarray
    max_iterations: int
    num_folds: int
    softmax: bool


def _report(fits: Fit, labeled: int, limits: _Limits) -> None:
    """Logs the fits that needed more iterations than usual, or did not converge."""
    for seed in np.flatnonzero((fits.longest > _USUAL_ITERATIONS) | ~fits.converged):
        name = f"{labeled} labels, subset {seed}, regularization {limits.regularization[fits.chosen[seed]]:.3g}"
        if fits.converged[seed]:
            progress.logger.info("Logistic regression (%s) took %d iterations.", name, fits.longest[seed])
        else:
            progress.logger.warning(
                "Logistic regression (%s) has not converged after %d iterations; its scores are those of the last "
                "one. Add stronger values to evaluate.regularization, or check the features.",
                name,
                fits.longest[seed],
            )


def _fit_vmapped(
    features: np.ndarray, targets: np.ndarray, subsets: np.ndarray, folds: np.ndarray, test_features: np.ndarray,
    selection: tuple[np.ndarray, np.ndarray] | None, limits: _Limits,
) -> Fit:  # fmt: skip
    """All seeds in one program."""
    count = subsets.shape[1]
    rows = _round_up(count, 1024) - count
    test_rows = _round_up(len(test_features), 256) - len(test_features)  # folds differ in size and share a program
    columns = _round_up(features.shape[1], 256) - features.shape[1]

    def widen(x: np.ndarray) -> Array:
        return jnp.pad(jnp.asarray(x, jnp.float32), [(0, 0)] * (x.ndim - 1) + [(0, columns)])

    select: tuple[Array | None, Array | None] = (None, None)
    if selection is not None:
        select = (widen(selection[0]), jnp.asarray(selection[1], jnp.float32))
    out = _sweep(
        jnp.pad(widen(features[subsets]), ((0, 0), (0, rows), (0, 0))),
        jnp.pad(jnp.asarray(targets[subsets], jnp.float32), ((0, 0), (0, rows), (0, 0))),
        jnp.pad(jnp.asarray(folds), ((0, 0), (0, rows))),
        limits.regularization,
        jnp.pad(widen(test_features), ((0, test_rows), (0, 0))),
        *select,
        jnp.int32(count),
        jnp.int32(limits.max_iterations),
        num_folds=limits.num_folds,
        softmax=limits.softmax,
    )
    fits = Fit(*(np.asarray(o) for o in out))
    return fits._replace(scores=fits.scores[:, : len(test_features)])


def _fit_in_turn(
    features: np.ndarray, targets: np.ndarray, subsets: np.ndarray, folds: np.ndarray, test_features: np.ndarray,
    selection: tuple[np.ndarray, np.ndarray] | None, limits: _Limits,
) -> Fit:  # fmt: skip
    """One seed after another, with two copies of a seed's features at most.

    The coefficients are rotated back to the original axes, so that neither the selection nor the test split is copied.
    """
    count = subsets.shape[1]
    rows = _round_up(count, 1024)
    select: tuple[Array | None, Array | None] = (None, None)
    if selection is not None:
        select = (jnp.asarray(selection[0], jnp.float32), jnp.asarray(selection[1], jnp.float32))
    fits = []
    for members, fold in zip(subsets, folds):
        x = np.zeros((rows, features.shape[1]), np.float32)
        np.take(features, members, axis=0, out=x[:count])
        center = x.sum(0, dtype=np.float64).astype(np.float32) / np.float32(count)
        x[:count] -= center
        y = np.zeros((rows, targets.shape[1]), np.float32)
        y[:count] = targets[members]
        z, squares, axes = _rotate(x)
        del x
        coefficients, intercept, *facts = _one_large_seed(
            z, squares, axes, center, y, np.pad(fold, (0, rows - count)), limits.regularization, *select,
            jnp.int32(count), jnp.int32(limits.max_iterations), num_folds=limits.num_folds, softmax=limits.softmax,
        )  # fmt: skip
        fits.append((test_features @ np.asarray(coefficients) + np.asarray(intercept), *map(np.asarray, facts)))
    return Fit(*(np.stack(values) for values in zip(*fits)))


def _round_up(size: int, least: int) -> int:
    """A size larger by an eighth at most, from a short list.

    Fractions and methods then share compiled programs, whose compilation takes longer than running them. The rows and
    columns added are zero and weigh nothing.
    """
    step = max(1 << max(size.bit_length() - 3, 0), least // 8)
    return max(least, -(-size // step) * step)


@functools.partial(jax.jit, static_argnames=("num_folds", "softmax"))
@jax.default_matmul_precision("float32")
def _sweep(
    x: Array, y: Array, folds: Array, regularization: Array, test: Array, select_x: Array | None,
    select_y: Array | None, count: Array, max_iterations: Array, *, num_folds: int, softmax: bool,
) -> Fit:  # fmt: skip
    def one_seed(x: Array, y: Array, folds: Array) -> Fit:
        real = (jnp.arange(len(x)) < count).astype(x.dtype)[:, None]  # rows past the labeled ones are padding
        center = x.sum(0) / count
        z, squares, axes = _principal_axes((x - center) * real)
        problem, start = _problem(z, squares, y, folds, real, count, num_folds, softmax)
        if select_x is None or select_y is None:
            loss = _held_out_loss(problem, folds, real)
        else:
            loss = _split_loss((select_x - center) @ axes, select_y, softmax)

        w, b, *facts = _select_and_solve(problem, start, regularization, loss, max_iterations)
        return Fit(((test - center) @ axes) @ w.T + b, *facts)

    return jax.vmap(one_seed)(x, y, folds)


@jax.jit
@jax.default_matmul_precision("float32")
def _rotate(centered: Array) -> tuple[Array, Array, Array]:
    return _principal_axes(centered)


@functools.partial(jax.jit, static_argnames=("num_folds", "softmax"))
@jax.default_matmul_precision("float32")
def _one_large_seed(
    z: Array, squares: Array, axes: Array, center: Array, y: Array, folds: Array, regularization: Array,
    select_x: Array | None, select_y: Array | None, count: Array, max_iterations: Array, *, num_folds: int,
    softmax: bool,
) -> tuple[Array, ...]:  # fmt: skip
    """Coefficients [D, K] and intercepts [K] in the original axes, and the facts of `Fit`."""
    real = (jnp.arange(len(z)) < count).astype(z.dtype)[:, None]
    problem, start = _problem(z, squares, y, folds, real, count, num_folds, softmax)

    def original(w: Array, b: Array) -> tuple[Array, Array]:
        coefficients = axes @ w.T
        return coefficients, b - center @ coefficients

    if select_x is None or select_y is None:
        loss = _held_out_loss(problem, folds, real)
    else:
        features, labels = select_x, select_y

        def loss(w: Array, b: Array) -> Array:
            coefficients, intercept = original(w[-1], b[-1])
            return _log_loss(features @ coefficients + intercept, labels, softmax, 1 / len(labels))

    w, b, *facts = _select_and_solve(problem, start, regularization, loss, max_iterations)
    return *original(w, b), *facts


def _principal_axes(x: Array) -> tuple[Array, Array, Array]:
    """Rotated features [n, r], squared singular values [r] and axes [D, r], r = min(n, D), of centered features."""
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


class _Problem(NamedTuple):
    """The fits of one seed: every fold held out in turn, then all labels.

    z [n, r] features in their principal axes, squares [r] of their singular values; y [n, K]; weight [n, F] of an
    example in each fit, largest [F, 1] of them; free [F, K]: which intercepts have a finite optimum.
    """

    z: Array
    squares: Array
    y: Array
    weight: Array
    largest: Array
    free: Array
    num_labeled: Array
    softmax: bool

    def last(self) -> "_Problem":
        """The fit of all labels alone."""
        return self._replace(weight=self.weight[:, -1:], largest=self.largest[-1:], free=self.free[-1:])


def _problem(
    z: Array, squares: Array, y: Array, folds: Array, real: Array, count: Array, num_folds: int, softmax: bool
) -> tuple[_Problem, Array]:
    """The problem, and intercepts [F, K] to start from."""
    held_out = jnp.concatenate([jnp.arange(num_folds), jnp.array([-1])])
    weight = (folds[:, None] != held_out[None, :]) * real  # [n, F]
    weight = weight / weight.sum(0)
    largest = weight.max(0)[:, None]  # 1 / (labels in the fit)
    start, free = _start(weight.T @ y, largest, softmax)
    return _Problem(z, squares, y, weight, largest, free, count, softmax), start


def _held_out_loss(problem: _Problem, folds: Array, real: Array) -> _Loss:
    def loss(w: Array, b: Array) -> Array:
        scores = jnp.einsum("nd,fkd->nfk", problem.z, w[:-1]) + b[:-1]
        out_of_fold = jnp.take_along_axis(scores, folds[:, None, None], axis=1)[:, 0]  # row i from the fit without it
        return _log_loss(out_of_fold, problem.y, problem.softmax, real / problem.num_labeled)

    return loss


def _split_loss(rotated: Array, labels: Array, softmax: bool) -> _Loss:
    def loss(w: Array, b: Array) -> Array:
        return _log_loss(rotated @ w[-1].T + b[-1], labels, softmax, 1 / len(labels))

    return loss


class _Path(NamedTuple):
    """The path from the strongest regularization to the weakest, each fit started from the one before.

    Weak ones alone converge slowly. The path ends where weaker ones have proved worse.
    """

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
    longest: Array
    converged: Array


def _select_and_solve(
    problem: _Problem, start: Array, regularization: Array, loss: _Loss, max_iterations: Array
) -> tuple[Array, ...]:
    """Coefficients [K, r] and intercepts [K] of all labels with the best regularization, and the facts of `Fit`."""

    def body(path: _Path) -> _Path:
        w, b, spent, converged = _solve(
            problem, regularization[path.next], path.w, path.b, _SELECTION_TOLERANCE, max_iterations
        )
        value = loss(w, b)
        better = value < path.best_loss
        return _Path(
            next=path.next - 1,
            w=w,
            b=b,
            losses=path.losses.at[path.next].set(value),
            worse=jnp.where(better, 0, path.worse + 1),
            best_loss=jnp.where(better, value, path.best_loss),
            best=jnp.where(better, path.next, path.best),
            best_w=jnp.where(better, w[-1], path.best_w),
            best_b=jnp.where(better, b[-1], path.best_b),
            iterations=path.iterations + spent,
            longest=jnp.maximum(path.longest, spent),
            converged=path.converged & converged,
        )

    z = problem.z
    w = jnp.zeros((*start.shape, z.shape[1]), z.dtype)
    b = start.astype(z.dtype)
    never = jnp.asarray(jnp.inf, z.dtype)
    last, zero = jnp.int32(len(regularization) - 1), jnp.int32(0)
    losses = jnp.full(len(regularization), jnp.inf)
    path = _Path(last, w, b, losses, zero, never, last, w[-1], b[-1], zero, zero, jnp.bool_(True))
    path = jax.lax.while_loop(lambda p: (p.next >= 0) & (p.worse < _PATIENCE), body, path)
    w, b, spent, converged = _solve(
        problem.last(), regularization[path.best], path.best_w[None], path.best_b[None], _TOLERANCE, max_iterations
    )
    longest, all_converged = jnp.maximum(path.longest, spent), path.converged & converged
    return w[0], b[0], path.best, path.losses, path.iterations + spent, longest, all_converged


def _start(share: Array, largest: Array, softmax: bool) -> tuple[Array, Array]:
    """Intercepts [F, K] to start from, and which have a finite optimum.

    A class that a fit never (or always) sees keeps a constant score. `share` is the weighted share of positives.
    """
    free = (share > 0) & (share < 1)
    if softmax:
        start = jnp.where(free, jnp.log(jnp.maximum(share, 1e-9)), jnp.where(share > 0, 0.0, _ABSENT_LOGIT))
    else:
        smooth = jnp.clip(share, 0.5 * largest, 1 - 0.5 * largest)
        start = jnp.log(smooth) - jnp.log1p(-smooth)
    return start, free


def _log_loss(scores: Array, y: Array, softmax: bool, weight: Array | float) -> Array:
    """Mean log-loss: over examples by `weight` (sums to 1), and over classes where each is a problem by itself."""
    if softmax:
        return -(jax.nn.log_softmax(scores) * y * weight).sum()
    return ((jax.nn.softplus(scores) - scores * y) * weight).sum() / y.shape[1]


def _solve(
    problem: _Problem, regularization: Array, w: Array, b: Array, tolerance: float, max_iterations: Array
) -> tuple[Array, Array, Array, Array]:
    """Accelerated gradient descent on all folds' fits of one regularization at once, from coefficients `w` [F, K, r].

    Returns coefficients, intercepts [F, K], the number of iterations and whether the tolerance was reached.
    """
    z, squares, y, weight, largest, free, count, softmax = problem
    n, rank = z.shape
    fits, classes = b.shape
    curvature = 0.5 if softmax else 0.25
    # Coefficients are [F, K, r]: with r first, loops on CPUs take three times as long.
    step_w = free[..., None] / (curvature * squares * largest[..., None] + regularization)
    step_b = free / (curvature * count * largest)

    def gradient(w: Array, b: Array) -> tuple[Array, Array]:
        scores = (z @ w.reshape(-1, rank).T).reshape(n, fits, classes) + b
        probability = jax.nn.softmax(scores) if softmax else jax.nn.sigmoid(scores)
        error = (probability - y[:, None, :]) * weight[:, :, None]
        return (error.reshape(n, -1).T @ z).reshape(fits, classes, rank) + regularization * w, error.sum(0)

    def body(carry: PyTree) -> PyTree:  # a tuple of arrays
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
        vw, vb = new_w + momentum[..., None] * (new_w - w), new_b + momentum * (new_b - b)
        return new_w, new_b, vw, vb, next_t, i + 1, size

    def unfinished(carry: tuple[Array, ...]) -> Array:
        return (carry[-1] > tolerance) & (carry[-2] < max_iterations)

    t0 = jnp.ones((fits, 1 if softmax else classes), z.dtype)
    begin = (w, b, w, b, t0, jnp.int32(0), jnp.asarray(jnp.inf, z.dtype))
    w, b, *_, iterations, size = jax.lax.while_loop(unfinished, body, begin)
    return w, b, iterations, size <= tolerance

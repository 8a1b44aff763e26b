"""The probe sweep of a label-ratio study against the same grid in scikit-learn, on every core of the machine.

Both fit every label fraction, seed and regularization, select each cell's regularization by log-loss on a selection
split and score a test split. scikit-learn runs twice: with its defaults (float64, every fit from zero), and with the
settings that are fastest here (float32, each fit started from that of the next stronger regularization). Both times it
has one process per core with one BLAS thread each, a running pool and the longest tasks first. JAX and scikit-learn are
imported before the clock starts. Compilation is reported separately: a sweep compiles once and evaluates every method
with the same programs.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fusionx_jax import progress
from fusionx_jax.types import JsonObject

FRACTIONS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
REGULARIZATION = np.geomspace(3e-4, 10.0, 12)  # the range of configs/default.py
_CLASSES = 12
_ABSENT_LOGIT = -30.0  # as in logistic.py: the logit of a class without labels
_MAX_ITERATIONS = 1000  # scikit-learn's default of 100 would leave weakly regularized fits unfinished


class Split(NamedTuple):
    x: np.ndarray
    y: np.ndarray


class Problem(NamedTuple):
    train: Split
    selection: Split
    test: Split


def make_problem(kind: str, examples: int, features: int, seed: int = 0) -> Problem:
    """Correlated Gaussian features with a decaying spectrum and a mean for each class, standardized.

    The classes have shares from 1/2 down to 3 %; those of multi-label data are correlated. Selection and test split are
    a fifth as large as the training split.
    """
    rng = np.random.default_rng(seed)
    held_out = max(examples // 5, 200)
    total = examples + 2 * held_out
    share = np.geomspace(0.5, 0.03, _CLASSES)
    if kind == "multi":
        latent = rng.normal(size=(total, 4)) @ rng.normal(size=(4, _CLASSES)) / 2 + rng.normal(size=(total, _CLASSES))
        y = np.stack([v > np.quantile(v, 1 - s) for v, s in zip(latent.T, share)], axis=1).astype(np.float32)
    else:
        y = np.eye(_CLASSES, dtype=np.float32)[rng.choice(_CLASSES, total, p=share / share.sum())]
    axes = np.linalg.qr(rng.normal(size=(features, features)))[0]
    means = 0.15 * rng.normal(size=(_CLASSES, features))
    x = (rng.normal(size=(total, features)) + y @ means) * np.arange(1, features + 1) ** -0.5 @ axes
    x = ((x - x[:examples].mean(0)) / x[:examples].std(0)).astype(np.float32)
    cuts = [examples, examples + held_out]
    return Problem(*(Split(*parts) for parts in zip(np.split(x, cuts), np.split(y, cuts))))


class _Sweep(NamedTuple):
    """Seconds of a sweep; test scores and index of the selected regularization by cell (fraction, seed)."""

    seconds: float
    scores: dict[tuple[float, int], np.ndarray]
    chosen: dict[tuple[float, int], int]


def run(kind: str, examples: int, features: int, seeds: int) -> JsonObject:
    """Times both sweeps and compares the metrics of their scores cell by cell."""
    import jax
    import joblib

    problem = make_problem(kind, examples, features)
    members = _label_subsets(problem, seeds)
    jax.block_until_ready(jax.numpy.zeros(1) + 1)  # initializes the backend
    first = _ours(problem, members, kind)
    warm = [_ours(problem, members, kind).seconds]
    progress.logger.info("Ours: %.1f s with compilation, %.1f s without.", first.seconds, warm[0])
    # Ours is timed before, between and after scikit-learn's turns, because machines are shared.
    tuned = _scikit_learn(problem, members, kind, tuned=True)
    warm.append(_ours(problem, members, kind).seconds)
    default = _scikit_learn(problem, members, kind, tuned=False)
    warm.append(_ours(problem, members, kind).seconds)
    seconds = float(np.mean(warm))
    return {
        "speedup": default.sweep.seconds / seconds,
        "speedup_with_compilation": default.sweep.seconds / first.seconds,
        "speedup_over_tuned": tuned.sweep.seconds / seconds,
        "speedup_over_tuned_if_both_stop_early": tuned.sweep.seconds * tuned.share_before_worse / seconds,
        **_compare(problem, kind, first, default.sweep),
        "our_s": seconds,
        "our_s_with_compilation": first.seconds,
        "sklearn_s": default.sweep.seconds,
        "sklearn_tuned_s": tuned.sweep.seconds,
        "cores": joblib.cpu_count(),
        "device": str(jax.local_devices()[0].device_kind),
        "kind": kind,
        "examples": examples,
        "features": features,
        "classes": _CLASSES,
        "fractions": FRACTIONS,
        "seeds": seeds,
        "regularizations": len(REGULARIZATION),
        "problem": (
            "synthetic correlated features; the regularization is selected on a split of "
            f"{len(problem.selection.y)} examples, {len(problem.test.y)} are scored; both fit all labels once; ours "
            "skips regularizations weaker than one that proved worse, scikit-learn fits all"
        ),
    }


def _label_subsets(problem: Problem, seeds: int) -> dict[float, np.ndarray]:
    """Rows of the label subsets [seeds, labels] by fraction. With all labels the subsets are equal, so there is one."""
    from fusionx_jax.evaluate import subsets

    drawn = [subsets.nested_subsets(problem.train.y > 0, FRACTIONS, seed) for seed in range(seeds)]
    return {f: np.stack([d[f] for d in (drawn[:1] if f == 1 else drawn)]) for f in FRACTIONS}


def _ours(problem: Problem, members: dict[float, np.ndarray], kind: str) -> _Sweep:
    from fusionx_jax.evaluate.numerics import logistic

    scores, chosen = {}, {}
    started = time.perf_counter()
    for fraction, rows in members.items():
        fit = logistic.fit(
            problem.train.x, problem.train.y, rows, np.zeros_like(rows), REGULARIZATION, problem.test.x,
            softmax=kind == "single", selection=problem.selection,
        )  # fmt: skip
        for seed in range(len(rows)):
            scores[fraction, seed], chosen[fraction, seed] = np.asarray(fit.scores[seed]), int(fit.chosen[seed])
    return _Sweep(time.perf_counter() - started, scores, chosen)


def _compare(problem: Problem, kind: str, ours: _Sweep, theirs: _Sweep) -> JsonObject:
    """Differences of the test metrics in points, and ours by fraction."""
    from fusionx_jax.evaluate.numerics import metrics

    weights = np.ones((len(problem.test.y), 1), np.int64)

    def evaluate(scores: np.ndarray) -> dict[str, float]:
        if kind == "multi":
            values = metrics.multi_label(scores.astype(np.float64), problem.test.y > 0, weights)
        else:
            values = metrics.single_label(scores.astype(np.float64), problem.test.y.argmax(1), weights)
        return {name: 100 * float(value[0]) for name, value in values.items()}

    pairs = {cell: (evaluate(ours.scores[cell]), evaluate(theirs.scores[cell])) for cell in ours.scores}
    names = metrics.MULTI if kind == "multi" else metrics.SINGLE
    difference = {name: max(abs(a[name] - b[name]) for a, b in pairs.values()) for name in names}
    return {
        "max_metric_difference": difference[names[0]],
        "metric": names[0],
        "max_difference_by_metric": difference,
        "same_regularization_chosen": float(np.mean([ours.chosen[c] == theirs.chosen[c] for c in ours.chosen])),
        "metric_by_fraction": {
            f"{f:g}": float(np.mean([a[names[0]] for (g, _), (a, _) in pairs.items() if g == f])) for f in FRACTIONS
        },
    }


class _ScikitLearn(NamedTuple):
    """share_before_worse: the share of its working time spent on regularizations up to the first that selected worse
    than a stronger one, where ours stops."""

    sweep: _Sweep
    share_before_worse: float


def _scikit_learn(problem: Problem, members: dict[float, np.ndarray], kind: str, tuned: bool) -> _ScikitLearn:
    import joblib

    cells = [(f, seed) for f in sorted(members, reverse=True) for seed in range(len(members[f]))]
    classes = range(_CLASSES) if kind == "multi" else (None,)
    tasks = [(cell, k) for cell in cells for k in classes]
    all_cores = joblib.parallel_config("loky", n_jobs=-1, inner_max_num_threads=1)
    with all_cores, joblib.Parallel(return_as="generator") as pool:
        few = Split(problem.train.x[:200], problem.train.y[:200])
        list(pool(joblib.delayed(_path)(few, np.arange(200), k, few, tuned) for k in classes))  # starts the workers
        started = time.perf_counter()
        with progress.Progress(len(tasks), f"scikit-learn, {'tuned' if tuned else 'defaults'}", "path") as bar:
            paths: dict[tuple[tuple[float, int], int | None], _Path] = {}
            fits = (
                joblib.delayed(_path)(problem.train, members[f][seed], k, problem.selection, tuned)
                for (f, seed), k in tasks
            )
            for task, path in zip(tasks, pool(fits)):
                paths[task] = path
                bar.advance()
        scores, chosen = {}, {}
        for cell in cells:
            loss = sum(paths[cell, k].loss for k in classes)
            best = chosen[cell] = int(np.argmin(loss))
            model = np.concatenate([paths[cell, k].models[best] for k in classes], axis=1)
            scores[cell] = problem.test.x @ model[:-1] + model[-1]
        seconds = time.perf_counter() - started
    by_cell = [[paths[cell, k] for k in classes] for cell in cells]
    return _ScikitLearn(_Sweep(seconds, scores, chosen), _share_before_worse(by_cell))


def _share_before_worse(by_cell: Sequence[Sequence["_Path"]]) -> float:
    total = before = 0.0
    for cell in by_cell:
        loss = np.sum([path.loss for path in cell], axis=0)[::-1]  # from the strongest regularization
        worse = np.flatnonzero(loss[1:] >= np.minimum.accumulate(loss)[:-1])
        tried = worse[0] + 2 if len(worse) else len(loss)
        for path in cell:
            total += path.seconds.sum()
            before += path.seconds[::-1][:tried].sum()
    return float(before / total)


class _Path(NamedTuple):
    """By regularization: models [R, D + 1, K], the intercept last; loss on the selection split [R]; seconds [R]."""

    models: Float[np.ndarray, "regularizations coefficients classes"]
    loss: Float[np.ndarray, "regularizations"]
    seconds: Float[np.ndarray, "regularizations"]


def _path(train: Split, rows: np.ndarray, label: int | None, selection: Split, tuned: bool) -> _Path:
    """One binary problem (`label`), or one softmax (None), from the strongest regularization to the weakest."""
    from sklearn.linear_model import LogisticRegression

    x = train.x[rows].astype(np.float32 if tuned else np.float64)
    y = train.y[rows].argmax(1) if label is None else train.y[rows, label]
    size = _CLASSES if label is None else 1
    models = np.zeros((len(REGULARIZATION), x.shape[1] + 1, size), np.float32)
    seconds = np.zeros(len(REGULARIZATION))
    present, named = np.unique(y, return_counts=True)
    if label is None:  # beside intercepts that sum to zero; ours keep the sum of the log shares
        models[:, -1] = _ABSENT_LOGIT - np.log(named / len(y)).mean()
    if len(present) > 1:
        model = LogisticRegression(solver="lbfgs", max_iter=_MAX_ITERATIONS, warm_start=tuned)
        columns = present if label is None else [0]
        for i in reversed(range(len(REGULARIZATION))):
            began = time.perf_counter()
            model.C = 1 / (len(rows) * REGULARIZATION[i])
            model.fit(x, y)
            models[i, :-1, columns], models[i, -1, columns] = model.coef_, model.intercept_
            seconds[i] = time.perf_counter() - began
    else:  # scikit-learn refuses one class: a constant score, as ours gives
        share = np.clip(y.mean(), 0.5 / len(y), 1 - 0.5 / len(y))
        models[:, -1] = np.log(share / (1 - share))
    scores = selection.x @ models[:, :-1] + models[:, -1:]  # [R, n, K]
    if label is None:
        largest = scores.max(-1, keepdims=True)
        total = largest[..., 0] + np.log(np.exp(scores - largest).sum(-1))
        loss = (total - (scores * selection.y).sum(-1)).mean(1)
    else:
        loss = (np.logaddexp(0, scores[..., 0]) - scores[..., 0] * selection.y[:, label]).mean(1)
    return _Path(models, loss, seconds)

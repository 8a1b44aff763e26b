"""The probe sweep of a label-ratio study against the same grid in scikit-learn, on every core of the machine.

Both fit every label fraction, seed and ridge strength, choose each cell's strength by log-loss on a selection split and
score a test split. scikit-learn runs twice: as it is usually called (its defaults: float64, every fit from zero), and
with what makes it fastest here (float32, each fit started from the one before along the strengths). Both times it has
one process a core with one BLAS thread each, a running pool and the longest tasks first. JAX and scikit-learn are
imported before the clock starts. Compilation is counted apart: a sweep compiles once and judges every method with the
same programs.
"""

import time
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from fusionx_jax import progress

FRACTIONS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
STRENGTHS = np.geomspace(3e-4, 10.0, 12)  # the range of configs/default.py
_CLASSES = 12
_ABSENT_LOGIT = -30.0  # as in logistic.py: of a class that no label names
_MAX_ITERATIONS = 1000  # scikit-learn's default of 100 would leave weak penalties unfinished


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


def run(kind: str, examples: int, features: int, seeds: int) -> dict[str, Any]:
    """Times both and compares their test metrics, cell by cell."""
    import jax
    import joblib

    from fusionx_jax.evaluate import subsets
    from fusionx_jax.evaluate.numerics import logistic, metrics

    problem = make_problem(kind, examples, features)
    drawn = [subsets.nested_subsets(problem.train.y > 0, FRACTIONS, seed) for seed in range(seeds)]
    # All labels: the seeds' subsets are one and the same, fitted once by both.
    members = {f: np.stack([d[f] for d in (drawn[:1] if f == 1 else drawn)]) for f in FRACTIONS}
    jax.block_until_ready(jax.numpy.zeros(1) + 1)  # the backend is up

    def ours() -> tuple[float, dict[tuple[float, int], Any], dict[tuple[float, int], int]]:
        scores, chosen = {}, {}
        started = time.perf_counter()
        for fraction, rows in members.items():
            fit = logistic.fit(
                problem.train.x, problem.train.y, rows, np.zeros_like(rows), STRENGTHS, problem.test.x,
                softmax=kind == "single", selection=problem.selection,
            )  # fmt: skip
            for seed in range(len(rows)):
                scores[fraction, seed], chosen[fraction, seed] = fit.scores[seed], int(fit.chosen[seed])
        return time.perf_counter() - started, scores, chosen

    cold, scores, chosen = ours()
    warm = [ours()[0]]
    progress.logger.info("Ours: %.1f s with compilation, %.1f s without.", cold, warm[0])
    theirs = _scikit_learn(problem, members, kind, tuned=True)
    warm.append(ours()[0])  # both sides of scikit-learn's turn: machines are shared
    usual = _scikit_learn(problem, members, kind, tuned=False)
    warm.append(ours()[0])

    weights = np.ones((len(problem.test.y), 1), np.int64)

    def score(values: np.ndarray) -> dict[str, float]:
        if kind == "multi":
            found = metrics.multi_label(values.astype(np.float64), problem.test.y > 0, weights)
        else:
            found = metrics.single_label(values.astype(np.float64), problem.test.y.argmax(1), weights)
        return {name: 100 * float(value[0]) for name, value in found.items()}

    pairs = {cell: (score(scores[cell]), score(usual.scores[cell])) for cell in scores}
    names = metrics.MULTI if kind == "multi" else metrics.SINGLE
    difference = {name: max(abs(a[name] - b[name]) for a, b in pairs.values()) for name in names}
    after = float(np.mean(warm))
    return {
        "speedup": usual.seconds / after,
        "speedup_with_compilation": usual.seconds / cold,
        "speedup_over_tuned": theirs.seconds / after,
        "speedup_over_tuned_if_both_stop_early": theirs.seconds * theirs.share_before_worse / after,
        "max_metric_difference": difference[names[0]],
        "metric": names[0],
        "max_difference_by_metric": difference,
        "same_strength_chosen": float(np.mean([chosen[c] == usual.chosen[c] for c in chosen])),
        "metric_by_fraction": {
            f"{f:g}": float(np.mean([a[names[0]] for (g, _), (a, _) in pairs.items() if g == f])) for f in FRACTIONS
        },
        "our_s": after,
        "our_s_with_compilation": cold,
        "sklearn_s": usual.seconds,
        "sklearn_tuned_s": theirs.seconds,
        "cores": joblib.cpu_count(),
        "device": str(jax.local_devices()[0].device_kind),
        "kind": kind,
        "examples": examples,
        "features": features,
        "classes": _CLASSES,
        "fractions": FRACTIONS,
        "seeds": seeds,
        "strengths": len(STRENGTHS),
        "problem": (
            "synthetic correlated features, strength chosen on a selection split of "
            f"{len(problem.selection.y)}, scored on {len(problem.test.y)}; all labels are fitted once by both; ours "
            "stops along the strengths where weaker ones prove worse, scikit-learn fits all of them"
        ),
    }


class _Theirs(NamedTuple):
    """By cell (fraction, seed). share_before_worse: of its working time, what was spent on strengths up to the first
    that selected worse than a stronger one, where ours stops."""

    seconds: float
    scores: dict[tuple[float, int], np.ndarray]
    chosen: dict[tuple[float, int], int]
    share_before_worse: float


def _scikit_learn(problem: Problem, members: dict[float, np.ndarray], kind: str, tuned: bool) -> _Theirs:
    import joblib

    cells = [(f, seed) for f in sorted(members, reverse=True) for seed in range(len(members[f]))]
    classes = range(_CLASSES) if kind == "multi" else (None,)
    tasks = [(cell, k) for cell in cells for k in classes]
    every_core = joblib.parallel_config("loky", n_jobs=-1, inner_max_num_threads=1)
    with every_core, joblib.Parallel(return_as="generator") as pool:
        few = Split(problem.train.x[:200], problem.train.y[:200])
        list(pool(joblib.delayed(_path)(few, np.arange(200), k, few, tuned) for k in classes))  # the workers are up
        started = time.perf_counter()
        with progress.Progress(len(tasks), f"scikit-learn, {'tuned' if tuned else 'as usual'}", "path") as bar:
            found = {}
            paths = (
                joblib.delayed(_path)(problem.train, members[f][seed], k, problem.selection, tuned)
                for (f, seed), k in tasks
            )
            for task, path in zip(tasks, pool(paths)):
                found[task] = path
                bar.advance()
        scores, chosen = {}, {}
        for cell in cells:
            loss = sum(found[cell, k].loss for k in classes)
            best = chosen[cell] = int(np.argmin(loss))
            model = np.concatenate([found[cell, k].models[best] for k in classes], axis=1)
            scores[cell] = problem.test.x @ model[:-1] + model[-1]
        seconds = time.perf_counter() - started
    spent = before = 0.0
    for cell in cells:
        loss = sum(found[cell, k].loss for k in classes)[::-1]
        worse = np.flatnonzero(loss[1:] >= np.minimum.accumulate(loss)[:-1])
        tried = worse[0] + 2 if len(worse) else len(loss)
        for k in classes:
            spent += found[cell, k].seconds.sum()
            before += found[cell, k].seconds[::-1][:tried].sum()
    return _Theirs(seconds, scores, chosen, float(before / spent))


class _Path(NamedTuple):
    """models [R, D + 1, K], the intercept last; loss on the selection split [R]; seconds [R]; by strength."""

    models: Float[np.ndarray, "strengths coefficients classes"]
    loss: Float[np.ndarray, "strengths"]
    seconds: Float[np.ndarray, "strengths"]


def _path(train: Split, rows: np.ndarray, label: int | None, selection: Split, tuned: bool) -> _Path:
    """One binary problem (`label`), or one softmax (None), from the strongest penalty to the weakest."""
    from sklearn.linear_model import LogisticRegression

    x = train.x[rows].astype(np.float32 if tuned else np.float64)
    y = train.y[rows].argmax(1) if label is None else train.y[rows, label]
    size = _CLASSES if label is None else 1
    models = np.zeros((len(STRENGTHS), x.shape[1] + 1, size), np.float32)
    seconds = np.zeros(len(STRENGTHS))
    present, named = np.unique(y, return_counts=True)
    if label is None:  # beside intercepts that sum to zero; ours keep the sum of the log shares
        models[:, -1] = _ABSENT_LOGIT - np.log(named / len(y)).mean()
    if len(present) > 1:
        model = LogisticRegression(solver="lbfgs", max_iter=_MAX_ITERATIONS, warm_start=tuned)
        columns = present if label is None else [0]
        for i in reversed(range(len(STRENGTHS))):
            began = time.perf_counter()
            model.C = 1 / (len(rows) * STRENGTHS[i])
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

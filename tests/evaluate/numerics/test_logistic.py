import re

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from fusionx_jax.evaluate.numerics import knn, logistic, metrics


def _data(classes=4, dim=24, train=400, test=4000, seed=0):
    rng = np.random.default_rng(seed)
    # Correlated features of unequal scale, as pooled tokens are.
    mixing = rng.normal(size=(dim, dim)) * np.geomspace(1, 0.05, dim)
    x = rng.normal(size=(train + test, dim)) @ mixing
    x = ((x - x[:train].mean(0)) / x[:train].std(0)).astype(np.float32)
    logits = x @ rng.normal(size=(dim, classes)) * 0.7 - np.linspace(0, 2, classes)
    return x[:train], x[train:], logits, rng


def _subsets(count, seeds, size, rng):
    return np.stack([rng.permutation(count)[:size] for _ in range(seeds)])


@pytest.mark.parametrize("size", [15, 60, 300])  # fewer and more labels than features
def test_multi_label_probe_agrees_with_scikit_learn(size):
    train, test, logits, rng = _data()
    truth = rng.random(logits.shape) < 1 / (1 + np.exp(-logits))
    y, y_test = truth[:400].astype(float), truth[400:]
    members = _subsets(400, 3, size, rng)
    folds = np.zeros_like(members)
    weights = np.ones((len(y_test), 1), int)
    for regularization in (0.01, 0.1, 1.0):
        fit = logistic.fit(
            train, y, members, folds, np.array([regularization]), test, softmax=False, selection=(test, y_test)
        )
        for seed, rows in enumerate(members):
            reference = np.zeros_like(fit.scores[seed])
            for k in range(4):
                if y[rows, k].min() == y[rows, k].max():
                    continue  # scikit-learn cannot fit one class
                model = LogisticRegression(C=1 / (size * regularization), tol=1e-8, max_iter=5000).fit(
                    train[rows], y[rows, k]
                )
                reference[:, k] = model.decision_function(test)
                assert np.corrcoef(reference[:, k], fit.scores[seed][:, k])[0, 1] > 0.9995
            usable = [k for k in range(4) if y[rows, k].min() != y[rows, k].max()]
            ours, theirs = (
                metrics.multi_label(s[:, usable].astype(float), y_test[:, usable], weights)
                for s in (fit.scores[seed], reference)
            )
            for name in metrics.MULTI:
                assert abs(ours[name][0] - theirs[name][0]) < 0.005, name


@pytest.mark.parametrize("size", [20, 300])
def test_single_label_probe_agrees_with_scikit_learn(size):
    train, test, logits, rng = _data()
    labels = np.array([rng.choice(4, p=np.exp(v) / np.exp(v).sum()) for v in logits])
    y = np.eye(4)[labels[:400]]
    members = _subsets(400, 2, size, rng)
    for regularization in (0.01, 0.3):
        fit = logistic.fit(
            train, y, members, np.zeros_like(members), np.array([regularization]), test, softmax=True,
            selection=(test, np.eye(4)[labels[400:]]),
        )  # fmt: skip
        for seed, rows in enumerate(members):
            if len(set(labels[rows])) < 4:
                continue
            model = LogisticRegression(C=1 / (size * regularization), tol=1e-8, max_iter=5000).fit(
                train[rows], labels[rows]
            )
            agree = (model.predict(test) == fit.scores[seed].argmax(1)).mean()
            assert agree > 0.99
            truth = labels[400:]
            ours, theirs = (
                metrics.single_label(s.astype(float), truth, np.ones((len(truth), 1), int))
                for s in (fit.scores[seed], model.decision_function(test))
            )
            for name in metrics.SINGLE:
                assert abs(ours[name][0] - theirs[name][0]) < 0.005, name


def test_regularization_is_chosen_by_the_log_loss_of_held_out_folds():
    train, test, logits, rng = _data(train=200)
    y = (rng.random((200, 4)) < 1 / (1 + np.exp(-logits[:200]))).astype(float)
    rows = np.arange(60)
    folds = logistic.fold_numbers(y[rows] > 0, 5, rng)
    regularizations = np.array([0.003, 0.03, 0.3, 3.0])
    fit = logistic.fit(train, y, rows[None], folds[None], regularizations, test, softmax=False)
    expected = []
    for regularization in regularizations:
        losses = np.zeros((60, 4))
        for fold in range(5):
            inside, outside = rows[folds != fold], rows[folds == fold]
            for k in range(4):
                assert y[inside, k].min() != y[inside, k].max()
                model = LogisticRegression(C=1 / (len(inside) * regularization), tol=1e-8, max_iter=5000)
                p = model.fit(train[inside], y[inside, k]).predict_proba(train[outside])[:, 1]
                losses[folds == fold, k] = -np.log(np.where(y[outside, k] > 0, p, 1 - p))
        expected.append(losses.mean())
    assert np.allclose(fit.selection_loss[0], expected, rtol=0.01)
    assert fit.chosen[0] == np.argmin(expected)


def test_a_class_without_examples_keeps_one_low_score():
    train, test, _, rng = _data()
    y = (rng.random((400, 3)) < 0.4).astype(float)
    y[:50, 2] = 0
    rows = np.arange(50)[None]
    folds = logistic.fold_numbers(y[:50] > 0, 5, rng)[None]
    for softmax in (False, True):
        targets = np.eye(3)[rng.integers(0, 2, 400)] if softmax else y
        scores = logistic.fit(train, targets, rows, folds, np.array([0.1, 1.0]), test, softmax=softmax).scores[0]
        assert np.isfinite(scores).all()
        assert np.ptp(scores[:, 2]) < 1e-6
        assert scores[:, 2].max() < scores[:, :2].mean()


def test_folds_are_even_and_spread_rare_labels():
    rng = np.random.default_rng(0)
    labels = rng.random((103, 4)) < np.array([0.5, 0.3, 0.1, 0.1])
    folds = logistic.fold_numbers(labels, 5, rng)
    assert np.ptp(np.bincount(folds)) <= 1
    assert np.ptp(np.bincount(folds, weights=labels[:, 3], minlength=5)) <= 3
    assert len(set(logistic.fold_numbers(labels[:3], 5, rng))) == 3


def test_a_fit_that_needs_more_than_the_usual_iterations_is_continued_and_reported(caplog, monkeypatch):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(200, 10)).astype(np.float32)
    y = (x[:, :1] > 0).astype(float)  # separable: coefficients grow until the weak regularization stops them
    rows, value = np.arange(len(x))[None], np.array([1e-4])
    monkeypatch.setattr(logistic, "_USUAL_ITERATIONS", 20)
    with caplog.at_level("INFO", logger="fusionx"):
        fit = logistic.fit(x, y, rows, 0 * rows, value, x, softmax=False, selection=(x, y))
    assert fit.converged[0]
    assert f"took {fit.longest[0]} iterations" in caplog.text
    reference = LogisticRegression(C=1 / (len(x) * value[0]), tol=1e-9, max_iter=20_000).fit(x, y[:, 0])
    assert np.allclose(fit.scores[0, :, 0], reference.decision_function(x), rtol=0.02, atol=0.2)
    caplog.clear()
    with caplog.at_level("WARNING", logger="fusionx"):
        cut = logistic.fit(x, y, rows, 0 * rows, value, x, softmax=False, selection=(x, y), max_iterations=20)
    assert not cut.converged[0]
    assert "has not converged after 20 iterations" in caplog.text


@pytest.mark.parametrize("by_folds", [True, False])
def test_seeds_fitted_in_turn_agree_with_vmapped_ones(monkeypatch, by_folds):
    train, test, logits, rng = _data(test=50)
    y = (rng.random((400, 4)) < 1 / (1 + np.exp(-logits[:400]))).astype(float)
    members = _subsets(400, 2, 80, rng)
    folds = np.stack([logistic.fold_numbers(y[m] > 0, 3, rng) for m in members])
    arguments = (train, y, members, folds, np.array([0.01, 0.1, 1.0]), test)
    selection = None if by_folds else (train, y)
    vmapped = logistic.fit(*arguments, softmax=False, selection=selection)
    monkeypatch.setattr(logistic, "_VMAPPED_BYTES", 0)
    in_turn = logistic.fit(*arguments, softmax=False, selection=selection)
    assert (in_turn.chosen == vmapped.chosen).all()
    assert np.allclose(in_turn.scores, vmapped.scores, atol=2e-2 * np.abs(vmapped.scores).max())
    assert np.allclose(in_turn.selection_loss, vmapped.selection_loss, rtol=1e-2)


def test_matrix_products_are_float32_on_every_backend():
    """TPUs multiply float32 matrices in bfloat16 by default."""
    shapes = [(1, 8, 6), (1, 8, 2), (1, 8), (2,), (5, 6)]
    x, y, folds, values, test = (jnp.zeros(s, jnp.int32 if i == 2 else jnp.float32) for i, s in enumerate(shapes))
    one = jnp.int32(8)
    text = logistic._sweep.lower(x, y, folds, values, test, None, None, one, one, num_folds=2, softmax=False).as_text()
    products = re.findall(r"dot_general.*", text)
    assert products
    assert all("HIGHEST" in p for p in products)
    votes = knn._vote.lower(jnp.zeros((9, 4)), jnp.zeros((9, 2)), jnp.zeros((3, 4)), jnp.float32(1), k=2).as_text()
    assert all("HIGHEST" in p for p in re.findall(r"dot_general.*", votes))

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from fusionx_jax.evaluate.numerics import knn


@pytest.mark.parametrize("k", [1, 7, 500])
def test_votes_are_those_of_scikit_learn_with_the_same_weights(k):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 130)
    train = rng.normal(size=(130, 8)).astype(np.float32) + truth[:, None]
    subset = np.sort(rng.permutation(130)[:90])
    test = rng.normal(size=(40, 8)).astype(np.float32) + 1
    ours = knn.scores(train, np.eye(3)[truth], subset, test, k=k, temperature=0.1)

    def weight(distance):  # of unit vectors: cosine = 1 - distance^2 / 2
        return np.exp((1 - distance**2 / 2 - 1) / 0.1)

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    theirs = KNeighborsClassifier(n_neighbors=min(k, 90), weights=weight, algorithm="brute")
    theirs.fit(unit(train[subset]), truth[subset])
    assert np.allclose(1 / (1 + np.exp(-ours)), theirs.predict_proba(unit(test)), atol=1e-4)

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, PredefinedSplit

from fusionx_jax.evaluate.numerics import ridge


@pytest.mark.parametrize(("dim", "offset"), [(20, 0.0), (20, 300.0), (100, 0.0)])  # more or fewer labels than features
def test_predictions_and_choice_are_those_of_scikit_learn(dim, offset):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(60, dim)) + offset).astype(np.float32)
    y = x[:, :3] @ rng.normal(size=(3, 2)) + rng.normal(0, 1, (60, 2)) + 4
    test = (rng.normal(size=(15, dim)) + offset).astype(np.float32)
    folds = rng.permutation(60) % 5
    regularization = np.geomspace(1e-3, 10, 7)
    ours, chosen = ridge.fit(x, y, folds, regularization, test)
    # As many tiles in every fold: scikit-learn's alpha is then the same multiple of the regularization in all of them.
    search = GridSearchCV(
        Ridge(), {"alpha": 48 * regularization}, cv=PredefinedSplit(folds), scoring="neg_mean_squared_error"
    ).fit(x.astype(np.float64), y)
    assert np.isclose(chosen, search.best_params_["alpha"] / 48)
    theirs = Ridge(alpha=60 * chosen).fit(x.astype(np.float64), y).predict(test)
    assert np.allclose(ours, theirs, atol=1e-6)

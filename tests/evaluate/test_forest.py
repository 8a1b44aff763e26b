import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn.metrics import average_precision_score

from fusionx_jax.evaluate.evaluators import EVALUATORS, Problem, Source
from fusionx_jax.evaluate.labels import Labels
from fusionx_jax.evaluate.records import CellKey, LabelBudget, ModalitySet
from tests.evaluate import toy

CONFIG = ConfigDict({"score_split": "test", "forest": {"trees": 40, "min_samples_leaf": 1}})
SET = toy.ToySet()
KEY = CellKey(LabelBudget(1.0), 0)


def _scores(kind, targets, features):
    labels = Labels("t", kind, "f", tuple("abc"[: targets["train"].shape[1]]), targets, {}, None)
    problem = Problem(labels, {KEY: np.arange(len(targets["train"]))}, CONFIG, SET)
    source = Source("m", ModalitySet(("s1",)), lambda split: features[split], None, toy.encoder(SET))
    ((scored,),) = EVALUATORS["random_forest"].score(source, problem, [KEY])
    return scored.scores


@pytest.mark.parametrize("classes", [1, 3])
def test_a_forest_learns_what_no_line_can(classes):
    rng = np.random.default_rng(0)
    features = {s: rng.normal(size=(n, 2)) for s, n in (("train", 400), ("test", 200))}
    quadrant = {s: (x[:, 0] * x[:, 1] > 0).astype(float) for s, x in features.items()}
    other = {s: np.stack([(x[:, 0] > 0), np.zeros(len(x))], 1) for s, x in features.items()}  # the last has no example
    targets = {s: np.column_stack([quadrant[s], other[s]])[:, :classes] for s in features}
    scores = _scores("multi", targets, features)
    assert np.isfinite(scores).all()
    assert scores.shape == (200, classes)
    assert average_precision_score(quadrant["test"], scores[:, 0]) > 0.95
    if classes == 3:
        assert (scores[:, 2] < -10).all()


def test_single_labels_have_a_column_for_every_class():
    rng = np.random.default_rng(0)
    features = {s: rng.normal(size=(n, 2)) for s, n in (("train", 300), ("test", 100))}
    number = {s: np.where(x[:, 0] > 0, 2, 0) for s, x in features.items()}
    scores = _scores("single", {s: np.eye(3)[n] for s, n in number.items()}, features)
    assert (scores.argmax(1) == number["test"]).mean() > 0.95
    assert (scores[:, 1] < -10).all()

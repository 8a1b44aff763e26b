"""Hand-made cells for tests of what is made from them."""

import numpy as np

from fusionx_jax.evaluate import rows
from fusionx_jax.evaluate.cells import Cell
from fusionx_jax.evaluate.records import CellKey, Group, LabelBudget, Method, MetricKey, ModalitySet, Protocol

CONTEXT = rows.Context("land", False, 1000, {"multi": ("rare",)}, "mean_std", "w/checkpoints/5", "abc")
BOTH = ModalitySet(("s1", "s2"))


def group(method="fusionx", evaluator="linear_probe", changes="", modalities=BOTH) -> Group:
    return Group(Method(method, changes), modalities, "multi", evaluator)


def cell(group: Group, draws, budget=0.1, seed=0, subset=None, metric="macro_map", **more) -> Cell:
    """A cell with one metric; `draws` are the sample's own and its resamples'."""
    key = CellKey(LabelBudget(budget), seed)
    fields = {
        "group": group, "key": key, "kind": "multi", "num_labels": round(1000 * budget), "absent_classes": (),
        "selected": "0.1", "protocol": Protocol("linear probe", "tiles"), "versions": {metric: 1}, "confusion": [],
        "values": {MetricKey(metric): np.asarray(draws, np.float32)}, "subset": subset or f"{budget}-{seed}",
    }  # fmt: skip
    return Cell(**{**fields, **more})


def pretraining(cells, seed=0, context=CONTEXT) -> rows.Pretraining:
    return rows.Pretraining(seed, context, {c.key: c for c in cells})

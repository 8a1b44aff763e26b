"""Hand-made rows and differences for tests of tables, sentences and figures."""

from fusionx_jax.evaluate import compare, rows
from fusionx_jax.evaluate.evaluators import Evaluator

ROW = rows.Row(
    dataset="d", method="fusionx", changes="", modalities="s1+s2", zero_filled="", task="multi",
    evaluator="linear_probe", label="0.1", label_fraction=0.1, num_labels=10, level=rows.MEAN, seed=-1, kind="multi",
    metric="macro_map", class_name="", value=0.6, ci_low=0.58, ci_high=0.63, num_subsets=5, num_pretrainings=1,
    score_split="test", statistics="checkpoint", optimistic=False, protocol="linear probe", pooling="mean_std",
    selected="", absent_classes="", unscored_classes="", simulated=True, checkpoint="w", config_hash="h",
)  # fmt: skip

DIFFERENCE = compare.Difference(
    dataset="d", method="untrained", changes="", modalities="s1+s2", zero_filled="", task="multi",
    evaluator="linear_probe", reference_evaluator="linear_probe", label="0.1", kind="multi", metric="macro_map",
    reference_minus_method=0.02, ci_low=0.01, ci_high=0.03, reference="wins", num_subsets=5, num_pretrainings=1,
    reference_pretrainings=1, score_split="test", simulated=True,
)  # fmt: skip


def row(**changes) -> rows.Row:
    if "label" in changes and "label_fraction" not in changes and not changes["label"].endswith("shot"):
        changes["label_fraction"] = float(changes["label"])
    return ROW._replace(**changes)


def difference(**changes) -> compare.Difference:
    return DIFFERENCE._replace(**changes)


class Outside(Evaluator):
    """An evaluator of somebody else's."""

    name = "outside"
    label = "an outside evaluator"
    in_figures = True
    line_style = "-."

    def score_kind(self, task_kind):
        return task_kind

    def score(self, source, problem, keys):
        raise NotImplementedError

import numpy as np
import pytest

from fusionx_jax.errors import InputError
from fusionx_jax.evaluate import rows
from fusionx_jax.evaluate.records import LabelBudget, MetricKey, ModalitySet, parse_budget, parse_method
from tests.evaluate.cells import cell, group, pretraining

RESAMPLES = np.linspace(-0.05, 0.05, 41)


def test_a_single_pretraining_has_a_row_a_subset_and_their_mean():
    one = group()
    cells = [cell(one, 0.5 + 0.1 * seed + np.append(0, RESAMPLES), seed=seed) for seed in (0, 1)]
    table = list(rows.from_cells(one, [pretraining(cells)]))
    assert [(r.level, r.seed) for r in table] == [(rows.SUBSET, 0), (rows.SUBSET, 1), (rows.MEAN, -1)]
    assert [r.value for r in table] == pytest.approx([0.5, 0.6, 0.55], abs=1e-6)
    for r in table:
        assert r.ci_low < r.value < r.ci_high
    # One subset: the percentiles of its resamples.
    assert (table[0].ci_low, table[0].ci_high) == pytest.approx(
        tuple(0.5 + np.percentile(RESAMPLES, [2.5, 97.5])), abs=1e-5
    )
    assert [r.num_labels for r in table] == [100] * 3
    assert table[-1].unscored_classes == "rare"


def test_several_pretrainings_have_a_row_each_over_the_subsets_that_all_have():
    one = group()
    values = {3: 0.4, 7: 0.6}
    pretrainings = [
        pretraining([cell(one, v + np.append(0, RESAMPLES), seed=s) for s in range(2 + (p == 3))], seed=p)
        for p, v in values.items()
    ]
    table = list(rows.from_cells(one, pretrainings))
    assert [(r.level, r.seed, r.num_subsets) for r in table] == [
        (rows.PRETRAINING, 3, 2), (rows.PRETRAINING, 7, 2), (rows.MEAN, -1, 2)
    ]  # fmt: skip
    assert [r.value for r in table] == pytest.approx([0.4, 0.6, 0.5], abs=1e-6)
    assert table[-1].ci_high - table[-1].ci_low > table[0].ci_high - table[0].ci_low  # pretraining seeds vary too


def test_class_rows_are_means_only_and_values_are_clipped_to_the_metrics_range():
    one = group()
    values = {MetricKey("ap", "water"): np.append(0.98, 0.98 + RESAMPLES)}
    (row,) = rows.from_cells(one, [pretraining([cell(one, [0], values=values)])])
    assert (row.metric, row.class_name, row.level) == ("ap", "water", rows.MEAN)
    assert row.ci_high == 1.0
    unbounded = {MetricKey("rmse"): np.append(1.2, 1.2 + RESAMPLES)}
    (row, _) = rows.from_cells(one, [pretraining([cell(one, [0], values=unbounded, kind="cover")])])
    assert row.value == pytest.approx(1.2)  # not clipped to [0, 1]


def test_a_metric_that_is_not_registered_is_refused():
    one = group()
    with pytest.raises(InputError, match="no metric 'multi/magic'"):
        list(rows.from_cells(one, [pretraining([cell(one, [0.1, 0.2], metric="magic")])]))


def test_rows_are_read_as_they_were_written(tmp_path):
    one = group(changes="mask_ratio=0.9", modalities=ModalitySet(("s1",), ("s2",)))
    table = list(rows.from_cells(one, [pretraining([cell(one, [0.25, 0.5, 0.125], absent_classes=("a, b", "c"))])]))
    rows.write(tmp_path / "r.csv", table)
    back = rows.read(tmp_path / "r.csv")
    rounded = [r._replace(**{k: float(f"{v:.6g}") for k, v in r._asdict().items() if type(v) is float}) for r in table]
    assert back == rounded
    assert table[0].modality_set == one.modalities
    assert rows.split_names(table[0].absent_classes) == ["a, b", "c"]
    assert rows.read(tmp_path / "none.csv") == []
    (tmp_path / "old.csv").write_text("method,value\nfusionx,0.5\n")
    with pytest.raises(InputError, match="columns of this version"):
        rows.read(tmp_path / "old.csv")


@pytest.mark.parametrize(
    ("budget", "name", "title"), [(LabelBudget(0.01), "0.01", "1 %"), (LabelBudget(shots=5), "5-shot", "5-shot")]
)
def test_label_budgets_have_one_name(budget, name, title):
    assert (budget.name, budget.title) == (name, title)
    assert parse_budget(name) == budget
    with pytest.raises(InputError, match="not a label budget"):
        parse_budget("five")


def test_methods_are_read_back_with_their_changes():
    method = parse_method("fusionx/masking=consistent/mask_ratio=0.9")
    assert (method.name, method.changes) == ("fusionx", "masking=consistent/mask_ratio=0.9")
    assert method.spec == "fusionx/masking=consistent/mask_ratio=0.9"

import numpy as np
import pytest

from fusionx_jax.evaluate import compare
from fusionx_jax.evaluate.records import LabelBudget, Method
from tests.evaluate.cells import cell, group, pretraining

RNG = np.random.default_rng(0)
SHARED = np.append(0, RNG.normal(0, 0.05, 400))  # what resampling the test tiles does to every method
OWN = np.append(0, RNG.normal(0, 0.002, 400))


def cells(one, mean, noise=0.0, budgets=(0.1,), subsets=(0, 1)):
    return [cell(one, mean + SHARED + noise * OWN, budget=b, seed=s) for b in budgets for s in subsets]


def test_a_paired_difference_excludes_zero_where_intervals_overlap():
    ours, theirs = group(), group("croma")
    measured = {ours: [pretraining(cells(ours, 0.60))], theirs: [pretraining(cells(theirs, 0.59, 1.0))]}
    (found,) = compare.differences(measured)
    assert found.reference_minus_method == pytest.approx(0.01, abs=1e-6)
    assert 0 < found.ci_low < 0.01 < found.ci_high < 0.02  # each alone: plus or minus 0.1
    assert (found.reference, found.method, found.num_subsets) == (compare.WINS, "croma", 2)


@pytest.mark.parametrize(("mean", "verdict"), [(0.62, compare.LOSES), (0.60, compare.TIES), (0.58, compare.WINS)])
def test_verdicts_follow_the_interval(mean, verdict):
    ours, theirs = group(), group("croma")
    measured = {ours: [pretraining(cells(ours, 0.60))], theirs: [pretraining(cells(theirs, mean, 1.0))]}
    (found,) = compare.differences(measured)
    assert found.reference == verdict


def test_differences_are_over_the_subsets_that_both_sides_have():
    ours, theirs = group(), group("croma")
    mine = cells(ours, 0.5, subsets=(0, 1, 2))
    mine[2] = mine[2]._replace(values={k: v + 0.3 for k, v in mine[2].values.items()})
    other = cells(theirs, 0.5, subsets=(0, 1, 2))
    other[1] = other[1]._replace(subset="drawn anew")  # other tiles under the same seed
    del other[2]
    (found,) = compare.differences({ours: [pretraining(mine)], theirs: [pretraining(other)]})
    assert (found.num_subsets, found.reference_minus_method) == (1, pytest.approx(0, abs=1e-6))
    other[0] = other[0]._replace(subset="drawn anew too")
    assert not list(compare.differences({ours: [pretraining(mine)], theirs: [pretraining(other)]}))


def test_p_values_are_corrected_over_the_methods_of_one_modality_set():
    ours, near, far = group(), group("croma"), group("multimae")
    measured = {ours: [pretraining(cells(ours, 0.60))], near: [pretraining(cells(near, 0.59, 1.0))],
                far: [pretraining(cells(far, 0.55, 1.0))]}  # fmt: skip
    found = {d.method: d for d in compare.differences(measured)}
    small, large = found["multimae"], found["croma"]
    assert small.p_value < large.p_value < 0.05
    assert large.p_holm == pytest.approx(max(large.p_value, small.p_holm))
    assert small.p_holm == pytest.approx(2 * small.p_value)


def test_networks_from_scratch_are_compared_with_the_references_probe_and_any_method_can_be_the_reference():
    ours, scratch, mine = group(), group("supervised_vit", "scratch"), group("mine")
    measured = {g: [pretraining(cells(g, m))] for g, m in ((ours, 0.6), (scratch, 0.5), (mine, 0.7))}
    table = {d.method: d for d in compare.differences(measured)}
    assert (table["supervised_vit"].evaluator, table["supervised_vit"].reference_evaluator) == (
        "scratch",
        "linear_probe",
    )
    assert set(table) == {"supervised_vit", "mine"}
    assert {d.method for d in compare.differences(measured, Method("mine"))} == {"supervised_vit", "fusionx"}


def test_variants_are_compared_with_their_method_by_pretraining_seed():
    base, variant = group(), group(changes="mask_ratio=0.9")
    measured = {
        base: [pretraining(cells(base, 0.5 + 0.1 * s), seed=s) for s in (0, 1)],
        variant: [pretraining(cells(variant, 0.63), seed=1)],
    }
    assert not list(compare.differences(measured))
    (found,) = compare.ablations(measured)
    assert found.variant_minus_method == pytest.approx(0.03, abs=1e-6)  # with seed 1 of the method alone
    assert (found.changes, found.num_pretrainings, found.value) == ("mask_ratio=0.9", 1, pytest.approx(0.63, abs=1e-6))


def test_labels_needed_are_read_off_the_curve():
    scratch, ours = group("supervised_vit", "scratch"), group()
    curve = [cell(ours, mean + 0 * SHARED, budget=b) for b, mean in ((0.01, 0.4), (0.1, 0.5), (1.0, 0.6))]
    target = [cell(scratch, 0.55 + 0 * SHARED, budget=1.0)]
    (found,) = compare.labels_needed({ours: [pretraining(curve)], scratch: [pretraining(target)]})
    assert found.labels == pytest.approx(np.sqrt(100 * 1000), rel=1e-3)  # halfway, on a logarithmic axis
    assert (found.target_method, found.least_tried, found.all_labels) == ("supervised_vit", 10, 1000)
    never = [cell(scratch, 0.9 + 0 * SHARED, budget=1.0)]
    (found,) = compare.labels_needed({ours: [pretraining(curve)], scratch: [pretraining(never)]})
    assert found.labels == np.inf


def test_methods_without_all_labels_are_no_target():
    scratch, ours = group("supervised_vit", "scratch"), group()
    measured = {ours: [pretraining(cells(ours, 0.5))], scratch: [pretraining(cells(scratch, 0.4))]}
    assert not list(compare.labels_needed(measured))
    assert LabelBudget(1.0) not in {c.key.budget for c in cells(scratch, 0.4)}

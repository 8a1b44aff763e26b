import math
from pathlib import Path

import pytest

from fusionx_jax import methods
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate import compare, metrics
from fusionx_jax.evaluate.evaluators import EVALUATORS, register
from fusionx_jax.evaluate.members import Cost
from fusionx_jax.evaluate.records import Method
from fusionx_jax.report import look, sections, tables
from tests.report.records import Outside, difference, row

FUSIONX = Method("fusionx")


@pytest.fixture
def outside():
    """A method, an evaluator and a metric (in kilometers) that are registered outside the package."""
    methods.register(methods.Method("registered", "Registered", "Reg.", "#000000", "o"))
    register(Outside())
    metric = metrics.register(metrics.Metric("distance", "distance (km)", "multi", lambda s: s, high=math.inf))
    yield metric
    EVALUATORS.unregister("outside")
    methods.METHODS.unregister("registered")
    metrics.METRICS.unregister("multi/distance")


def _cells(table):
    return {r.name: [c.value for c in r.cells] for r in table.rows}


def test_a_line_holds_the_scores_of_a_method_and_evaluator_by_label_budget():
    rows = [
        row(label="0.1"),
        row(label="1", value=0.7, ci_low=0.69, ci_high=0.71, num_labels=100, num_subsets=1),
        row(label="5-shot", label_fraction=0.2, num_labels=20, value=0.5),
        row(method="untrained", value=0.4),
    ]
    (table,) = tables.score_tables(rows, FUSIONX)
    assert table.heading == "macro mAP (× 100), S1 + S2"
    assert table.columns == ("10 % (10)", "100 % (100)", "5-shot (20)")
    assert _cells(table) == {
        "FusionX-Net (linear probe)": ["60.0", "70.0", "50.0"],
        "same encoder, untrained (linear probe)": ["40.0", "–", "–"],
    }
    # With all labels, subsets do not differ: one is no less than five.
    assert [c.detail for c in table.rows[0].cells] == ["58.0–63.0", "69.0–71.0", "58.0–63.0"]
    assert [r.emphasized for r in table.rows] == [True, False]


def test_lines_state_fewer_subsets_fewer_pretrainings_and_selection_on_the_scored_split():
    rows = [
        row(num_pretrainings=3),
        row(method="croma", num_pretrainings=1, num_subsets=1),
        row(method="band_statistics", num_pretrainings=1),
        row(method="mine", optimistic=True, num_pretrainings=3),
    ]
    names = [r.name for r in tables.score_tables(rows, FUSIONX)[0].rows]
    assert names == [
        "FusionX-Net (linear probe)",
        "CROMA-style (linear probe), 1 pretraining seed",
        "band mean and deviation (linear probe)",  # nothing is pretrained
        "mine (linear probe), selected on the scored split",
    ]
    assert tables.score_tables(rows, FUSIONX)[0].rows[1].cells[0].detail.endswith(", 1 subset")


def test_other_modality_sets_and_other_splits_have_tables_of_their_own():
    rows = [
        row(score_split="val"),
        row(metric="micro_map", score_split="val"),
        row(modalities="s1", score_split="val"),
        row(modalities="s1", zero_filled="s2", score_split="val"),
        row(modalities="s1", metric="micro_map", score_split="val"),
    ]
    assert [t.heading for t in tables.score_tables(rows, FUSIONX)] == [
        "macro mAP (× 100), S1 + S2, val split",
        "micro mAP (× 100), S1 + S2, val split",
        "macro mAP (× 100), S1, val split",
        "macro mAP (× 100), S1 (zeros for S2), val split",
    ]


def test_what_is_registered_outside_the_package_appears(outside):
    rows = [
        row(),
        row(evaluator="outside"),
        row(method="mine"),
        row(method="registered"),
        row(metric="distance", value=12.34, ci_low=1.5, ci_high=120.0),
    ]
    scores, distances = tables.score_tables(rows, FUSIONX)
    assert [r.name for r in scores.rows] == [
        "FusionX-Net (linear probe)",
        "FusionX-Net (an outside evaluator)",
        "Registered (linear probe)",
        "mine (linear probe)",
    ]
    assert distances.heading == "distance (km), S1 + S2"  # not times 100, not clipped to 1
    assert distances.rows[0].cells == (tables.TableCell("12.3", "1.5–120"),)


@pytest.mark.parametrize(
    ("field", "message"), [("evaluator", "no evaluator 'nope'"), ("metric", "no metric 'multi/nope'")]
)
def test_what_is_not_registered_raises(field, message):
    with pytest.raises(InputError, match=message):
        tables.score_tables([row(), row(**{field: "nope"})], FUSIONX)


def test_class_tables_use_the_most_labels_and_leave_out_unscored_classes():
    rows = [
        row(label=label, metric="ap", class_name=name, value=value, ci_low=value - 0.02, ci_high=value + 0.04,
            unscored_classes="rare; never seen")
        for label, value in (("0.1", 0.2), ("1", 0.5)) for name in ("a$b$|c", "rare")
    ]  # fmt: skip
    rows += [r._replace(modalities="s1", value=0.3) for r in rows if r.label == "1"]
    rows.append(row(metric="ap", class_name="a$b$|c", label="5-shot", label_fraction=2.0))
    (table,) = tables.class_tables(rows)
    assert table.heading == "average precision (× 100), task multi, 100 % of the labels"
    assert table.columns == ("FusionX-Net, S1 + S2", "FusionX-Net, S1")
    assert _cells(table) == {"a$b$|c": ["50.0", "30.0"], "rare": ["–", "–"]}
    assert table.rows[0].cells[0].detail == "±3.0"
    scratch = [r._replace(method="supervised_vit", evaluator="scratch") for r in rows if r.label == "1"]
    (both,) = tables.class_tables([*rows, *scratch])
    assert both.columns[2:] == ("ViT, from scratch, labels only, S1 + S2", "ViT, from scratch, labels only, S1")
    assert "Evaluator: linear probe, where no other is named." in both.caption


def test_differences_have_signs_and_verdicts():
    records = [difference(), difference(label="1", reference_minus_method=-0.04, ci_low=-0.06, ci_high=0.01, reference="ties"),
               difference(modalities="s1", evaluator="knn")]  # fmt: skip
    both, alone = tables.difference_tables(records, FUSIONX)
    assert both.heading == "FusionX-Net minus each method, paired: macro mAP (points), S1 + S2"
    assert both.rows[0].cells == (
        tables.TableCell("+2.0", "+1.0 to +3.0, wins"),
        tables.TableCell("-4.0", "-6.0 to +1.0, ties"),
    )
    assert alone.rows[0].name == "same encoder, untrained (kNN)"


def test_variants_stand_below_the_method_that_they_change():
    rows = [row(changes="model.own_share=0.0", value=0.5), row(method="croma", changes="mask_ratio=0.9", value=0.4),
            row(changes="model.own_share=0.0", evaluator="knn", value=0.3)]  # fmt: skip
    ablation = compare.Ablation(
        "d", "fusionx", "model.own_share=0.0", "s1+s2", "", "multi", "linear_probe", "0.1", "multi", "macro_map", 0.5,
        0.61, -0.11, -0.2, -0.05, 5, 1, "test", True,
    )  # fmt: skip
    (table,) = tables.ablation_tables([*rows, row()], [ablation])
    assert _cells(table) == {
        "FusionX-Net (linear probe), 1 pretraining seed": ["61.0"],
        "FusionX-Net: own_share=0.0 (linear probe)": ["50.0"],
        "FusionX-Net: own_share=0.0 (kNN)": ["30.0"],
        "CROMA: mask_ratio=0.9 (linear probe)": ["40.0"],
    }
    assert table.rows[1].cells[0].detail == "-11.0: -20.0 to -5.0"
    assert table.rows[3].cells[0].detail == "58.0–63.0"  # its method was not measured: no difference


def test_labels_needed_are_numbers_bounds_or_never():
    base = compare.LabelsNeeded(
        "d", "fusionx", "", "s1+s2", "", "multi", "linear_probe", "supervised_resnet", "multi", "macro_map", 0.59, 400.4,
        70.0, math.inf, 7000, 70.0, True,
    )  # fmt: skip
    (table,) = tables.needed_tables(
        [base, base._replace(method="croma", labels=70.0, ci_low=70.0, ci_high=80.0)], FUSIONX
    )
    assert table.columns == ("ResNet, macro mAP 59.0",)
    assert [r.cells[0] for r in table.rows] == [("400", "≤ 70 to never"), ("≤ 70", "≤ 70 to 80")]


def test_costs_of_methods_without_pretraining_are_left_open():
    cost = Cost("fusionx", "", 3, 2101888, 1768064, 3.2e8, 500, 32, 0.012, 76.2, 512)
    untrained = cost._replace(
        method="untrained", flops_per_pair=math.nan, num_steps=0, learning_rate=math.nan, pairs_per_s=math.nan
    )
    assert _cells(tables.cost_table([untrained, cost])) == {
        "FusionX-Net": ["3", "2.10", "1.77", "320", "76", "500", "0.012", "512"],
        "same encoder, untrained": ["3", "2.10", "1.77", "–", "–", "0", "–", "512"],
    }


def test_markdown_and_html_render_names_as_they_are(tmp_path):
    name = r"a|b <i>*c*</i> \d $e$ & `f`"
    table = tables.Table("heading", (name,), (tables.TableRow(name, (tables.TableCell("1"),)),))
    values = {
        "title": "t", "subtitle": "", "notices": [], "findings": [], "findings_note": "", "data_text": "",
        "protocol": [name], "commands": "", "contract": "", "sections": [sections.Section(name, [], [table])],
    }  # fmt: skip
    html = Path(look.write(str(tmp_path / "page.html"), "comparison.html", **values)).read_text()
    assert r"<td>a|b &lt;i&gt;*c*&lt;/i&gt; \d $e$ &amp; `f`</td>" in html
    lines = Path(look.write(str(tmp_path / "tables.md"), "tables.md", **values)).read_text().splitlines()
    (line,) = [x for x in lines if x.startswith(r"| a\|b")]
    assert line == r"| a\|b &lt;i>\*c\*&lt;/i> \\d \$e\$ &amp; \`f\` | 1 |"

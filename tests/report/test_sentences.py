from fusionx_jax.evaluate.records import Method
from fusionx_jax.report import sentences
from tests.report.records import difference, row

FUSIONX = Method("fusionx")


def test_findings_follow_the_paired_verdicts():
    records = [
        difference(label="1", reference_minus_method=-0.1, reference="loses"),
        difference(label="0.1", reference_minus_method=0.02, reference="wins"),
        difference(label="0.01", reference_minus_method=0.03, reference="wins"),
        difference(label="5-shot", reference_minus_method=0.0, reference="ties"),
    ]
    assert sentences.findings(records, FUSIONX) == [
        "multi, macro mAP: FusionX-Net against same encoder, untrained (linear probe) wins at 1 % (+3.0), 10 % (+2.0); "
        "ties at 5-shot (+0.0); loses at 100 % (-10.0)."
    ]


def test_a_method_is_compared_on_the_fullest_set_that_it_has():
    records = [difference(), difference(modalities="s1"), difference(method="mae_s1", modalities="s1")]
    first, second = sentences.findings(records, Method("croma"))
    assert "CROMA-style against MAE, S1 alone (linear probe) on S1 wins" in first
    assert "against same encoder, untrained (linear probe) wins" in second


def test_evaluators_outside_figures_are_left_to_tables_unless_there_are_no_others():
    knn = difference(evaluator="knn", reference_evaluator="knn")
    assert len(sentences.findings([difference(), knn], FUSIONX)) == 1
    assert "(kNN)" in sentences.findings([knn], FUSIONX)[0]


def test_the_note_names_the_split_and_single_pretrainings():
    assert sentences.comparison_note([]) == ""
    assert "same val tiles" in sentences.comparison_note([difference(score_split="val")])
    assert "one pretraining" in sentences.comparison_note([difference()])
    tested = [difference(p_holm=0.04), difference(p_holm=0.2), difference(reference="ties", p_holm=1.0)]
    assert "2 of 3 differences do; 1 still do after Holm's correction" in sentences.comparison_note(tested)
    assert "Holm" not in sentences.comparison_note([difference()])
    assert "one pretraining" not in sentences.comparison_note([difference(reference_pretrainings=3)])


def test_the_protocol_names_training_seeds_and_classes_without_examples():
    rows = [
        row(absent_classes="snow_ice", num_subsets=5),
        row(method="croma", label="1", num_subsets=1, num_pretrainings=3, unscored_classes="a; b", pooling=""),
    ]
    first, second, general, absent, unscored = sentences.protocol(rows)
    assert first == (
        "FusionX-Net (linear probe): linear probe; pretraining seeds: 1; label subsets below 100 %: 5; pooling: mean_std."
    )
    assert second == "CROMA-style (linear probe): linear probe; pretraining seeds: 3."
    assert "95 %" in general
    assert absent == "Task multi with 10 % of the labels: some label subset has no example of snow ice."
    assert unscored.endswith("class: a, b.")

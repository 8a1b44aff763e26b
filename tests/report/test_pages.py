import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from fusionx_jax import __main__ as command_line
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate import evaluation, measure, members, rows
from fusionx_jax.evaluate.records import Group, Method, MetricKey, ModalitySet
from fusionx_jax.report import comparison_page, run_page

BOTH = ModalitySet(("s1", "s2"))


@pytest.fixture(scope="module")
def run(evaluated, simulated, tmp_path_factory):
    """A run whose macro mAP is 2 points above the untrained encoder's in every resample, while intervals overlap."""
    workdir = tmp_path_factory.mktemp("run") / "w"
    shutil.copytree(evaluated, workdir)
    opened = evaluation.open_evaluation(str(workdir), simulated, [])
    store = opened.cell_store()
    for method, level in (("fusionx", 0.62), ("untrained", 0.60)):
        cells = store.read(Group(Method(method), BOTH, "multi", "linear_probe"))
        noise = np.linspace(-0.1, 0.1, len(next(iter(cells.values())).values[MetricKey("macro_map")]))
        noise[0] = 0
        store.add(c._replace(values={**c.values, MetricKey("macro_map"): level + noise}) for c in cells.values())
    measure.evaluate(opened)
    run_page.make(str(workdir))
    return workdir


@pytest.fixture(scope="module")
def comparison(run, simulated, tmp_path_factory):
    """A comparison of that run with a method that is not registered: the same weights and cells under another name."""
    workdir = tmp_path_factory.mktemp("comparison")
    about = members.to_json(members.describe(evaluation.open_evaluation(str(run), simulated, [])))
    for name in ("fusionx", "mine"):
        member = Path(members.member_workdir(str(workdir), Method(name), 0))
        shutil.copytree(run, member)
        (member / members.MEMBER_FILE).write_text(about)
    store = evaluation.open_evaluation(str(member), simulated, []).cell_store()
    groups = store.read_all()
    shutil.rmtree(store.directory)
    for group, cells in groups.items():
        if group.method.name == "fusionx":
            store.add(c._replace(group=group._replace(method=Method("mine"))) for c in cells.values())
    sweep = {"dataset": simulated, "methods": {"fusionx": [0], "mine": [0]}, "commands": [["--config=configs/demo.py"]]}
    (workdir / members.SWEEP_FILE).write_text(json.dumps(sweep))
    assert command_line.main(["report", f"--workdir={workdir}"]) == 0
    return workdir


def test_pages_are_self_contained_files_that_say_simulated(run, comparison):
    for workdir in (run, comparison):
        html = (workdir / "report.html").read_text()
        assert not re.findall(r'(?:src|href)="(?!data:)', html)
        assert "All data on this page are simulated" in html
        assert "Too few tiles to compare methods" in html  # forty test tiles
        assert "FusionX-Net (linear probe)" in html
        assert "fusionx report --workdir=" in html


def test_both_pages_decide_by_paired_differences_where_intervals_overlap(run, comparison):
    means = rows.select(
        rows.read(run / rows.FILE_NAME), level=rows.MEAN, metric="macro_map", modalities="s1+s2", label="0.5"
    )
    row = {r.method: r for r in means if r.evaluator == "linear_probe"}
    assert row["fusionx"].ci_low < row["untrained"].ci_high  # the intervals overlap
    for workdir in (run, comparison):
        html = (workdir / "report.html").read_text()
        (finding,) = re.findall(
            r"<li>multi, macro mAP: FusionX-Net against same encoder, untrained \(linear.*?</li>", html
        )
        assert finding.endswith("wins at 5\u00a0% (+2.0), 50\u00a0% (+2.0), 100\u00a0% (+2.0).</li>")


def test_numbers_on_the_page_are_those_of_the_rows(run):
    html = (run / "report.html").read_text()
    chosen = rows.select(rows.read(run / rows.FILE_NAME), metric="macro_map", level=rows.MEAN, modalities="s1")
    assert chosen
    for r in chosen:
        assert f"<td>{100 * r.value:.1f}<small>{100 * r.ci_low:.1f}–{100 * r.ci_high:.1f}" in html


def test_markdown_tables_are_whole_and_hold_the_same_numbers(run, comparison):
    lines = (run / "tables.md").read_text().splitlines()
    line = next(x for x in lines if x.startswith("| FusionX-Net (linear probe) |"))
    assert [c.split()[0] for c in line.strip("|").split("|")[1:]] == ["62.0", "62.0", "62.0"]
    for workdir in (run, comparison):
        lines = (workdir / "tables.md").read_text().splitlines()
        heads = [i for i, x in enumerate(lines) if x.startswith("|---")]
        assert len(heads) >= 8
        for i in heads:  # a head, then lines of as many columns up to a blank line
            end = next(j for j in range(i, len(lines) + 1) if j == len(lines) or not lines[j])
            assert end > i + 1
            assert {x.count("|") for x in lines[i - 1 : end]} == {lines[i].count("|")}


def test_a_method_that_is_not_registered_has_lines_and_differences_under_its_name(comparison):
    html = (comparison / "report.html").read_text()
    assert "<td>mine (linear probe)</td>" in html
    assert "FusionX-Net against mine (linear probe) ties" in html
    assert "2 methods; 1 pretraining seed each; 140 train" in html


def test_figures_have_three_formats(run, comparison):
    for workdir, extra in (
        (run, ("training", "classes")),
        (comparison, ("embedding", "confusion", "cross_predictions")),
    ):
        names = set(os.listdir(workdir / "figures"))
        for name in ("label_efficiency_multi", "label_efficiency_single", "reconstructions", *extra):
            assert {f"{name}.png", f"{name}.svg", f"{name}.pdf"} <= names
        assert all(n.endswith((".png", ".svg", ".pdf")) for n in names)


def test_a_workdir_without_evaluation_still_gets_a_page_that_says_what_to_run(trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "w")
    html = Path(run_page.make(str(workdir))).read_text()
    assert "No evaluation yet: run fusionx evaluate" in html


def test_folders_without_a_run_or_members_are_refused(tmp_path, simulated):
    with pytest.raises(InputError, match="not a FusionX-Net checkpoint"):
        run_page.make(str(tmp_path))
    (tmp_path / members.SWEEP_FILE).write_text(json.dumps({"dataset": simulated, "methods": {"fusionx": [0]}}))
    with pytest.raises(InputError, match="No run of the comparison"):
        comparison_page.make(str(tmp_path))


def test_damaged_settings_of_an_evaluation_are_refused(trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "w")
    (workdir / "evaluation.json").write_text("{")
    with pytest.raises(InputError, match=r"evaluation\.json is damaged"):
        run_page.make(str(workdir))

import os
import re
import shutil
from pathlib import Path

import pytest

from fusionx_jax.errors import InputError
from fusionx_jax.evaluate import evaluation, measure
from fusionx_jax.evaluate import rows as rows_lib
from fusionx_jax.report import run_page


@pytest.fixture(scope="module")
def reported(trained, simulated, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("reported") / "w"
    shutil.copytree(trained, workdir)
    measure.evaluate(evaluation.open_evaluation(str(workdir), simulated, ["--config.evaluate.modalities=('s1+s2',)"]))
    run_page.make(str(workdir))
    return workdir


def test_page_is_one_self_contained_file_that_says_simulated(reported):
    html = (reported / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    assert html.count("data:image/png;base64,") >= 4
    assert "All data on this page are simulated" in html
    assert "Too few tiles for a claim" in html  # forty test tiles
    for method in ("FusionX-Net (linear probe)", "untrained", "band mean and deviation", "from scratch"):
        assert method in html
    assert "source_version" in html
    assert "fusionx evaluate --workdir=" in html


def test_numbers_on_the_page_are_those_of_the_rows(reported):
    html = (reported / "report.html").read_text()
    rows = rows_lib.read(reported / rows_lib.FILE_NAME)
    for r in rows:
        if (r.metric, r.seed, r.modalities) == ("macro_map", rows_lib.ALL_SEEDS, "s1+s2"):
            assert f"<td>{100 * r.value:.1f}<small>{100 * r.ci_low:.1f}–{100 * r.ci_high:.1f}" in html


def test_the_tables_are_left_as_markdown_with_the_same_numbers(reported):
    lines = (reported / "tables.md").read_text().splitlines()
    own = [x for x in lines if x.startswith("| FusionX-Net (linear probe) |")]
    rows = rows_lib.select(rows_lib.read(reported / rows_lib.FILE_NAME), task="multi")
    of = [
        r for r in rows if (r.method, r.evaluator, r.modalities, r.seed) == ("fusionx", "linear_probe", "s1+s2", "all")
    ]
    scores = [r for r in of if r.metric == "macro_map"]
    cells = [c.strip() for c in own[0].strip("|").split("|")[1:]]
    assert [c.split(" ")[0] for c in cells] == [f"{100 * r.value:.1f}" for r in scores]
    tables = [i for i, x in enumerate(lines) if x.startswith("|---")]
    assert len(tables) >= 5
    for i in tables:  # whole tables: a head, then lines of as many columns, up to a blank line
        end = next(j for j in range(i, len(lines) + 1) if j == len(lines) or not lines[j])
        assert end > i + 1
        assert {x.count("|") for x in lines[i - 1 : end]} == {lines[i].count("|")}
    assert "**All data on this page are simulated." in "\n".join(lines)


def test_figures_are_left_as_png_svg_and_pdf(reported):
    names = set(os.listdir(reported / "figures"))
    for name in ("label_efficiency_multi", "label_efficiency_single", "reconstructions", "training", "classes"):
        assert {f"{name}.png", f"{name}.svg", f"{name}.pdf"} <= names
    assert not [n for n in names if n.startswith(".")]


def test_a_workdir_without_evaluation_still_gets_a_page_that_says_what_to_run(trained):
    html = Path(run_page.make(trained)).read_text()
    assert "No evaluation yet: run fusionx evaluate" in html


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a FusionX-Net checkpoint"):
        run_page.make(str(tmp_path))


def _row(method, value, low, high, fraction=0.1):
    return rows_lib.Row(
        "d", method, "s1+s2", "multi", "scratch" if method == "supervised" else "linear_probe", f"{fraction:g}", fraction,
        10, rows_lib.ALL_SEEDS, "macro_map", value, low, high, 5, 1, "linear probe", "mean", "", "", "", True, "", "",
    )  # fmt: skip


def test_claims_follow_the_intervals():
    rows = [
        _row("fusionx", 0.6, 0.58, 0.62),
        _row("untrained", 0.5, 0.48, 0.57),
        _row("band_statistics", 0.61, 0.59, 0.63),
    ]
    rows += [_row("supervised", 0.7, 0.65, 0.75)]
    clear, overlap, lost = run_page.compare(rows, "macro_map")
    assert "leads clearly (95 % intervals apart) at 10 % (+10.0 points)" in clear
    assert "trails within overlapping intervals at 10 % (-1.0 points)" in overlap
    assert "trails clearly" in lost

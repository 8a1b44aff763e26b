import matplotlib
import numpy as np
import pytest

from fusionx_jax import files, methods
from fusionx_jax.evaluate import metrics
from fusionx_jax.evaluate.evaluators import EVALUATORS, register
from fusionx_jax.evaluate.members import Cost
from fusionx_jax.evaluate.records import Method
from fusionx_jax.report import figures, look
from tests.report.records import Outside, row

FUSIONX = Method("fusionx")
MACRO = metrics.find("multi", "macro_map")


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn instead of written."""
    out = {}

    def save(figure, directory, name):
        out[name] = figure
        return name

    monkeypatch.setattr(look, "save", save)
    yield out
    for figure in out.values():
        look.pyplot().close(figure)


def _lines(axis):
    return {tuple(np.round(line.get_ydata(), 3)): line for line in axis.get_lines()}


def test_curves_hold_values_and_intervals_of_every_method_and_evaluator_by_modality_set(drawn):
    register(Outside())
    rows = [
        row(label="1", value=0.7), row(label="0.1", value=0.6, ci_low=0.5, ci_high=0.65),
        row(evaluator="outside", label="0.1", value=0.2), row(method="mine", label="1", value=0.4),
        row(modalities="s1", label="0.1", value=0.3), row(modalities="s1", zero_filled="s2", value=0.9),
        row(evaluator="knn", value=0.1), row(label="5-shot", label_fraction=0.3), row(level="subset", seed=0),
        row(metric="micro_map"), row(metric="ap", class_name="x"),
    ]  # fmt: skip
    try:
        assert figures.label_efficiency(rows, MACRO, FUSIONX, "", "curves") == "curves"
    finally:
        EVALUATORS.unregister("outside")
    both, alone = drawn["curves"].axes
    assert (both.get_title(), alone.get_title()) == ("S1 + S2", "S1")
    lines = _lines(both)
    assert set(lines) == {(60.0, 70.0), (20.0,), (40.0,)}
    line = lines[60.0, 70.0]
    np.testing.assert_allclose(line.get_xdata(), [10, 100])
    assert line.get_linewidth() > lines[(40.0,)].get_linewidth()
    assert line.get_color() == methods.presentation("fusionx").color
    assert lines[(20.0,)].get_linestyle() == "-."
    assert set(_lines(alone)) == {(30.0,)}
    band = both.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((50, 65))
    legend = [t.get_text() for t in drawn["curves"].legends[0].get_texts()]
    assert legend == ["FusionX-Net (linear probe)", "FusionX-Net (an outside evaluator)", "mine (linear probe)"]
    assert "(simulated data)" in drawn["curves"].get_suptitle()
    assert both.get_ylabel() == "macro mAP (× 100)"


def test_figures_fall_back_to_what_there_is(drawn):
    assert figures.label_efficiency([row(label="5-shot")], MACRO, FUSIONX, "", "none") is None
    only = row(evaluator="knn", modalities="s1", zero_filled="s2")
    figures.label_efficiency([only], MACRO, FUSIONX, "", "knn")
    assert [t.get_title() for t in drawn["knn"].axes] == ["S1 (zeros for S2)"]


def cost(method="fusionx", changes="", num_steps=100):
    return Cost(method, changes, 1, 1, 1, 1.0, num_steps, 1, 1.0, 1.0)


def test_variants_that_differ_in_steps_alone_are_one_line_over_steps(drawn):
    longer, wider = "num_steps=400/optimizer.warmup_steps=40", "mask_ratio=0.9"
    rows = [
        row(value=0.6), row(changes=longer, value=0.7, ci_low=0.66, ci_high=0.74), row(changes=wider, value=0.5),
        row(method="untrained", value=0.55), row(label="1", value=0.8), row(evaluator="linear_probe_apart", value=0.1),
    ]  # fmt: skip
    costs = [cost(), cost(changes=longer, num_steps=400), cost(changes=wider), cost("untrained", num_steps=0)]
    assert figures.over_steps(rows, costs, MACRO, "", "steps") == "steps"
    few, every = drawn["steps"].axes
    assert (few.get_title(), every.get_title()) == ("10 % of the labels", "100 % of the labels")
    lines = _lines(few)
    assert set(lines) == {(60.0, 70.0), (50.0,), (55.0, 55.0)}
    np.testing.assert_allclose(lines[60.0, 70.0].get_xdata(), [100, 400])
    assert set(_lines(every)) == {(80.0,)}
    legend = [t.get_text() for t in drawn["steps"].legends[0].get_texts()]
    assert legend == ["FusionX-Net", "FusionX-Net: mask_ratio=0.9", "same encoder, untrained"]


def test_every_evaluator_has_its_line_over_steps(drawn):
    longer = "num_steps=400"
    rows = [
        row(value=0.6), row(changes=longer, value=0.7), row(evaluator="finetune", value=0.3),
        row(evaluator="finetune", changes=longer, value=0.4),
    ]  # fmt: skip
    figures.over_steps(rows, [cost(), cost(changes=longer, num_steps=400)], MACRO, "", "steps")
    assert set(_lines(drawn["steps"].axes[0])) == {(60.0, 70.0), (30.0, 40.0)}
    legend = [t.get_text() for t in drawn["steps"].legends[0].get_texts()]
    assert legend == ["FusionX-Net (linear probe)", "FusionX-Net (fine-tuned)"]


def test_without_several_numbers_of_steps_nothing_is_drawn_over_them(drawn):
    assert (
        figures.over_steps([row(), row(method="untrained")], [cost(), cost("untrained", num_steps=0)], MACRO, "", "n")
        is None
    )


def test_every_loss_is_drawn(drawn, tmp_path):
    names = ["loss", *(f"loss_m{i}" for i in range(9))]
    lines = [",".join(["step", *names, "pairs_per_s", "input_wait_share"])]
    lines += [",".join([str(s), *(str(i + s) for i in range(10)), "5", "0.25"]) for s in (1, 2)]
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    assert figures.loss_curves(str(tmp_path / "metrics.csv"), "", simulated=True) == "training"
    losses, speed = drawn["training"].axes
    assert {tuple(line.get_ydata()) for line in losses.get_lines()} == {(i + 1, i + 2) for i in range(10)}
    assert [t.get_text() for t in losses.get_legend().get_texts()] == ["weighted sum", *(f"m{i}" for i in range(9))]
    assert speed.get_title() == "25.0 % of the time waiting for input"
    (tmp_path / "metrics.csv").write_text(lines[0])
    assert figures.loss_curves(str(tmp_path / "metrics.csv"), "", simulated=True) is None


def test_confusions_are_shares_of_the_true_class(drawn):
    counts = {FUSIONX: np.array([[3, 1], [0, 0]]), Method("mine"): np.array([[0, 1], [1, 1]])}
    figures.confusion(counts, ("sea", "snow_ice"), "title", "")
    first, second = drawn["confusion"].axes[:2]
    np.testing.assert_allclose(first.images[0].get_array(), [[0.75, 0.25], [0, 0]])
    assert sorted(t.get_text() for t in first.texts) == ["25", "75"]
    assert [t.get_text() for t in first.get_xticklabels()] == ["sea", "snow ice"]
    assert second.get_title() == "mine"


def test_features_of_a_class_have_one_color_and_separate_classes_stay_apart(drawn):
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 2], 12)
    features = rng.normal(size=(24, 5)) + 50 * labels[:, None]
    figures.embedding({FUSIONX: features}, labels, ("a", "b", "c"), "title", "")
    first = drawn["embedding"].axes[0]
    points = [c.get_offsets() for c in first.collections]
    assert [len(p) for p in points] == [12, 12]
    centers = [p.mean(0) for p in points]
    spread = max(np.linalg.norm(p - c, axis=1).mean() for p, c in zip(points, centers))
    assert np.linalg.norm(centers[0] - centers[1]) > spread
    assert [t.get_text() for t in drawn["embedding"].legends[0].get_texts()] == ["a", "c"]


def test_class_names_are_drawn_as_they_are(tmp_path):
    name = r"$x_1$ \alpha {b}"
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figures.confusion({FUSIONX: np.eye(2, dtype=int)}, (name, "b"), f"{name} title", str(tmp_path))
    svg = (tmp_path / "confusion.svg").read_text()
    shown = name.replace("_", " ")
    assert svg.count(f">{shown}<") == 2  # of both axes
    assert f">{name} title<" in svg
    assert {p.name for p in tmp_path.iterdir()} == {"confusion.png", "confusion.svg", "confusion.pdf"}


def test_figures_and_pages_are_written_to_addresses():
    folder = "memory://report/figures"
    path = figures.label_efficiency([row(), row(label="1")], MACRO, FUSIONX, folder, "curves")
    assert path == f"{folder}/curves.png"
    assert look.embed(path).startswith("data:image/png;base64,iVBOR")
    values = {"title": "a|b", "subtitle": "", "notices": [], "findings": [], "findings_note": "", "sections": []}
    assert "# a\\|b" in files.read_text(look.write("memory://report/tables.md", "tables.md", **values))
    assert files.listdir(folder) == ["curves.pdf", "curves.png", "curves.svg"]


def test_a_character_that_the_font_lacks_is_said_once_and_drawn_as_a_box(tmp_path, caplog):
    plt = look.pyplot()
    if len(plt.rcParams["font.family"]) > 1:
        pytest.skip("a font with Chinese characters is installed")
    with caplog.at_level("WARNING", logger="fusionx"):
        for name in ("a", "b"):
            figure, axes = plt.subplots()
            axes.set_title("\u6c34")
            look.save(figure, str(tmp_path), name)
    assert [r.message for r in caplog.records if "a box for the character CJK UNIFIED IDEOGRAPH-6C34" in r.message]
    assert len([r for r in caplog.records if "a box for the character" in r.message]) == 1

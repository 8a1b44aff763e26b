"""One entry of each registry added from outside the package, found in a run, in the report and in help."""

import shutil
import sys
import types
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from fusionx_jax import __main__ as command_line
from fusionx_jax import config as config_lib
from fusionx_jax import masking
from fusionx_jax.evaluate import compare, measure, metrics, rows
from fusionx_jax.evaluate.evaluation import open_evaluation
from fusionx_jax.evaluate.evaluators import EVALUATORS, Evaluator, Scored, register
from fusionx_jax.evaluate.evaluators.base import TILE_KINDS
from fusionx_jax.evaluate.sources import BASELINES, Baseline
from fusionx_jax.methods import METHODS, Method
from tests.helpers import ROOT, TINY


class NearestMean(Evaluator):
    """Similarity to the mean feature of each class."""

    name = "nearest_mean"
    label = "nearest class mean"
    in_figures = True

    def score_kind(self, task_kind):
        return task_kind if task_kind in TILE_KINDS else ""

    def score(self, source, problem, keys):
        train, test = source.features("train"), source.features(problem.score_split)
        targets = problem.labels.targets["train"]
        for key in keys:
            members = problem.subsets[key]
            share = targets[members] / np.maximum(targets[members].sum(0), 1)
            yield [Scored(key, test @ (share.T @ train[members]).T, "", "nearest class mean")]


def _first_pixels(evaluation, modalities, acquisitions=1):
    """A baseline: the number of tiles before each tile."""
    from fusionx_jax.evaluate.evaluators import Source

    def features(split):
        return np.arange(evaluation.prepared.size(split))[:, None] / 100.0

    return Source("position", modalities, features, None, evaluation.untrained, trainable=False)


@pytest.fixture
def extended() -> Iterator[None]:
    register(NearestMean())
    metrics.register(
        metrics.Metric("positives", "positives", "multi", lambda s: s.weights.T @ s.targets.sum(1), high=1e9)
    )
    METHODS.register("mine", Method("mine", "My own method", "mine", "#123456", "p"))
    METHODS.register("position", Method("position", "position in the split", "position", "#654321", "h"))
    BASELINES.register("position", Baseline(_first_pixels, encodes=False))
    yield
    EVALUATORS.unregister("nearest_mean")
    metrics.METRICS.unregister("multi/positives")
    METHODS.unregister("mine")
    METHODS.unregister("position")
    BASELINES.unregister("position")


def test_an_evaluator_a_metric_a_baseline_and_a_method_are_found_in_a_run_and_in_its_report(
    evaluated, simulated, tmp_path, extended
):
    workdir = str(shutil.copytree(evaluated, tmp_path / "w", ignore=shutil.ignore_patterns("cells", "*.csv")))
    overrides = [
        "--config.evaluate.evaluators=('nearest_mean',)", "--config.evaluate.tasks=('multi',)",
        "--config.evaluate.modalities=('s1',)", "--config.evaluate.baselines=('position',)",
        "--config.label_fractions=(0.5,1.0)", "--config.method=mine",
    ]  # fmt: skip
    measure.evaluate(open_evaluation(workdir, simulated, overrides))
    found = rows.read(f"{workdir}/{rows.FILE_NAME}")
    assert {(r.method, r.evaluator) for r in found} == {("mine", "nearest_mean"), ("position", "nearest_mean")}
    assert {r.value for r in found if r.metric == "positives"} != {1.0}  # a count, not clipped to [0, 1]
    table = rows.read_table(f"{workdir}/{measure.DIFFERENCES_FILE}", compare.Difference)
    assert {d.method for d in table} == {"position"}
    assert command_line.main(["report", f"--workdir={workdir}"]) == 0
    page = (tmp_path / "w" / "report.html").read_text()
    for label in ("My own method", "position in the split", "nearest class mean", "positives"):
        assert label in page
    measured = measure.measure(open_evaluation(workdir, simulated, overrides))
    assert all(c.values for cells in measured.values() for c in cells.values())


def test_rows_of_an_evaluator_that_is_not_registered_are_refused_by_the_report(
    evaluated, simulated, tmp_path, extended, capsys
):
    workdir = shutil.copytree(evaluated, tmp_path / "w")
    text = (workdir / "results.csv").read_text().replace(",linear_probe,", ",magic_probe,")
    (workdir / "results.csv").write_text(text)
    assert command_line.main(["report", f"--workdir={workdir}"]) == 2
    assert "no evaluator 'magic_probe'" in capsys.readouterr().err


def test_a_command_is_found_in_help_and_runs(monkeypatch, capsys):
    module = types.ModuleType("greeting")
    module.main = lambda argv: print("hello", *argv) or 0
    monkeypatch.setitem(sys.modules, "greeting", module)
    command_line.COMMANDS.register("greet", command_line.Command("greeting", "print a greeting"))
    try:
        assert command_line.main(["--help"]) == 0
        assert "greet      print a greeting" in capsys.readouterr().out
        assert command_line.main(["greet", "you"]) == 0
        assert capsys.readouterr().out == "hello you\n"
    finally:
        command_line.COMMANDS.unregister("greet")
    assert command_line.main(["greet"]) == 2


def test_a_masking_is_selected_by_its_name_and_takes_options_of_its_own(simulated, tmp_path):
    import dataclasses

    from fusionx_jax import pretrain

    @dataclasses.dataclass(frozen=True)
    class Stripes:
        """The first columns of every modality are visible."""

        offset: int

        def __call__(self, key, batch, grids, visible, has_data=None):
            out = {}
            for name, (height, width) in grids.items():
                order = jax.numpy.roll(jax.numpy.arange(height * width), self.offset)
                order = jax.numpy.broadcast_to(order, (batch, height * width))
                out[name] = masking.Mask(order[:, : visible[name]], order[:, visible[name] :], None)
            return out

    masking.MASKINGS.register("stripes", Stripes)
    try:
        c = config_lib.load_file(str(ROOT / "configs/demo.py"))
        with c.unlocked():
            c.masking_options.stripes = {"offset": 3}
        overrides = [*TINY, f"--config.dataset={simulated}", "--config.masking=stripes", "--config.num_steps=1"]
        assert pretrain.run(config_lib.override(c, overrides), str(tmp_path / "w")) == 0
    finally:
        masking.MASKINGS.unregister("stripes")

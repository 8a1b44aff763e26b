import csv
import json

import pytest

from tests.helpers import EARLY, TINY, run_cli


def _run(*arguments, timeout=600):
    return run_cli("experiments.gpu", *arguments, timeout=timeout)


@pytest.mark.slow
def test_the_step_is_measured_and_the_comparison_runs_in_the_time_that_is_left(simulated, tmp_path):
    done = _run(
        f"--out={tmp_path / 'out'}", "--bench=configs/speed.py:demo", "--rounds=1", f"--dataset={simulated}",
        "--config=configs/demo.py", "--methods=fusionx,untrained", "--seeds=1", "--jobs=1", *TINY, *EARLY,
        "--config.evaluate.modalities=('s1+s2',)",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    bench = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert bench["sizes"]["speed:demo"]["pairs_per_s"] > 0
    with open(tmp_path / "out" / "sweep" / "results.csv", newline="") as f:
        assert {r["method"] for r in csv.DictReader(f)} >= {"fusionx", "untrained"}
    assert (tmp_path / "out" / "sweep" / "report.html").exists()


def test_a_measurement_that_does_not_fit_is_said_and_the_comparison_is_not_started(tmp_path):
    done = _run(f"--out={tmp_path / 'out'}", "--minutes=0.02", f"--dataset={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "not finished after 1 s" in json.loads((tmp_path / "out" / "bench.json").read_text())["failed"]
    assert "it is not started" in done.stderr
    assert _run(f"--out={tmp_path}", "--minutes=0").returncode == 2

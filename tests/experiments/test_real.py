import csv

import pytest

from tests.data import fakes
from tests.helpers import run_cli

CITIES = ("abudhabi", "aguasclaras", "beihai", "bordeaux", "hongkong", "mumbai", "nantes", "rennes")


def _run(*arguments, timeout=120):
    return run_cli("experiments.real", *arguments, timeout=timeout)


@pytest.mark.slow
def test_the_comparison_on_real_data_runs_from_raw_files_to_tables_and_resumes(tmp_path):
    raw = tmp_path / "raw"
    fakes.oscd(raw / "oscd", dict.fromkeys(CITIES, True), size=64)
    fakes.bigearthnet_patches(raw / "bigearthnet120", [f"33U{a}P" for a in "ABCDEFGH"])
    arguments = (
        f"--raw={raw}", f"--workdir={tmp_path / 'w'}", f"--prepared={tmp_path / 'prepared'}", "--jobs=1", "--seeds=1",
        "--config.num_steps=4", "--config.optimizer.warmup_steps=2", "--config.batch_size=4",
        "--config.label_fractions=(0.5,)", "--config.evaluate.seeds=1", "--config.evaluate.bootstrap=20",
        "--config.evaluate.forest.trees=5",
    )  # fmt: skip
    done = _run("--methods=fusionx,untrained", *arguments, timeout=1500)
    assert done.returncode == 0, done.stderr
    tables = {}
    for name, task in (("bigearthnet_patches", "multi"), ("oscd", "change")):
        with open(tmp_path / "w" / name / "results.csv", newline="") as f:
            tables[name] = list(csv.DictReader(f))
        assert {r["task"] for r in tables[name]} == {task}
        assert {"fusionx", "untrained", "band_statistics", "texture", "texture_forest"} <= {
            r["method"] for r in tables[name]
        }
        assert {r["score_split"] for r in tables[name]} == {"folds"}
        with open(tmp_path / "w" / name / "fusion_gains.csv", newline="") as f:
            gains = list(csv.DictReader(f))
        assert {g["against"] for g in gains if g["method"] == "fusionx"} >= {"modalities encoded alone"}
        for g in gains:
            assert float(g["gain"]) == pytest.approx(float(g["together"]) - float(g["other"]), abs=1e-5)
        assert (tmp_path / "w" / name / "report.html").exists()
    assert "change_vector" in {r["method"] for r in tables["oscd"]}
    log = tmp_path / "w" / "weights" / "fusionx" / "seed0" / "metrics.csv"
    before = log.read_text()
    assert _run("--methods=fusionx", *arguments, timeout=600).returncode == 0
    assert log.read_text() == before


def test_a_missing_folder_is_one_sentence(tmp_path):
    done = _run(f"--raw={tmp_path / 'none'}")
    assert done.returncode == 2
    assert "There is no folder" in done.stderr

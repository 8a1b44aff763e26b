import argparse
import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import paper_cpu
from experiments import sweep
from fusionx_jax import __main__ as command_line
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate import hashes, measure, members, settings
from fusionx_jax.evaluate import rows as rows_lib
from fusionx_jax.evaluate.records import CellKey, Group, LabelBudget, Method, ModalitySet, parse_method
from fusionx_jax.report import comparison_page
from tests.helpers import EARLY, ROOT, TINY, assert_clear, run_cli

BASE = "configs/demo.py"
QUICK = (
    *TINY,
    "--config.evaluate.cv_folds=2",
    "--config.evaluate.regularization=(0.01, 0.1)",
    "--config.evaluate.supervised.learning_rates=(1e-3,)",
)
COMPARED = (*QUICK, *EARLY, "--config.evaluate.modalities=('s1+s2',)")
METHODS = ("fusionx", "fusionx/masking=consistent", "supervised_resnet", "untrained")


def _args(workdir, dataset, **options):
    return argparse.Namespace(
        **{"config": BASE, "workdir": workdir, "dataset": dataset, "train_on": "", "weights": "", **options}
    )


@pytest.fixture(scope="module")
def compared(simulated, tmp_path_factory):
    """A comparison of four methods, two of them with two seeds, made in this process."""
    workdir = str(tmp_path_factory.mktemp("compared"))
    seeds = {"fusionx": [0, 1], "untrained": [0, 1]}
    for method in METHODS:
        for seed in seeds.get(method, [0]):
            assert sweep.run_one(_args(workdir, simulated), sweep.Run(parse_method(method), seed), COMPARED) == 0
    with open(f"{workdir}/{members.SWEEP_FILE}", "w") as f:
        json.dump({"dataset": simulated, "methods": {m: seeds.get(m, [0]) for m in METHODS}}, f)
    members.write_tables(workdir)
    return workdir


def _table(workdir, name):
    with open(f"{workdir}/{name}", newline="") as f:
        return list(csv.DictReader(f))


def _values(workdir, **wanted):
    chosen = rows_lib.select(rows_lib.read(f"{workdir}/results.csv"), metric="macro_map", modalities="s1+s2", **wanted)
    return {(r.method, r.changes, r.level, r.seed): r for r in chosen}


@pytest.mark.slow
def test_rows_hold_every_method_with_its_pretraining_seeds(compared):
    found = _values(compared, label="0.5")
    specs = {Method(m, c).spec for m, c, _, _ in found}
    assert specs == {*METHODS, "band_statistics"}
    whole = {Method(m, c).spec: r for (m, c, level, _), r in found.items() if level == rows_lib.MEAN}
    assert whole["fusionx"].num_pretrainings == whole["untrained"].num_pretrainings == 2
    assert whole["band_statistics"].num_pretrainings == 1
    assert whole["band_statistics"].pooling == ""
    each = [found["fusionx", "", rows_lib.PRETRAINING, seed].value for seed in (0, 1)]
    assert whole["fusionx"].value == pytest.approx(np.mean(each), abs=1e-6)
    assert whole["supervised_resnet"].evaluator == "scratch"


@pytest.mark.slow
def test_comparisons_on_several_sets_share_weights(compared, simulated, tmp_path):
    other = shutil.copytree(simulated, tmp_path / "other")
    text = (other / "contract.json").read_text().replace('"name": "simulated"', '"name": "other"')
    (other / "contract.json").write_text(text)
    workdir = str(tmp_path / "second")
    args = _args(workdir, str(other), train_on=simulated, weights=compared)
    only_knn = [*COMPARED, "--config.evaluate.evaluators=('knn',)"]
    log = Path(members.member_workdir(compared, Method("fusionx"), 0)) / "metrics.csv"
    before = log.read_text()
    assert sweep.run_one(args, sweep.Run(Method("fusionx"), 0), only_knn) == 0
    assert log.read_text() == before
    with open(f"{workdir}/{members.SWEEP_FILE}", "w") as f:
        json.dump({"dataset": str(other), "methods": {"fusionx": [0]}}, f)
    members.write_tables(workdir)
    table = _table(workdir, "results.csv")
    assert {(r["dataset"], r["evaluator"]) for r in table} == {("other", "knn")}
    about = members.read_about(workdir, Method("fusionx"), 0)
    assert members.weights_workdir(workdir, Method("fusionx"), about) == members.member_workdir(
        compared, Method("fusionx"), 0
    )
    assert about.pairs_per_s > 0


@pytest.mark.slow
def test_differences_are_paired_and_their_verdict_follows_the_interval(compared):
    groups = members.measured(members.read_members(compared))

    def mean(method, evaluator, label, subsets):
        group = Group(Method(method), ModalitySet(("s1", "s2")), "multi", evaluator)
        keys = [CellKey(LabelBudget(float(label)), s) for s in range(subsets)]
        return np.mean([[p.cells[key].value("macro_map") for key in keys] for p in groups[group]])

    table = [t for t in _table(compared, "differences.csv") if (t["metric"], t["modalities"]) == ("macro_map", "s1+s2")]
    assert {t["method"] for t in table} == {"untrained", "supervised_resnet", "band_statistics"}
    assert {t["num_subsets"] for t in table if t["label"] == "0.5"} == {"1", "2"}
    for t in table:
        subsets = int(t["num_subsets"])
        gap = mean("fusionx", "linear_probe", t["label"], subsets) - mean(
            t["method"], t["evaluator"], t["label"], subsets
        )
        assert float(t["reference_minus_method"]) == pytest.approx(gap, abs=1e-5)
        low, high = float(t["ci_low"]), float(t["ci_high"])
        assert t["reference"] == ("wins" if low > 0 else "loses" if high < 0 else "ties")


@pytest.mark.slow
def test_ablations_are_paired_with_the_same_seed_of_what_they_change(compared):
    table = [t for t in _table(compared, "ablations.csv") if t["metric"] == "macro_map"]
    table = [t for t in table if (t["modalities"], t["evaluator"]) == ("s1+s2", "linear_probe")]
    assert {(t["method"], t["changes"], t["num_pretrainings"]) for t in table} == {
        ("fusionx", "masking=consistent", "1")
    }
    for t in table:
        found = _values(compared, label=t["label"], evaluator="linear_probe")
        variant = found["fusionx", "masking=consistent", rows_lib.MEAN, -1].value
        gap = variant - found["fusionx", "", rows_lib.PRETRAINING, 0].value
        assert float(t["variant_minus_method"]) == pytest.approx(gap, abs=1e-5)
        assert float(t["ci_low"]) <= float(t["variant_minus_method"]) <= float(t["ci_high"])


@pytest.mark.slow
def test_costs_and_labels_needed_are_listed(compared):
    cost = {t["method"]: t for t in _table(compared, "methods.csv") if not t["changes"]}
    assert float(cost["fusionx"]["flops_per_pair"]) > 1e7
    assert cost["untrained"]["flops_per_pair"] == cost["untrained"]["learning_rate"] == "nan"
    assert int(cost["fusionx"]["parameters"]) == int(cost["untrained"]["parameters"])
    needed = _table(compared, "labels_needed.csv")
    assert {t["target_method"] for t in needed} == {"supervised_resnet"}
    assert all(float(t["labels"]) >= float(t["least_tried"]) for t in needed)


@pytest.mark.slow
def test_a_second_time_nothing_is_trained_or_measured(compared, simulated, monkeypatch):
    from fusionx_jax.training import step

    monkeypatch.setattr(step, "train_step", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(measure._Scorer, "cell", lambda *_: pytest.fail("measured again"))
    assert sweep.run_one(_args(compared, simulated), sweep.Run(parse_method("fusionx"), 0), COMPARED) == 0


@pytest.mark.slow
def test_the_page_of_a_comparison_shows_every_part(compared, tmp_path):
    workdir = shutil.copytree(compared, tmp_path / "w")
    assert command_line.main(["report", f"--workdir={workdir}"]) == 0
    html = (workdir / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    for words in ("All data on this page are simulated", "Ablations", "masking=consistent", "Cost of pretraining",
                  "Labels needed to match", "ResNet (from scratch", "One modality from the others", "Confusion"):  # fmt: skip
        assert words in html
    tables = (workdir / "tables.md").read_text()
    for words in ("All data on this page are simulated", "Ablations", "masking=consistent",
                  "Cost of pretraining", "Labels needed to match", "FusionX-Net minus each method"):  # fmt: skip
        assert words in tables
    made = {p.name for p in (workdir / "figures").iterdir()}
    for name in ("label_efficiency_multi", "label_efficiency_single", "embedding", "cross_predictions", "confusion"):
        assert {f"{name}.png", f"{name}.pdf", f"{name}.svg"} <= made


@pytest.mark.slow
def test_runs_that_were_judged_differently_are_not_compared(compared, tmp_path):
    workdir = shutil.copytree(compared, tmp_path / "w")
    path = workdir / "untrained/seed1/sweep_member.json"
    about = json.loads(path.read_text())
    for key, value, words in (
        ("protocol", "val", "score_split: 'test' and 'val'"),
        ("evaluators", "x", "knn: .* and 'x'"),
    ):
        inner = {"protocol": "score_split", "evaluators": "knn"}[key]
        changed = {**about, key: {**about[key], inner: value}}
        path.write_text(json.dumps(changed))
        if key == "protocol":
            with pytest.raises(InputError, match=words):
                members.write_tables(str(workdir))
        else:  # of an evaluator that measured nothing here
            members.write_tables(str(workdir))
    path.write_text(json.dumps({k: v for k, v in about.items() if k != "protocol"}))
    with pytest.raises(InputError, match="does not describe a member of this version"):
        members.write_tables(str(workdir))


@pytest.mark.slow
def test_rows_name_the_weights_they_were_measured_with(compared):
    found = _values(compared, label="0.5", changes="")
    each = [found["fusionx", "", rows_lib.PRETRAINING, s] for s in (0, 1)]
    assert [r.checkpoint for r in each] == ["fusionx/seed0", "fusionx/seed1"]
    assert each[0].config_hash != each[1].config_hash
    assert found["fusionx", "", rows_lib.MEAN, -1].checkpoint == "fusionx/seed0; fusionx/seed1"


def test_sweeps_refuse_bases_that_are_not_theirs_before_anything_runs(simulated, tmp_path):
    for base in ("configs/scenes.py:init=w", str(tmp_path / "demo.py"), "nowhere/demo.py"):
        with pytest.raises(InputError, match="methods build on a file of configs/"):
            sweep.load(base, parse_method("fusionx"), ())
    assert sweep.load(BASE, parse_method("fusionx/mask_ratio=0.9"), ["--config.mask_ratio=0.7"]).mask_ratio == 0.9
    probed = sweep.load(BASE, parse_method("supervised_vit"), ["--config.evaluate.evaluators=('knn',)"])
    assert tuple(probed.evaluate.evaluators) == ("scratch",)  # it has no features without labels
    base = ("experiments.label_sweep", f"--config={BASE}", f"--workdir={tmp_path}", f"--dataset={simulated}")
    assert_clear(run_cli(*base, "--methods=fusionx"), 2, "label_fractions holds 0.01", "140 training tiles")
    base += ("--config.label_fractions=(0.5,)",)
    assert_clear(
        run_cli(*base, "--methods=fusionx,mae_s1", "--config.evaluate.modalities=('s1+s2',)"), 2, "the network reads s1"
    )
    assert_clear(run_cli(*base, "--methods=fusionx", "--config.evaluate.evaluators=('magic',)"), 2, "magic")
    assert not (tmp_path / "fusionx").exists()


def test_unknown_methods_and_folders_are_refused(simulated, tmp_path):
    with pytest.raises(InputError, match="configs/methods/ has contrastive, croma, fusionx"):
        sweep.load(BASE, parse_method("magic"), ())
    with pytest.raises(InputError, match="Unknown config key 'maskin'"):
        sweep.load(BASE, parse_method("fusionx/maskin=consistent"), ())
    with pytest.raises(InputError, match="give the workdir of"):
        comparison_page.make(str(tmp_path))


@pytest.mark.parametrize(("option", "sweeps"), [("", paper_cpu.SWEEPS), ("tuning", paper_cpu.TUNING)])
def test_every_sweep_of_the_comparison_names_methods_and_settings_that_exist(option, sweeps):
    done = subprocess.run(
        f"python -m configs.paper_cpu {option} | xargs -L1 python -c 'import json, sys; print(json.dumps(sys.argv[1:]))'".replace(
            "python", sys.executable
        ),
        shell=True, cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [tuple(line) for line in lines] == list(sweeps)  # quotes come through as the Makefile passes them
    for line in lines:
        methods = next(a for a in line if a.startswith("--methods=")).removeprefix("--methods=").split(",")
        for method in methods:
            config = sweep.load(
                "configs/paper_cpu.py", parse_method(method), [a for a in line if a.startswith("--config.")]
            )
            settings.check(config)


@pytest.mark.slow
def test_the_command_compares_methods_side_by_side_and_resumes(simulated, tmp_path):
    arguments = (
        "experiments.label_sweep", f"--config={BASE}", "--methods=untrained,mae_s1", f"--workdir={tmp_path}",
        f"--dataset={simulated}", "--jobs=2", *QUICK,
    )  # fmt: skip
    done = run_cli(*arguments)
    assert done.returncode == 0, done.stderr
    assert "mae_s1" in done.stdout
    (tmp_path / "mae_s1" / "seed0" / "sweep_member.json").unlink()
    again = run_cli(*arguments, "--seeds=2")
    assert again.returncode == 0, again.stderr
    assert {r.num_pretrainings for r in rows_lib.read(tmp_path / "results.csv") if r.method == "mae_s1"} == {1, 2}
    assert_clear(run_cli(*arguments[:1], "--methods=magic", *arguments[3:]), 2, "no method 'magic'")


def test_rates_tuned_for_each_network_do_not_forbid_comparing_them_but_keep_their_cells_apart():
    one, other = (
        sweep.load(
            "configs/paper_cpu.py",
            parse_method("supervised_vit"),
            [f"--config.evaluate.supervised.learning_rates=({r},)"],
        )
        for r in ("3e-3", "1e-2")
    )
    assert hashes.evaluator_hashes(one)["scratch"] != hashes.evaluator_hashes(other)["scratch"]
    assert hashes.evaluator_hashes(one, ["learning_rates"]) == hashes.evaluator_hashes(other, ["learning_rates"])

"""The README as a user follows it: the demo, then every recipe, in order, in one folder."""

import csv
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import ROOT

VENV = Path(sys.executable).parent.parent


def recipe_commands() -> list[str]:
    """Every command of the README's shell blocks, continuation lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.partition("#")[0].strip() for line in lines if line.partition("#")[0].strip()]


# What trains anew is cut to a few steps and labels, beyond the command as it stands: it is to run, not to learn.
SHORTER = {
    "fusionx pretrain --config=configs/demo.py --workdir=runs/consistent": "--config.num_steps=20",
    "fusionx pretrain --config=configs/scenes.py": "--config.num_steps=40",
    "fusionx evaluate --workdir=runs/scenes": "--config.evaluate.supervised.num_steps=20 "
    "--config.evaluate.supervised.min_steps=10 --config.evaluate.supervised.seeds=1",
    "fusionx bench probe": "--examples=2000 --features=64",
    "fusionx bench train": "--config=configs/speed.py:demo --rounds=2 --seconds=0.5",
    "python -m experiments.label_sweep": "--methods=fusionx,untrained --config.num_steps=20 --config.label_fractions='(0.1,)' "
    "--config.evaluate.tasks=\"('multi',)\" --config.evaluate.modalities=\"('s1+s2',)\" "
    "--config.evaluate.evaluators=\"('linear_probe',)\"",
}


def shortened(command: str) -> str:
    more = [words for start, words in SHORTER.items() if " ".join(command.split()).startswith(start)]
    return " ".join([command, *more])


def user_environment() -> dict[str, str]:
    """Without the settings that make tests compile fast: the demo is to run as a user's would."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_") or k == "JAX_COMPILATION_CACHE_DIR"}
    return {**kept, "PATH": f"{VENV / 'bin'}{os.pathsep}{kept['PATH']}"}


def run(command: str, folder: Path) -> subprocess.CompletedProcess:
    began = time.monotonic()
    done = subprocess.run(
        command, shell=True, cwd=folder, env=user_environment(), capture_output=True, text=True, check=False
    )
    print(f"{time.monotonic() - began:.0f} s: {command}")
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A folder that looks like a checkout beside the samples, with the demo run in it by `make demo`."""
    folder = tmp_path_factory.mktemp("user") / "checkout"
    kept = ("fusionx_jax", "configs", "data", "experiments", "Makefile", "requirements.txt", "setup.py", "README.md")
    for name in kept:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    if (ROOT.parent / "shared").is_dir():
        (folder.parent / "shared").symlink_to(ROOT.parent / "shared")
    # -o: the environment that runs this test is there already and is not installed again.
    run(f"make demo -o {VENV}/.ready VENV={VENV}", folder)
    return folder


@pytest.mark.slow
def test_the_demo_leaves_its_page_and_beats_the_baselines_at_few_labels(checkout):
    page = (checkout / "runs/demo/report.html").read_text()
    assert "simulated" in page
    assert page.count("data:image/png;base64,") >= 5
    assert not re.search(r"(src|href)=\"https?://", page)  # self-contained
    assert {p.suffix for p in (checkout / "runs/demo/figures").iterdir()} == {".png", ".svg", ".pdf"}
    with open(checkout / "runs/demo/results.csv", newline="") as f:
        rows = [
            r
            for r in csv.DictReader(f)
            if (r["task"], r["metric"], r["modalities"], r["level"]) == ("multi", "macro_map", "s1+s2", "mean")
        ]
    by_method = {(r["method"], float(r["label_fraction"])): r for r in rows}
    for fraction in (0.01, 0.05, 0.1):
        fusionx = float(by_method["fusionx", fraction]["value"])
        assert all(
            fusionx > float(by_method[m, fraction]["value"]) for m in ("untrained", "band_statistics", "texture")
        )
    for fraction in (0.05, 0.1):
        assert float(by_method["fusionx", fraction]["ci_low"]) > float(by_method["untrained", fraction]["ci_high"])


@pytest.mark.slow
def test_every_snippet_of_python_in_the_readme_runs(checkout):
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert snippets
    for snippet in snippets:
        (checkout / "snippet.py").write_text(snippet)
        assert "(4, 512)" in run(f"{sys.executable} snippet.py", checkout).stdout


def _of_scenes(command: str) -> bool:
    return bool(re.search(r"samples|scenes|terramesh", command))


@pytest.mark.slow
def test_every_command_of_the_readme_runs(checkout):
    commands = [c for c in recipe_commands() if not c.startswith(("make ", "source ")) and not _of_scenes(c)]
    assert len(commands) >= 5
    assert all(any(c.startswith(start) for c in recipe_commands()) for start in SHORTER)
    for command in commands:
        run(shortened(command), checkout)


@pytest.mark.slow
def test_the_recipes_for_real_scenes_end_in_pages(checkout, samples):
    commands = [c for c in recipe_commands() if _of_scenes(c)]
    assert len(commands) >= 7
    for command in commands:
        run(shortened(command), checkout)
    for name in ("scenes", "scenes_from_demo"):
        page = (checkout / "runs" / name / "report.html").read_text()
        assert "Too few tiles to compare methods" in page
        assert "Reconstructions" in page

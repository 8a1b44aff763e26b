"""The command line: options and paths of any kind, of commands that end before they train."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.doors import inputs, numbers, only_writes, texts
from tests.helpers import run_here

OPTIONS = {
    "inspect": ("--out", "--tiles", "--verify"),
    "export": ("--workdir", "--to", "--out", "--dataset", "--tolerance", "--with_decoder", "--num_tiles"),
    "report": ("--workdir", "--out"),
    "evaluate": ("--workdir", "--dataset", "--config.evaluate.seeds", "--config.label_fractions", "--config.nothing"),
    "plan": ("--devices", "--kind", "--topology", "--pairs", "--tile_size", "--epochs", "--dataset", "--config"),
    "pretrain": ("--config", "--config.num_steps", "--config.batch_size", "--config.modalities", "--config.init_from"),
    "bench": ("--json", "--examples", "--features"),
}
words = st.one_of(texts.filter(lambda t: "\x00" not in t), numbers.map(str), st.sampled_from(["orbax", "h100", "v5e:4x4", "configs/demo.py", "configs/none.py", "/nonexistent", "-", "--", "=", "*"]))  # fmt: skip


@st.composite
def arguments(draw, folder):
    command = draw(st.sampled_from(sorted(OPTIONS)))
    out = [command]
    for option in draw(st.lists(st.sampled_from(OPTIONS[command]), max_size=4)):
        value = draw(st.one_of(words, st.just(str(folder / "out")), st.just(str(folder / "empty"))))
        out += [f"{option}={value}"] if draw(st.integers(0, 5)) else [option]
    return out + draw(st.lists(words, max_size=2))


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    (folder / "empty").mkdir()
    (folder / "here").mkdir()
    return folder


@inputs(150)
@given(data=st.data())
def test_arguments(sandbox, data, monkeypatch):
    monkeypatch.chdir(sandbox / "here")
    given_arguments = data.draw(arguments(sandbox))
    with only_writes(sandbox, sandbox / "out"):
        done = run_here(*given_arguments)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in (0, 2), (given_arguments, done.stderr)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ") or ": error: " in line]
        assert len(errors) == 1 or "There is no command" in done.stderr, done.stderr

import json
import re

import jax
import jax.numpy as jnp
import pytest

from fusionx_jax import chips
from fusionx_jax.bench import profile
from tests.helpers import EARLY, assert_clear, run_cli, run_here

SHORT = ("--rounds=1", "--seconds=0.1", "--config.batch_size=4", "--config.model.size=mini", "--config.augment.crop=32")


def test_train_bench_prints_one_object_and_leaves_a_table_of_operations(tmp_path):
    done = run_cli(
        "fusionx_jax", "bench", "train", "--json", f"--profile={tmp_path / 'p'}", "--config=configs/speed.py:demo", *SHORT,
        *EARLY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["input"] == "random tiles in host memory"
    (size,) = found["sizes"].values()
    assert list(found["sizes"]) == ["speed:demo"]
    assert size["model_flops_per_s"] == pytest.approx(size["pairs_per_s"] * size["flops_per_pair"])
    assert 0 < size["share_of_matmul"] < 1.5
    assert size["mfu"] is None  # a CPU is no chip with published rates
    assert size["vs_torch"] is None
    assert size["compile_s"] > 0
    assert size["peak_memory_bytes"] > 4 * 1_000_000  # the parameters at least
    lines = (tmp_path / "p" / "speed-demo" / profile.TABLE).read_text().splitlines()
    assert lines[0] == ",".join(profile.Row._fields)
    shares = [float(line.split(",")[-1]) for line in lines[1:]]
    assert sum(shares) == pytest.approx(1, abs=0.01)
    assert any(",backward," in line and "/mlp/" in line and ",dot_general," in line for line in lines)
    assert 0 < sum(r["share"] for r in size["profile"]) <= 1 + 1e-6


@pytest.mark.slow
def test_train_bench_reads_prepared_tiles(simulated):
    done = run_cli("fusionx_jax", "bench", "train", "--config=configs/demo.py", f"--dataset={simulated}", *SHORT[:-1], *EARLY)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert simulated in done.stdout
    assert re.search(r"vs_torch +not available", done.stdout)  # no --peer


def test_eager_and_compiled_twins_take_turns_with_ours():
    pytest.importorskip("torch", reason="PyTorch is not installed (the extra [torch])")
    done = run_cli("fusionx_jax", "bench", "train", "--json", "--peer=torch", "--peer=torch.compile", "--config=configs/speed.py:demo", *SHORT, *EARLY)  # fmt: skip
    assert done.returncode == 0, done.stderr
    size = json.loads(done.stdout)["sizes"]["speed:demo"]
    assert size["vs_torch"] == pytest.approx(size["pairs_per_s"] / size["torch_pairs_per_s"])
    assert size["vs_torch_compile"] == pytest.approx(size["pairs_per_s"] / size["torch_compile_pairs_per_s"])


def test_a_trace_is_summed_by_where_its_operations_come_from(tmp_path):
    @jax.jit
    def f(x, w):
        with jax.named_scope("inner"):
            y = x @ w
        return jax.lax.scan(lambda c, _: (jnp.sin(c) @ w, None), y, None, length=5)[0].sum()

    x = jnp.ones((64, 64))
    text = f.lower(x, x).compile().as_text()
    f(x, x).block_until_ready()

    def steps(count):
        for _ in range(count):
            f(x, x).block_until_ready()
            jax.jit(lambda x: x @ x)(x).block_until_ready()  # another program's operations have the same names

    rows = profile.record(str(tmp_path), text, steps, 4)
    products = [r for r in rows if r.primitive == "dot_general"]
    assert sum(r.calls for r in products) == 6  # one in the scope, five in the loop
    assert [r.part for r in products if r.calls == 1] == ["inner"]
    assert sum(r.share for r in rows) == pytest.approx(1)


def test_parts_and_directions_are_read_from_traced_names():
    text = """
  %dot.1 = f32[8,8]{1,0} dot(%a, %b), metadata={op_name="jit(step)/transpose(jvp(Net))/encoder/encoder.fuse/blocks/while/body/scan/mlp/up/dot_general"}
  ROOT %t = (f32[], f32[8]{0}) fusion(%a), kind=kLoop, metadata={op_name="jit(step)/jvp(Net)/decoder/add"}
  %loop = (s32[]) while(%t), body=%b
  %copy.2 = f32[8]{0} copy(%t)
"""
    assert profile.origins(text) == {
        "dot.1": ("backward", "encoder/blocks/mlp/up", "dot_general"),
        "t": ("forward", "decoder", "add"),
        "copy.2": ("step", "", "copy"),
    }


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("cpu", None),
    ],
)
def test_devices_are_known_by_their_kind(kind, name):
    assert chips.find(kind) == (chips.CHIPS[name] if name else None)


def test_bad_input_is_one_sentence():
    assert_clear(run_here("bench", "train", "--rounds=0"), 2, "must be positive")
    assert_clear(run_here("bench", "train", "--config=none.py"), 2, "none.py")
    assert run_here("bench", "train", "--no_such=1").returncode == 2

import json
import math

import jax
import jax.numpy as jnp
import pytest

from experiments import sweep
from fusionx_jax import config
from fusionx_jax.chips import CHIPS
from fusionx_jax.contract import assumed
from fusionx_jax.errors import InputError, RunError
from fusionx_jax.evaluate.records import Method
from fusionx_jax.models import build, layers
from fusionx_jax.plan import estimate, hlo, text
from fusionx_jax.plan.machine import Machine
from fusionx_jax.training import flops as flops_lib
from fusionx_jax.training import step
from tests.helpers import EARLY, ROOT, assert_clear, run_cli, run_here, run_script


def small(*changes):
    c = config.load_file(str(ROOT / "configs/demo.py"))
    return config.override(c, [*EARLY, "--config.target=raw", "--config.augment.flip=False", *changes])


def flops(c):
    contract = assumed(c.modalities, 64)
    return flops_lib.flops_per_pair(c, build.make_model(c, contract.modalities), contract)


def by_hand(tokens, width, mlp=4):
    """Multiply-adds x 2 of a transformer block on `tokens` tokens, forward (products alone)."""
    projections = 2 * tokens * width * (4 * width + 2 * mlp * width)
    return projections + 2 * 2 * tokens * tokens * width


def test_flops_are_those_counted_by_hand():
    """A step is three times the forward pass: a product has two gradients, of its input and of its kernel."""
    c = small("--config.model.cross_attention=none", "--config.mask_ratio=0.75")
    s1, s2, visible, patches, width, narrow = 2 * 64, 12 * 64, 16, 64, 128, 64
    encoder = 2 * visible * (s1 + s2) * width + by_hand(2 * visible, width) + 4 * by_hand(2 * visible + 1, width)
    decoder = 2 * 2 * visible * width * narrow + 2 * by_hand(patches, narrow) + 2 * patches * narrow * (s1 + s2)
    # Pixels have no gradient: their products cost two thirds.
    hand = 3 * (encoder + decoder) - 2 * visible * (s1 + s2) * width
    assert hand == pytest.approx(flops(c), rel=0.1)  # the rest: norms, softmax, GELU, losses
    assert hand < flops(c)


def test_loops_are_counted_as_often_as_they_run():
    def of_depth(depth):
        c = small()
        with c.unlocked():
            c.model.depth = depth
        return flops(c)

    found = {d: of_depth(d) for d in (2, 7, 12)}
    assert found[12] - found[7] == pytest.approx(found[7] - found[2], rel=1e-3)
    assert found[12] > 2 * found[2]
    assert flops(small("--config.model.remat=full")) > 1.1 * flops(small())  # blocks alone: not embeddings and heads


def one_chip(**rates):
    return Machine(jax.devices()[:1], CHIPS["v5e"]._replace(**rates), 1, 1)


TEXT = """
HloModule jit_step
%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}
%body.1 (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %gathered = f32[16,16]{1,0} all-gather(%w), channel_id=1, replica_groups=[4,2]<=[8], dimensions={0}
}
%limit.3 (q: (s32[], f32[8,16])) -> pred[] {
  %four = s32[]{:T(128)} constant(4)
  ROOT %lt = pred[] compare(%i, %four), direction=LT
}
%body.2 (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %sent = f32[10]{0:T(128)} collective-permute(%w), channel_id=9, source_target_pairs={{0,1},{1,0}}
}
ENTRY %main.2 (p0: f32[8,16]) -> f32[8,16] {
  %loop = (s32[], f32[8,16]) while(%t), condition=%c, body=%body.1, backend_config={"known_trip_count":{"n":"12"}}
  %other = (s32[], f32[8,16]) while(%t), condition=%limit.3, body=%body.2
  %s = f32[100]{0} all-reduce(%g), channel_id=2, replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%sum
  %b = bf16[100]{0} all-reduce(%h), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%sum
  %m = f32[4]{0} all-gather(%k), channel_id=4, replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}, x=1
  %r = f32[100]{0} reduce-scatter(%g), channel_id=5, replica_groups={{0},{1}}, to_apply=%sum
}
"""


def test_collectives_are_told_by_axis_and_counted_in_loops():
    found = hlo.collectives(TEXT, ("data", "fsdp"), (4, 2))
    assert found == [
        hlo.Collective("all-gather", ("data",), 1, 16),
        hlo.Collective("all-gather", ("fsdp",), 12, 12 * 16 * 16 * 4),
        hlo.Collective("all-reduce", ("data",), 1, 400),
        hlo.Collective("all-reduce", ("data", "fsdp"), 1, 200),
        hlo.Collective("collective-permute", ("fsdp",), 4, 160),
    ]


def test_a_plan_by_rule_counts_its_state_and_sends_parameters_not_activations():
    # The demo's network has no array of 4 MB, the size from which parameters are split.
    script = """
import sys
from fusionx_jax import __main__, sharding
sharding.REPLICATED_BYTES = 1 << 16
sys.exit(__main__.main())
"""
    done = run_script(
        script, "plan", "--config=configs/demo.py", "--devices=4", "--kind=h100", "--tile_size=64", "--pairs=7000",
        "--config.mesh.data=2", "--config.mesh.fsdp=2", "--json", *EARLY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    shapes = jax.eval_shape(
        lambda: build.init_params(
            build.make_model(c := small("--config.target=both"), assumed(c.modalities, 64).modalities),
            jax.random.key(0),
        )
    )
    sizes = [math.prod(x.shape) for x in jax.tree.leaves(shapes)]
    assert found["parameters"] == sum(sizes)
    assert found["memory_per_device"]["params"] == sum(4 * n // 2 if 4 * n > 1 << 16 else 4 * n for n in sizes)
    assert found["memory_per_device"]["batch"] == 32 // 4 * 64 * 64 * 14 * 2
    moved = {(c["kind"], tuple(c["axes"])): c["bytes_per_step"] for c in found["collectives"]}
    assert moved["all-gather", ("fsdp",)] > 0
    gathered_from_all = moved.get(("all-gather", ("data", "fsdp")), 0)
    assert gathered_from_all < 0.01 * moved["all-gather", ("fsdp",)]
    assert found["fits"]
    assert found["largest_batch_size"] > 32
    assert found["step_s"] == max(found["roofline_s"].values())
    assert found["pairs_per_s"] == pytest.approx(32 / found["step_s"])
    assert found["days"] == pytest.approx(7000 * 100 / found["pairs_per_s"] / 86400)


def test_what_cannot_be_planned_is_refused():
    base = ("plan", "--config=configs/demo.py")
    assert_clear(run_here(*base, "--kind=h1"), 2, "known are v4, v5e")
    assert_clear(run_here(*base, "--topology=v5e"), 2, "give GENERATION:GRID")
    assert_clear(run_cli("fusionx_jax", *base, "--config.modalities=('s9',)"), 2, "give --dataset")


@pytest.mark.slow
def test_a_tpu_slice_is_compiled_for_without_the_hardware():
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed (the extra [tpu])")
    for topology, devices, chips in (("v5e:1x1", 1, 1), ("v5e:2x2", 4, 4), ("v4:2x2x2", 16, 8)):
        done = run_cli(
            "fusionx_jax", "plan", "--config=configs/demo.py", f"--topology={topology}", "--tile_size=64", "--json", *EARLY,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["devices"], found["chips"]) == (devices, chips)
        reduced = sum(c["bytes_per_step"] for c in found["collectives"] if c["kind"] == "all-reduce")
        if devices > 1:  # every gradient, those of scanned blocks too
            assert reduced >= 0.99 * 4 * found["parameters"]


class _Refusing:
    """A step whose compiler has no memory for more than `most` pairs, as a TPU's."""

    def __init__(self, program, most):
        self._program, self._most = program, most

    def lower(self, state, wire):
        self._pairs, self._lowered = wire["s1"].shape[0], self._program.lower(state, wire)
        return self

    def compile(self):
        if self._pairs > self._most:
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. 31.58G of 15.75G hbm"
            )
        return self._lowered.compile()


def test_a_batch_that_the_compiler_refuses_is_planned_with_less_and_does_not_fit(monkeypatch):
    c = small()
    contract = assumed(c.modalities, 64, 10)
    jit_step = step.jit_step
    monkeypatch.setattr(step, "jit_step", lambda *a: _Refusing(jit_step(*a), 8))
    found = estimate.plan(c, contract, one_chip())
    assert not found["fits"]
    assert found["refused_batch_sizes"] == [32, 16]
    assert found["batch_size"] == 8
    assert found["largest_batch_size"] >= 8
    assert "batch 32 DOES NOT FIT" in text.show(found, "v5e", 1.0)
    monkeypatch.setattr(step, "jit_step", lambda *a: _Refusing(jit_step(*a), 0))
    with pytest.raises(RunError, match="Not even a batch of 1 fits"):
        estimate.plan(config.override(c, ["--config.batch_size=1"]), contract, one_chip())


def test_groups_of_bands_can_be_planned_without_a_data_set():
    c = sweep.load("configs/demo.py", Method("fusionx_bands"), EARLY)
    known = assumed(c.modalities, 64, 10, dict(c.band_groups)).modalities
    for name, (_, *bands) in c.band_groups.items():
        assert known[name].bands == tuple(bands)
    assert build.make_model(c, known)


def test_a_batch_in_parts_reads_its_parameters_in_every_part():
    c = small()
    contract = assumed(c.modalities, 32, 10)
    whole, parts = (estimate.plan(small(f"--config.optimizer.accumulate={k}"), contract, one_chip()) for k in (1, 4))
    params = whole["memory_per_device"]["params"]
    kept = [4 * k * params for k in (1, 4)]
    temporaries = [f["memory_per_device"]["activations_and_temporaries"] for f in (whole, parts)]
    expected = [a + 2 * k * t for a, k, t in zip(kept, (1, 4), temporaries)]
    rate = CHIPS["v5e"].memory_rate
    assert rate * (parts["roofline_s"]["memory"] - whole["roofline_s"]["memory"]) == pytest.approx(
        expected[1] - expected[0], rel=1e-6
    )


def test_activations_stay_where_they_are_only_where_a_mesh_is_set():
    x = jnp.ones((8, 4))
    assert layers.over_batch(x) is x


def test_a_chip_that_is_too_small_says_so(monkeypatch, capsys):
    c = small()
    contract = assumed(c.modalities, 64, 10)
    found = estimate.plan(c, contract, one_chip(memory=2.0**20))
    assert not found["fits"]
    pair_bytes = 64 * 64 * 14 * 2
    assert found["roofline_s"]["input"] == pytest.approx(c.batch_size * pair_bytes / 2e9)
    slow = estimate.plan(c, contract, one_chip(), 1e3)
    assert slow["bound"] == "input"
    assert slow["pairs_per_s"] == pytest.approx(1e3 / pair_bytes)
    assert found["largest_batch_size"] == 0
    assert "DOES NOT FIT" in text.show(found, "v5e", 1.0)
    with pytest.raises(InputError, match="no known sensor"):
        assumed(["s7"], 64)

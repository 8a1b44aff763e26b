"""Full-size configs: every method's step is traced at full size, and taken once at reduced size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import sweep
from fusionx_jax import contract as contract_lib
from fusionx_jax import modalities, preprocess
from fusionx_jax.evaluate import settings
from fusionx_jax.evaluate.records import Method
from fusionx_jax.models import build
from fusionx_jax.training.objective import make_objective
from fusionx_jax.training.optimizer import make_optimizer
from fusionx_jax.training.step import train_step

SETS = {
    "bigearthnet_mm": (modalities.SENTINEL1_GRD, modalities.SENTINEL2_L2A, 120),
    "sen12ms": (modalities.SENTINEL1_GRD, modalities.SENTINEL2_L1C, 256),
    "ssl4eo_s12": (modalities.SENTINEL1_GRD, modalities.SENTINEL2_L2A, 264),
}
TRAINED = ("fusionx", "fusionx_early", "mae_s1", "mae_s2", "stacked_mae", "multimae", "croma", "contrastive")


def _contracts(base, side=None):
    *sensors, default_side = SETS[base]
    return {
        name: contract_lib.of_modality(
            s, gsd_m=10.0, side=side or default_side, mean=[0.0] * len(s.bands), std=[1.0] * len(s.bands)
        )
        for name, s in zip(("s1", "s2"), sensors)
    }


def _step(c, data):
    """The train step of a config, with abstract state and batch."""
    model = build.make_model(c, data)
    shown = {m: data[m] for m in c.modalities}
    normalizer = preprocess.make_normalizer(shown, shown, c.augment.crop, c.model.patch_size)
    optimizer, schedule = make_optimizer(c)
    step = functools.partial(
        train_step, objective=make_objective(c, model, normalizer), optimizer=optimizer,
        schedule=schedule, seed=0,
    )  # fmt: skip

    def start():
        params = build.init_params(model, jax.random.key(0))
        return {"params": params, "opt_state": optimizer.init(params), "step": jnp.zeros((), jnp.int32)}

    wire = {
        n: jax.ShapeDtypeStruct((c.batch_size, m.height, m.width, len(m.bands)), jnp.uint16) for n, m in shown.items()
    }
    return step, start, wire


@pytest.mark.slow
@pytest.mark.parametrize("base", sorted(SETS))
def test_every_method_traces_at_full_size(base):
    for method in TRAINED:
        c = sweep.load(f"configs/{base}.py", Method(method), ())
        settings.check(c)
        step, start, wire = _step(c, _contracts(base))
        shapes = jax.eval_shape(start)
        after, metrics = jax.eval_shape(step, shapes, wire)
        assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, shapes)
        assert metrics["loss"].shape == ()


@pytest.mark.slow
@pytest.mark.parametrize("base", sorted(SETS))
def test_a_step_at_reduced_size_runs_and_is_finite(base):
    c = sweep.load(
        f"configs/{base}.py", Method("fusionx"),
        ["--config.model.size=mini", "--config.batch_size=2", "--config.model.dtype=float32", "--config.augment.crop=0"],
    )  # fmt: skip
    step, start, wire = _step(c, _contracts(base, side=4 * c.model.patch_size))
    rng = np.random.default_rng(0)
    batch = {n: rng.integers(1, 60_000, w.shape).astype(np.uint16) for n, w in wire.items()}
    state, metrics = jax.jit(step)(start(), batch)
    assert np.isfinite(float(metrics["loss"]))
    assert int(state["step"]) == 1

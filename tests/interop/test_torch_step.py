"""The PyTorch train step that ours is measured against computes what ours computes."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from fusionx_jax import config
from fusionx_jax.bench import train as bench_train
from fusionx_jax.contract import assumed
from fusionx_jax.errors import InputError
from fusionx_jax.models import build
from fusionx_jax.training.objective import first_objective
from fusionx_jax.training.optimizer import make_optimizer
from fusionx_jax.training.state import fresh_state
from fusionx_jax.training.step import train_step
from tests.helpers import EARLY, ROOT

torch = pytest.importorskip("torch", reason="PyTorch is not installed (the extra [torch])")

SHORT = ("batch_size=8", "augment.flip=False", "num_steps=20", "optimizer.warmup_steps=3")


def setting(*changes):
    c = config.load_file(str(ROOT / "configs/demo.py"))
    c = config.override(c, [*(f"--config.{s}" for s in SHORT), *changes])
    contract = assumed(c.modalities, 32)
    model = build.make_model(c, contract.modalities)
    return c, contract, first_objective(c, model, contract)


@pytest.mark.parametrize("changes", [(), EARLY, ("--config.target=raw", "--config.model.cross_attention=none")])
def test_the_same_tiles_and_masks_give_the_same_losses_and_parameters(changes):
    from fusionx_jax.interop import twin

    c, contract, objective = setting(*changes)
    optimizer, schedule = make_optimizer(c)
    state = fresh_state(objective.model, optimizer, 0)
    theirs = bench_train.torch_twin(c, contract, objective, state["params"])
    wire = next(bench_train.host_batches(c, contract, ""))
    images = theirs.standardized({m: torch.from_numpy(x) for m, x in wire.items()})
    step = jax.jit(
        functools.partial(train_step, objective=objective, optimizer=optimizer, schedule=schedule, seed=c.seed)
    )
    for _ in range(3):
        mask_key = jax.random.split(jax.random.fold_in(jax.random.key(c.seed), state["step"]))[1]
        masks = objective.mask(mask_key, 8, dict.fromkeys(wire, (4, 4)), theirs.num_visible, None)
        state, metrics = step(state, wire)
        order = {m: torch.from_numpy(np.concatenate([k.visible, k.hidden], 1)).long() for m, k in masks.items()}
        assert float(theirs.descend(images, order)) == pytest.approx(float(metrics["loss"]), rel=1e-4)
    reference = twin.FusionX(dataclasses.asdict(objective.model.config))
    assert twin.fill(reference, {k: torch.from_numpy(v) for k, v in bench_train.flat(state["params"]).items()})
    for (name, ours), followed in zip(reference.named_parameters(), theirs.network.parameters()):
        assert np.allclose(ours.detach(), followed.detach(), atol=3e-4), name


def test_flips_move_all_sensors_alike():
    from fusionx_jax.interop import torch_step

    image = torch.arange(16.0).reshape(1, 4, 4, 1).repeat(64, 1, 1, 1)
    out = torch_step.flipped({"a": image, "b": image + 100})
    assert torch.equal(out["a"] + 100, out["b"])
    assert len({tuple(x.flatten().tolist()) for x in out["a"]}) == 8


def test_what_the_twin_does_not_know_is_refused():
    c, contract, objective = setting("--config.masking=consistent")
    with pytest.raises(InputError, match="does not know masking 'consistent'"):
        bench_train.torch_twin(c, contract, objective, {})

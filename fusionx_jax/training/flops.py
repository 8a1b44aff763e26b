"""Floating-point operations of a training step, as XLA counts them before it optimizes the program."""

import jax
from ml_collections import ConfigDict

from fusionx_jax.contract import Contract
from fusionx_jax.models import build, network
from fusionx_jax.training.objective import first_objective
from fusionx_jax.training.state import abstract_batch


def useful_flops_per_pair(config: ConfigDict, contract: Contract) -> float:
    """FLOPs of one example in a training step without rematerialization."""
    plain = config.copy_and_resolve_references()
    plain.model.remat = "none"
    return flops_per_pair(plain, build.make_model(plain, contract.modalities), contract)


def flops_per_pair(config: ConfigDict, model: network.Network, contract: Contract) -> float:
    """FLOPs of one example in a training step; 0 if `num_steps` is 0."""
    if not config.num_steps:
        return 0.0
    depth = model.config.size.depth + 1
    objective = first_objective(config, network.unrolled(model, depth), contract)
    params = jax.eval_shape(lambda: build.init_params(model, jax.random.key(0)))
    step = jax.jit(lambda p, w: jax.grad(lambda q: objective.loss(q, w, jax.random.key(0))[0])(p))
    cost = step.lower(params, abstract_batch(config, contract)).cost_analysis()
    assert cost is not None  # XLA gives one on every backend
    return float(cost["flops"]) / config.batch_size

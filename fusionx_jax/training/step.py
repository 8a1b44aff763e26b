"""The train step: a pure function of state and batch, compiled for a mesh."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PyTree
from ml_collections import ConfigDict

from fusionx_jax import sharding
from fusionx_jax.training.objective import Metrics, Objective, Wire
from fusionx_jax.training.state import TrainState

Step = Callable[[TrainState, Wire], tuple[TrainState, Metrics]]


def train_step(
    state: TrainState,
    wire: Wire,
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    seed: int,
    accumulate: int = 1,
) -> tuple[TrainState, Metrics]:
    """One optimizer step. The random key is a function of `seed` and the step in `state`."""
    key = jax.random.fold_in(jax.random.key(seed), state["step"])
    gradients, metrics = mean_gradients(objective, state["params"], wire, key, accumulate)
    updates, opt_state = optimizer.update(gradients, state["opt_state"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    metrics |= {"grad_norm": optax.global_norm(gradients), "learning_rate": schedule(state["step"])}
    return {"params": params, "opt_state": opt_state, "step": state["step"] + 1}, metrics


def mean_gradients(
    objective: Objective, params: PyTree, wire: Wire, key: Key[Array, ""], parts: int
) -> tuple[PyTree, Metrics]:
    """Gradients and metrics of a batch: the mean over `parts` slices of it, computed one after the other.

    Slice i holds every `parts`-th example from i on, so that it is spread over all devices as the batch is.
    """

    def one_slice(wire: Wire, key: Key[Array, ""]) -> tuple[PyTree, Metrics]:
        (_, metrics), gradients = jax.value_and_grad(objective.loss, has_aux=True)(params, wire, key)
        return gradients, metrics

    if parts == 1:
        return one_slice(wire, key)
    slices = {m: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1) for m, x in wire.items()}
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(parts))
    shapes = jax.eval_shape(one_slice, {m: x[0] for m, x in slices.items()}, key)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(
        lambda sums, part: (jax.tree.map(jnp.add, sums, one_slice(*part)), None), zero, (slices, keys)
    )
    return jax.tree.map(lambda x: x / parts, total)


def jit_step(
    config: ConfigDict,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    layout: PyTree,
    mesh: jax.sharding.Mesh,
) -> jax.stages.Wrapped:
    """The train step compiled for a mesh. It donates its state; `layout` holds the shardings of the state."""
    return jax.jit(
        functools.partial(
            train_step,
            objective=objective,
            optimizer=optimizer,
            schedule=schedule,
            seed=config.seed,
            accumulate=config.optimizer.get("accumulate", 1),
        ),
        in_shardings=(layout, sharding.batch_sharding(mesh)),
        out_shardings=(layout, sharding.replicated(mesh)),
        donate_argnums=0,
    )

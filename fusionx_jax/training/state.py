"""The train state: parameters, optimizer state and step, its shapes and its layout on a mesh."""

import functools

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree
from ml_collections import ConfigDict

from fusionx_jax import sharding
from fusionx_jax.contract import Contract, images
from fusionx_jax.models import build
from fusionx_jax.models.network import Network

TrainState = dict[str, PyTree]
"""`params`, `opt_state` and `step` (int32 scalar)."""


def fresh_state(model: Network, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step: a pure function of the seed."""
    params = build.init_params(model, jax.random.key(seed))
    return {"params": params, "opt_state": optimizer.init(params), "step": jnp.zeros((), jnp.int32)}


def abstract_state(model: Network, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh) -> TrainState:
    """Shapes, types and shardings of the state on a mesh, without arrays."""
    shapes = jax.eval_shape(functools.partial(fresh_state, model, optimizer, 0))
    layout = sharding.state_shardings(shapes, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, layout)


def layout(abstract: TrainState) -> PyTree:
    """The shardings of an abstract state."""
    return jax.tree.map(lambda x: x.sharding, abstract)


def training_features(config: ConfigDict, contract: Contract) -> list[str]:
    """The features that training reads: the modalities, and their second dates where two dates are contrasted."""
    dates = 2 if build.contrasts_views(config) else 1
    stored = contract.features()
    return [name for name in images(config.modalities, dates) if name in stored]


def abstract_batch(config: ConfigDict, contract: Contract) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a global batch of wire tiles, by feature."""
    stored = contract.features()
    modalities = {name: stored[name] for name in training_features(config, contract)}
    return {
        name: jax.ShapeDtypeStruct((config.batch_size, m.height, m.width, len(m.bands)), jnp.uint16)
        for name, m in modalities.items()
    }

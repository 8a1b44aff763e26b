"""AdamW with linear warm-up and cosine decay, as in MAE (arXiv 2111.06377, appendix A)."""

from typing import NamedTuple

import jax
import optax
from jaxtyping import PyTree
from ml_collections import ConfigDict

_RATE_BATCH = 256  # learning rates are given per 256 examples (arXiv 1706.02677, section 2.1; MAE, appendix A)


class Optimizer(NamedTuple):
    """A gradient transformation and its learning-rate schedule, which is logged."""

    transformation: optax.GradientTransformation
    schedule: optax.Schedule


def make_optimizer(config: ConfigDict) -> Optimizer:
    """AdamW; weight decay on kernels only, gradients clipped by global norm."""
    o = config.optimizer
    peak = o.learning_rate * config.batch_size / _RATE_BATCH
    steps = max(config.num_steps, 1)  # num_steps is 0 for the untrained baseline
    warmup = min(o.warmup_steps, steps - 1)
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, peak * o.final_fraction)
    transformation = optax.chain(
        optax.clip_by_global_norm(o.clip_norm),
        optax.adamw(schedule, o.b1, o.b2, weight_decay=o.weight_decay, mask=decay_mask),
    )
    return Optimizer(transformation, schedule)


def decay_mask(params: PyTree) -> PyTree:
    """True for kernels: biases, norms and tokens do not decay. By name, because scanned layers add an axis to all."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

"""The floor that labels alone give: the same encoder trained from scratch, with its own schedule.

Every tile shows all its patches; the pooled tokens feed one linear layer. AdamW with warm-up and cosine decay; the
step and the learning rate are chosen on the validation split (full labels there: a help this floor gets and the probes
do not), the test split is scored once.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from fusionx_jax import preprocess, pretrain, progress, tiles
from fusionx_jax.evaluate import features as features_lib
from fusionx_jax.evaluate import metrics
from fusionx_jax.models import build, fusionx


class Task(NamedTuple):
    """Labels by split, as 0/1 matrices (one-hot for single-label data)."""

    kind: str
    targets: Mapping[str, np.ndarray]


class Outcome(NamedTuple):
    """Test scores [M, K] of the chosen step and rate, and what they were."""

    scores: np.ndarray
    learning_rate: float
    step: int
    num_steps: int


def num_steps(settings: ConfigDict, labels: int, all_labels: int) -> int:
    """Steps grow with the square root of the number of labels, never below `min_steps`."""
    return max(settings.min_steps, round(settings.num_steps * (labels / all_labels) ** 0.5))


class Network(NamedTuple):
    """The compiled programs of one floor, shared by all fractions and seeds: compiling takes longer than running."""

    model: fusionx.FusionX
    normaliser: preprocess.Normaliser
    modalities: tuple[str, ...]
    pooling: str
    optimizer: optax.GradientTransformation
    step: Any
    scores: Any


def make_network(
    model: fusionx.FusionX,
    normaliser: preprocess.Normaliser,
    modalities: tuple[str, ...],
    kind: str,
    settings: ConfigDict,
    pooling: str,
) -> Network:
    """Compiles nothing yet; the learning rate is an argument of the step, so that schedules share one program."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        optax.add_decayed_weights(settings.weight_decay, mask=pretrain.decay_mask),
    )
    scores = functools.partial(_scores, model=model, normaliser=normaliser, pooling=pooling)

    @functools.partial(jax.jit, donate_argnums=(1,))
    def step(params, opt_state, wire, targets, key, rate):
        def loss(params):
            predicted = scores(params, preprocess.augment(key, wire, 0, True))
            if kind == "single":
                return optax.softmax_cross_entropy(predicted, targets).mean()
            return optax.sigmoid_binary_cross_entropy(predicted, targets).mean()

        gradients = jax.grad(loss)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return jax.tree.map(lambda p, u: p - rate * u, params, updates), opt_state

    return Network(model, normaliser, modalities, pooling, optimizer, step, jax.jit(scores))


def train(
    network: Network,
    prepared: tiles.PreparedSet,
    task: Task,
    subset: np.ndarray,
    settings: ConfigDict,
    seed: int,
    bar: progress.Progress,
) -> Outcome:
    """Trains one network per learning rate on the tiles `subset` and scores the test split with the best."""
    steps = num_steps(settings, len(subset), prepared.size("train"))
    val_count = min(settings.val_tiles or prepared.size("val"), prepared.size("val"))
    # Every k-th tile: the first ones may all come from one place.
    val_index = np.linspace(0, prepared.size("val") - 1, val_count).round().astype(int)
    best: tuple[float, Any, float, int] | None = None
    for peak in settings.learning_rates:
        schedule = optax.warmup_cosine_decay_schedule(0.0, peak, max(1, int(settings.warmup_share * steps)), steps)
        params = _start(network, task.targets["train"].shape[1], seed)
        opt_state = network.optimizer.init(params)
        for step in range(1, steps + 1):
            batch_size = min(settings.batch_size, len(subset))
            index = subset[tiles.batch_indices(seed, step - 1, batch_size, len(subset))]
            wire = prepared.read("train", index, network.modalities)
            key = jax.random.fold_in(jax.random.key(seed), step)
            params, opt_state = network.step(
                params, opt_state, wire, task.targets["train"][index], key, schedule(step - 1)
            )
            bar.advance()
            if step % settings.eval_every == 0 or step == steps:
                scores = _score_split(network, params, prepared, "val", val_index)
                value = _selection_metric(task, scores, task.targets["val"][val_index])
                if best is None or value > best[0]:
                    best = (value, params, peak, step)
    _, params, rate, step = best
    scores = _score_split(network, params, prepared, "test", np.arange(prepared.size("test")))
    return Outcome(scores, rate, step, steps)


def _start(network: Network, classes: int, seed: int) -> Any:
    parts = {"mean": 1, "mean_std": 2}.get(network.pooling, 0) * len(network.normaliser.order) or 1
    head = {"kernel": jnp.zeros((parts * network.model.config.size.width, classes)), "bias": jnp.zeros((classes,))}
    return {"encoder": build.init_params(network.model, jax.random.key(seed))["encoder"], "head": head}


def _scores(params, wire, *, model, normaliser, pooling):
    pools = features_lib.pooled(model, {"encoder": params["encoder"]}, normaliser, wire)
    return features_lib.assemble(pools, pooling) @ params["head"]["kernel"] + params["head"]["bias"]


def _score_split(network, params, prepared, split, index, batch_size: int = 200) -> np.ndarray:
    size = len(index)
    batch_size = min(batch_size, size)
    parts = []
    for start in range(0, size, batch_size):
        place = np.arange(start, start + batch_size) % size
        kept = min(batch_size, size - start)
        wire = prepared.read(split, index[place], network.modalities)
        parts.append(np.asarray(network.scores(params, wire))[:kept])
    return np.concatenate(parts)


def _selection_metric(task: Task, scores: np.ndarray, targets: np.ndarray) -> float:
    once = np.ones((len(scores), 1), int)
    if task.kind == "single":
        return float(metrics.single_label(scores, targets.argmax(1), once)["balanced_accuracy"][0])
    value = float(metrics.multi_label(scores, targets > 0, once)["macro_map"][0])
    return value if np.isfinite(value) else -1.0

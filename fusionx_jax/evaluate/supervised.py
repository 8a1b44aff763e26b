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


def train(
    model: fusionx.FusionX,
    normaliser: preprocess.Normaliser,
    prepared: tiles.PreparedSet,
    modalities: tuple[str, ...],
    task: Task,
    subset: np.ndarray,
    settings: ConfigDict,
    pooling: str,
    seed: int,
    bar: progress.Progress,
) -> Outcome:
    """Trains one network per learning rate on the tiles `subset` and scores the test split with the best."""
    steps = num_steps(settings, len(subset), prepared.size("train"))
    val_count = min(settings.val_tiles or prepared.size("val"), prepared.size("val"))
    # Every k-th tile: the first ones may all come from one place.
    val_index = np.linspace(0, prepared.size("val") - 1, val_count).round().astype(int)
    best: tuple[float, Any, float, int] | None = None
    scorer = jax.jit(functools.partial(_scores, model=model, normaliser=normaliser, pooling=pooling))
    for rate in settings.learning_rates:
        step_fn, params, opt_state = _start(model, normaliser, task, pooling, settings, rate, steps, seed)
        for step in range(1, steps + 1):
            batch_size = min(settings.batch_size, len(subset))
            index = subset[tiles.batch_indices(seed, step - 1, batch_size, len(subset))]
            wire = prepared.read("train", index, modalities)
            key = jax.random.fold_in(jax.random.key(seed), step)
            params, opt_state = step_fn(params, opt_state, wire, task.targets["train"][index], key)
            bar.advance()
            if step % settings.eval_every == 0 or step == steps:
                scores = _score_split(scorer, params, prepared, "val", val_index, modalities)
                value = _selection_metric(task, scores, task.targets["val"][val_index])
                if best is None or value > best[0]:
                    best = (value, params, rate, step)
    _, params, rate, step = best
    scores = _score_split(scorer, params, prepared, "test", np.arange(prepared.size("test")), modalities)
    return Outcome(scores, rate, step, steps)


def _start(model, normaliser, task, pooling, settings, rate, steps, seed):
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(1, int(settings.warmup_share * steps)), steps)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, weight_decay=settings.weight_decay, mask=pretrain.decay_mask),
    )
    classes = task.targets["train"].shape[1]
    network = build.init_params(model, jax.random.key(seed))
    parts = {"mean": 1, "mean_std": 2}.get(pooling, 0) * len(normaliser.order) or 1
    head = {
        "kernel": jnp.zeros((parts * model.config.size.width, classes)),
        "bias": jnp.zeros((classes,)),
    }
    params = {"encoder": network["encoder"], "head": head}

    @functools.partial(jax.jit, donate_argnums=(1,))
    def step_fn(params, opt_state, wire, targets, key):
        def loss(params):
            scores = _scores(
                params, preprocess.augment(key, wire, 0, True), model=model, normaliser=normaliser, pooling=pooling
            )
            if task.kind == "single":
                return optax.softmax_cross_entropy(scores, targets).mean()
            return optax.sigmoid_binary_cross_entropy(scores, targets).mean()

        gradients = jax.grad(loss)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return step_fn, params, optimizer.init(params)


def _scores(params, wire, *, model, normaliser, pooling):
    pools = features_lib.pooled(model, {"encoder": params["encoder"]}, normaliser, wire)
    return features_lib.assemble(pools, pooling) @ params["head"]["kernel"] + params["head"]["bias"]


def _score_split(scorer, params, prepared, split, index, modalities, batch_size: int = 256) -> np.ndarray:
    size = len(index)
    batch_size = min(batch_size, size)
    parts = []
    for start in range(0, size, batch_size):
        place = np.arange(start, start + batch_size) % size
        kept = min(batch_size, size - start)
        parts.append(np.asarray(scorer(params, prepared.read(split, index[place], modalities)))[:kept])
    return np.concatenate(parts)


def _selection_metric(task: Task, scores: np.ndarray, targets: np.ndarray) -> float:
    once = np.ones((1, len(scores)), int)
    if task.kind == "single":
        return float(metrics.single_label(scores, targets.argmax(1), once)["balanced_accuracy"][0])
    value = float(metrics.multi_label(scores, targets > 0, once)["macro_map"][0])
    return value if np.isfinite(value) else -1.0

"""Training the whole encoder on the labels: fine-tuning a pretrained one, or a fresh one from scratch.

Every tile shows all its patches; the pooled tokens feed one linear layer that starts at zero. AdamW with warm-up and
cosine decay; options after BEiT and MAE (arXiv 2106.08254, appendix; 2111.06377, appendix A.1): layer-wise decay of the
learning rate, drop path, a moving average of the weights, and only the last blocks unfrozen. The step and the learning
rate are chosen on the validation split (full labels there: a help that the probes do not get), the scored split is
read once.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from fusionx_jax import encoder as encoder_lib
from fusionx_jax import preprocess, progress
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate.numerics import metrics
from fusionx_jax.prepared import order, sets
from fusionx_jax.training.optimizer import decay_mask

_MEETING = ("fusion", "first")  # modules of the block where sensors meet


class Task(NamedTuple):
    """Labels by split, as 0/1 matrices (one-hot for single-label data)."""

    kind: str
    targets: Mapping[str, np.ndarray]


class Outcome(NamedTuple):
    """Scores [M, K] of the chosen step and rate, and what they were."""

    scores: np.ndarray
    learning_rate: float
    step: int
    num_steps: int


def num_steps(settings: ConfigDict, labels: int, all_labels: int) -> int:
    """Steps grow with the square root of the number of labels, never below `min_steps`."""
    return max(settings.min_steps, round(settings.num_steps * (labels / all_labels) ** 0.5))


class Network(NamedTuple):
    """The compiled programs of one method, shared by all fractions and seeds: compiling takes longer than running."""

    start: Any  # encoder parameters by seed
    modalities: tuple[str, ...]
    optimizer: optax.GradientTransformation
    step: Any
    scores: Any
    width: int


def make_network(
    encoder: encoder_lib.Encoder,
    start: Any,
    modalities: tuple[str, ...],
    kind: str,
    settings: ConfigDict,
    pooling: str,
    sides: Mapping[str, tuple[int, int, int]],
) -> Network:
    """Compiles nothing yet; the learning rate is an argument of the step, so that schedules share one program.

    Args:
      encoder: network and normalization. `start(seed)` gives the encoder parameters to begin with.
      sides: height, width and bands of each modality's tiles.

    Raises:
      InputError: an option is out of range.
    """
    if not (0 < settings.layer_decay <= 1 and 0 <= settings.drop_path < 1 and 0 <= settings.ema < 1):
        raise InputError(
            f"layer_decay is {settings.layer_decay}, drop_path {settings.drop_path} and ema {settings.ema}; they must "
            "lie in (0, 1], [0, 1) and [0, 1)."
        )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        optax.add_decayed_weights(settings.weight_decay, mask=decay_mask),
    )
    model = encoder.model.clone(config=dataclasses.replace(encoder.model.config, drop_path=settings.drop_path))
    own = dataclasses.replace(encoder, model=model)
    scores = functools.partial(_scores, encoder=own, pooling=pooling)

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params, average, opt_state, wire, targets, key, rate):
        def loss(params):
            flip_key, drop_key = jax.random.split(key)
            predicted = scores(params, preprocess.augment(flip_key, wire, 0, True), rngs={"drop_path": drop_key})
            if kind == "single":
                return optax.softmax_cross_entropy(predicted, targets).mean()
            return optax.sigmoid_binary_cross_entropy(predicted, targets).mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        scale = rate_scales(params, settings.layer_decay, settings.unfreeze)
        params = jax.tree.map(lambda p, u, s: p - rate * s * u, params, updates, scale)
        average = jax.tree.map(lambda a, p: settings.ema * a + (1 - settings.ema) * p, average, params)
        return params, average, opt_state

    wire = {m: jax.ShapeDtypeStruct((1, *sides[m]), jnp.uint16) for m in modalities}
    pools = jax.eval_shape(
        lambda p, w: encoder_lib.assemble(own.with_params(p).pooled(w), pooling),
        jax.eval_shape(lambda: start(0)),
        wire,
    )
    return Network(start, modalities, optimizer, step, jax.jit(scores), pools.shape[1])


def rate_scales(params: Any, layer_decay: float, unfreeze: int) -> Any:
    """What multiplies the learning rate of each parameter: `layer_decay` to the power of its distance from the head,
    and zero below the last `unfreeze` blocks (-1 unfreezes all, 0 trains the head alone).

    From the head down: the joint blocks (scanned ones have a row each); the block where sensors meet, if there is one,
    and what joins there; blocks of each sensor's own; embeddings. Norms after a stack move with its last block.
    """
    leaves = [([k.key for k in path], leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]

    def depth(own: bool) -> int:
        return max((x.shape[0] for n, x in leaves if "scan" in n and n[1].startswith("own_") == own), default=0)

    joint, own = depth(False), depth(True)
    below = joint + any(n[1].startswith(_MEETING) for n, _ in leaves if n[0] != "head")

    def one(path, leaf):
        names = [k.key for k in path]
        if names[0] == "head":
            return 1.0
        of_own = names[1].startswith("own_")
        if "scan" in names:
            rows = np.arange(leaf.shape[0])[::-1].reshape(-1, *[1] * (leaf.ndim - 1))
            distance = rows + (below if of_own else 0)
        elif "embed" in names[1] or "embed" in names:
            distance = np.array(below + own)
        elif names[-2] in ("norm", "cross_norm"):
            distance = np.array(below if of_own else 0)
        else:
            distance = np.array(joint)
        return np.where((unfreeze >= 0) & (distance >= unfreeze), 0.0, layer_decay ** (distance + 1)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(one, params)


def train(
    network: Network,
    prepared: sets.Readable,
    task: Task,
    subset: np.ndarray,
    settings: ConfigDict,
    seed: int,
    bar: progress.Progress,
    score_split: str = "test",
) -> Outcome:
    """Trains one network per learning rate on the tiles `subset` and scores `score_split` with the best."""
    steps = num_steps(settings, len(subset), prepared.size("train"))
    val_count = min(settings.val_tiles or prepared.size("val"), prepared.size("val"))
    # Every k-th tile: the first ones may all come from one place.
    val_index = np.linspace(0, prepared.size("val") - 1, val_count).round().astype(int)
    best: tuple[float, Any, float, int] | None = None
    for peak in settings.learning_rates:
        schedule = optax.warmup_cosine_decay_schedule(0.0, peak, max(1, int(settings.warmup_share * steps)), steps)
        params = _start(network, task.targets["train"].shape[1], seed)
        average = jax.tree.map(jnp.copy, params)
        opt_state = network.optimizer.init(params)
        for step in range(1, steps + 1):
            batch_size = min(settings.batch_size, len(subset))
            index = subset[order.batch_indices(seed, step - 1, batch_size, len(subset))]
            wire = prepared.read("train", index, network.modalities)
            key = jax.random.fold_in(jax.random.key(seed), step)
            params, average, opt_state = network.step(
                params, average, opt_state, wire, task.targets["train"][index], key, schedule(step - 1)
            )
            bar.advance()
            if step % settings.eval_every == 0 or step == steps:
                chosen = average if settings.ema else params
                scores = _score_split(network, chosen, prepared, "val", val_index)
                value = _selection_metric(task, scores, task.targets["val"][val_index])
                if best is None or value > best[0]:
                    best = (value, jax.tree.map(jnp.copy, chosen), peak, step)
    _, params, rate, step = best
    scores = _score_split(network, params, prepared, score_split, np.arange(prepared.size(score_split)))
    return Outcome(scores, rate, step, steps)


def _start(network: Network, classes: int, seed: int) -> Any:
    head = {"kernel": jnp.zeros((network.width, classes)), "bias": jnp.zeros((classes,))}
    return {"encoder": jax.tree.map(jnp.copy, network.start(seed)["encoder"]), "head": head}


def _scores(params, wire, *, encoder, pooling, rngs=None):
    pools = encoder.with_params({"encoder": params["encoder"]}).pooled(wire, rngs)
    return encoder_lib.assemble(pools, pooling) @ params["head"]["kernel"] + params["head"]["bias"]


def _score_split(network, params, prepared, split, index, batch_size: int = 200) -> np.ndarray:
    parts = []
    for place, kept in order.equal_batches(len(index), batch_size):
        wire = prepared.read(split, index[place], network.modalities)
        parts.append(np.asarray(network.scores(params, wire))[:kept])
    return np.concatenate(parts)


def _selection_metric(task: Task, scores: np.ndarray, targets: np.ndarray) -> float:
    once = np.ones((len(scores), 1), int)
    if task.kind == "single":
        return float(metrics.single_label(scores, targets.argmax(1), once)["balanced_accuracy"][0])
    value = float(metrics.multi_label(scores, targets > 0, once)["macro_map"][0])
    return value if np.isfinite(value) else -1.0

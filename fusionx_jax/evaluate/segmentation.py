"""Pixel labels from frozen patch tokens: a linear head, or a light decoder.

The tokens of all sensors at one place stand side by side. "linear" maps them to class scores and enlarges these
bilinearly, as in linear-probe segmentation (DINOv2, arXiv 2304.07193, section 7.4); "decoder" enlarges twice by two,
each time after a 3 x 3 convolution (after SETR's progressive upsampling, arXiv 2012.15840, section 3.2). Pixels without
a label enter neither loss nor score. The rate and the number of steps are the same for every method; nothing is chosen
on other labels than those trained on.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from fusionx_jax import encoder as encoder_lib
from fusionx_jax import preprocess, progress
from fusionx_jax.evaluate.numerics import metrics
from fusionx_jax.prepared import order, sets


class Head(nn.Module):
    """From a map of tokens [B, h, w, D] to class scores of every pixel [B, H, W, K]."""

    kind: str
    classes: int
    width: int = 64

    @nn.compact
    def __call__(self, tokens: Float[Array, "batch rows columns dim"], height: int, width: int) -> Array:
        x = nn.LayerNorm(name="norm", use_bias=False, use_scale=False)(tokens)
        if self.kind == "decoder":
            for stage in range(2):
                x = nn.gelu(nn.Conv(self.width, (3, 3), name=f"conv{stage}")(x))
                x = _enlarge(x, 2 * x.shape[1], 2 * x.shape[2])
        x = nn.Dense(self.classes, name="classes", kernel_init=nn.initializers.zeros)(x)
        return _enlarge(x, height, width)


def _enlarge(x: Array, height: int, width: int) -> Array:
    return jax.image.resize(x, (x.shape[0], height, width, x.shape[3]), "linear")


def token_map(encoder: encoder_lib.Encoder, wire: Any) -> Float[Array, "batch rows columns dim"]:
    """Tokens of all groups side by side, on the grid of patches."""
    p = encoder.model.config.patch_size
    some = next(iter(wire.values()))
    rows, columns = -(-some.shape[1] // p), -(-some.shape[2] // p)
    tokens = encoder.tokens(wire)
    joined = jnp.concatenate([t.astype(jnp.float32) for t in tokens.groups.values()], axis=-1)
    return joined.reshape(joined.shape[0], rows, columns, -1)


class Trainer:
    """The compiled programs of one encoder, task and head, shared by all fractions and seeds."""

    def __init__(
        self,
        encoder: encoder_lib.Encoder,
        prepared: sets.Readable,
        feature: str,
        modalities: Sequence[str],
        classes: int,
        kind: str,
        settings: ConfigDict,
    ):
        self._prepared, self._feature, self._modalities = prepared, feature, list(modalities)
        self._settings, self._classes = settings, classes
        self._encoder = encoder
        head = Head(kind, classes)
        first = prepared.read("train", [0], [*self._modalities, feature])
        side = first[feature].shape[1:3]
        self._optimizer = optax.adamw(
            optax.warmup_cosine_decay_schedule(
                0.0, settings.learning_rate, max(1, settings.num_steps // 10), settings.num_steps
            ),
            weight_decay=settings.weight_decay,
        )

        def scores(params, weights, wire):
            tokens = token_map(encoder.with_params(weights), wire)
            p = encoder.model.config.patch_size
            return head.apply(params, tokens, tokens.shape[1] * p, tokens.shape[2] * p)[:, : side[0], : side[1]]

        @jax.jit
        def step(params, state, weights, wire, labels, key):
            moved = preprocess.augment(key, {**wire, feature: labels[..., None]}, 0, True)
            labels = moved.pop(feature)[..., 0]

            def loss(params):
                known = labels < classes
                each = optax.softmax_cross_entropy_with_integer_labels(
                    scores(params, weights, moved), jnp.where(known, labels, 0).astype(jnp.int32)
                )
                return jnp.where(known, each, 0).sum() / jnp.maximum(known.sum(), 1)

            updates, state = self._optimizer.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        @jax.jit
        def start(key, weights, wire):
            return head.init(key, token_map(encoder.with_params(weights), wire), *side)

        self._step, self._start = step, start
        self._predict = jax.jit(
            lambda params, weights, wire: scores(params, weights, wire).argmax(-1).astype(jnp.uint8)
        )
        self._sample = {m: first[m] for m in self._modalities}

    def train(self, subset: Int[np.ndarray, "labeled"], seed: int, bar: progress.Progress) -> Any:
        """Head parameters after the settings' number of steps on the tiles `subset`."""
        s, weights = self._settings, self._encoder.params
        params = self._start(jax.random.key(seed), weights, self._sample)
        state = self._optimizer.init(params)
        batch_size = min(s.batch_size, len(subset))
        for step in range(s.num_steps):
            index = subset[order.batch_indices(seed, step, batch_size, len(subset))]
            batch = self._prepared.read("train", index, [*self._modalities, self._feature])
            labels = batch.pop(self._feature)
            key = jax.random.fold_in(jax.random.key(seed), step)
            params, state = self._step(params, state, weights, batch, labels, key)
            bar.advance()
        return params

    def confusion(self, params: Any, split: str) -> Int[np.ndarray, "tiles classes classes"]:
        """Confusion counts of every tile of a split."""
        out = []
        for index, kept in order.equal_batches(self._prepared.size(split), self._settings.batch_size):
            batch = self._prepared.read(split, index, [*self._modalities, self._feature])
            labels = batch.pop(self._feature)
            predicted = np.asarray(self._predict(params, self._encoder.params, batch))
            out += [metrics.confusion(p.ravel(), t.ravel(), self._classes) for p, t in zip(predicted[:kept], labels)]
        return np.stack(out)


def shares(prepared: sets.Readable, split: str, feature: str, classes: int) -> Float[np.ndarray, "tiles classes"]:
    """The share of each class among a tile's labeled pixels; NaN for a tile without any."""
    size = prepared.size(split)
    parts = []
    for start in range(0, size, 256):
        labels = prepared.read(split, np.arange(start, min(start + 256, size)), [feature])[feature]
        flat = labels.reshape(len(labels), -1)
        counts = np.stack([(flat == c).sum(1) for c in range(classes)], axis=1)
        total = counts.sum(1, keepdims=True)
        parts.append(np.where(total > 0, counts / np.maximum(total, 1), np.nan))
    return np.concatenate(parts)

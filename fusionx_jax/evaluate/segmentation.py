"""Pixel labels from frozen patch tokens: a linear head or a light decoder.

The tokens of all groups at one place of the patch grid are concatenated. The "linear" head maps them to class logits
and resizes these bilinearly to pixels, as in linear-probe segmentation (DINOv2, arXiv 2304.07193, section 7.4); the
"decoder" head upsamples twice by a factor of two, each time after a 3 x 3 convolution (SETR's progressive upsampling,
arXiv 2012.15840, section 3.2). Unlabeled pixels enter neither loss nor score. Learning rate and number of steps are the
same for every method; nothing is selected on further labels.
"""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree, UInt8
from ml_collections import ConfigDict

from fusionx_jax import encoder as encoder_lib
from fusionx_jax import progress
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate.batches import Batch, DeviceReader, augment_rows, read_ahead
from fusionx_jax.evaluate.numerics import metrics
from fusionx_jax.prepared import order
from fusionx_jax.prepared.readable import Readable

_SHARES_BATCH = 256  # tiles; bounds the memory of `shares` and does not affect its values
UPSAMPLINGS = {"linear": 0, "decoder": 2}  # convolutions, each followed by upsampling by two, by kind of head


@dataclasses.dataclass(frozen=True)
class Settings:
    """Hyperparameters; `evaluate.segmentation` of a config has these fields.

    Attributes:
      batch_size: tiles per step; all labeled tiles where there are fewer.
      num_steps: steps for every label subset.
      learning_rate: peak learning rate.
      weight_decay: AdamW's.
    """

    batch_size: int
    num_steps: int
    learning_rate: float
    weight_decay: float

    @classmethod
    def from_config(cls, config: ConfigDict) -> "Settings":
        """The settings in `evaluate.segmentation`."""
        return cls(**{field.name: config[field.name] for field in dataclasses.fields(cls)})

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW with warm-up over a tenth of the steps and cosine decay."""
        warmup = max(1, self.num_steps // 10)
        schedule = optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, warmup, self.num_steps)
        return optax.adamw(schedule, weight_decay=self.weight_decay)


class Head(nn.Module):
    """Maps a grid of tokens to class logits per pixel, with `upsamplings` convolutions of `width` channels."""

    upsamplings: int
    classes: int
    width: int = 64

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch rows columns dim"], height: int, width: int
    ) -> Float[Array, "batch {height} {width} {self.classes}"]:
        x = nn.LayerNorm(name="norm", use_bias=False, use_scale=False)(tokens)
        for stage in range(self.upsamplings):
            x = nn.gelu(nn.Conv(self.width, (3, 3), name=f"conv{stage}")(x))
            x = _resize(x, 2 * x.shape[1], 2 * x.shape[2])
        x = nn.Dense(self.classes, name="classes", kernel_init=nn.initializers.zeros)(x)
        return _resize(x, height, width)


def _resize(x: Float[Array, "batch _rows _columns dim"], height: int, width: int) -> Float[Array, "batch _h _w dim"]:
    return jax.image.resize(x, (x.shape[0], height, width, x.shape[3]), "linear")


def token_map(encoder: encoder_lib.Encoder, wire: Mapping[str, Array]) -> Float[Array, "batch rows columns dim"]:
    """Tokens of all groups, concatenated, on the patch grid.

    Raises:
      InputError: the network does not have one token per patch.
    """
    p = encoder.model.config.patch_size
    first = next(iter(wire.values()))
    rows, columns = -(-first.shape[1] // p), -(-first.shape[2] // p)
    tokens = encoder.tokens(wire)
    joined = jnp.concatenate([t.astype(jnp.float32) for t in tokens.groups.values()], axis=-1)
    if joined.shape[1] != rows * columns:
        raise InputError(
            f"The network has {joined.shape[1]} tokens per tile, but a tile has {rows} x {columns} patches of {p} "
            "pixels; pixel labels need one token per patch: use a network whose stride is model.patch_size."
        )
    return joined.reshape(joined.shape[0], rows, columns, -1)


class HeadTrainer:
    """Trains heads on one encoder's tokens. The compiled programs are shared by all label subsets and seeds."""

    def __init__(
        self,
        encoder: encoder_lib.Encoder,
        reader: DeviceReader,
        feature: str,
        classes: int,
        settings: Settings,
        *,
        head: str,
    ):
        """Compiles nothing yet.

        Args:
          encoder: the frozen encoder.
          reader: the prepared set with the modalities to read and the pixel labels `feature`.
          classes: number of classes; pixels with a label from this on are unlabeled.
          head: "linear" or "decoder".

        Raises:
          InputError: there is no such head.
        """
        if head not in UPSAMPLINGS:
            raise InputError(f"The segmentation head is {head!r}; it must be one of {', '.join(UPSAMPLINGS)}.")
        self._encoder, self._weights = encoder, reader.replicate(encoder.params)
        self._reader, self._feature, self._classes, self._settings = reader, feature, classes, settings
        self._head = Head(UPSAMPLINGS[head], classes)
        self._optimizer = settings.optimizer()
        self._start = jax.jit(self._init)
        self._step = jax.jit(self._update, static_argnames="count")
        self._predict = jax.jit(lambda p, w, arrays: self._logits(p, w, arrays).argmax(-1).astype(jnp.uint8))

    def train(self, subset: Int[np.ndarray, "labeled"], seed: int, bar: progress.Progress) -> PyTree:
        """Head parameters after training on the tiles `subset`."""
        batch_size = min(self._settings.batch_size, len(subset))

        def read(step: int) -> Batch:
            tiles = subset[order.batch_indices(seed, step, batch_size, len(subset))]
            return self._reader.read("train", tiles)

        params = self._start(jax.random.key(seed), self._weights, self._reader.read("train", np.zeros(1, int)).arrays)
        state = self._optimizer.init(params)
        for step, batch in enumerate(read_ahead(read, range(self._settings.num_steps))):
            key = jax.random.fold_in(jax.random.key(seed), step)
            params, state = self._step(params, state, self._weights, batch.arrays, key, count=batch.num_kept)
            bar.advance()
        return params

    def confusion(self, params: PyTree, split: str) -> Int[np.ndarray, "tiles classes classes"]:
        """Confusion counts of every tile of a split: rows are true classes, columns predictions."""
        counts: list[np.ndarray] = []
        tiles = np.arange(self._reader.prepared.size(split))
        for batch in self._reader.sweep(split, tiles, self._settings.batch_size):
            labels = np.asarray(batch.arrays[self._feature])[: batch.num_kept]
            predicted = np.asarray(self._predict(params, self._weights, batch.arrays))
            counts += [metrics.confusion(p.ravel(), t.ravel(), self._classes) for p, t in zip(predicted, labels)]
        return np.stack(counts)

    def _logits(
        self, params: PyTree, weights: PyTree, arrays: Mapping[str, Array]
    ) -> Float[Array, "batch height width classes"]:
        """Logits of every pixel of a tile; the padding to whole patches is cut off."""
        wire = {name: array for name, array in arrays.items() if name != self._feature}
        height, width = arrays[self._feature].shape[1:3]
        tokens = token_map(self._encoder.with_params(weights), wire)
        p = self._encoder.model.config.patch_size
        logits = jnp.asarray(self._head.apply(params, tokens, tokens.shape[1] * p, tokens.shape[2] * p))
        return logits[:, :height, :width]

    def _init(self, key: Key[Array, ""], weights: PyTree, arrays: Mapping[str, Array]) -> PyTree:
        wire = {name: array for name, array in arrays.items() if name != self._feature}
        side = arrays[self._feature].shape[1:3]
        return self._head.init(key, token_map(self._encoder.with_params(weights), wire), *side)

    def _update(
        self,
        params: PyTree,
        state: optax.OptState,
        weights: PyTree,
        arrays: dict[str, Array],
        key: Key[Array, ""],
        *,
        count: int,
    ) -> tuple[PyTree, optax.OptState]:
        """One step on the first `count` rows of a batch."""
        moved = augment_rows(key, arrays | {self._feature: arrays[self._feature][..., None]}, count)
        labels = moved[self._feature] = moved[self._feature][..., 0]
        updates, state = self._optimizer.update(
            jax.grad(lambda p: self._loss(self._logits(p, weights, moved), labels, count))(params), state, params
        )
        return optax.apply_updates(params, updates), state

    def _loss(
        self,
        logits: Float[Array, "rows height width classes"],
        labels: UInt8[Array, "rows height width"],
        count: int,
    ) -> Float[Array, ""]:
        """Mean cross-entropy over the labeled pixels of the first `count` rows."""
        known = labels < self._classes
        if count < len(labels):
            known &= (jnp.arange(len(labels)) < count)[:, None, None]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(known, labels, 0).astype(jnp.int32))
        return jnp.where(known, losses, 0).sum() / jnp.maximum(known.sum(), 1)


def shares(prepared: Readable, split: str, feature: str, classes: int) -> Float[np.ndarray, "tiles {classes}"]:
    """Share of each class among a tile's labeled pixels; NaN for a tile without any."""
    size = prepared.size(split)
    parts = []
    for start in range(0, size, _SHARES_BATCH):
        labels = prepared.read(split, np.arange(start, min(start + _SHARES_BATCH, size)), [feature])[feature]
        flat = labels.reshape(len(labels), -1)
        counts = np.stack([(flat == c).sum(1) for c in range(classes)], axis=1)
        total = counts.sum(1, keepdims=True)
        parts.append(np.where(total > 0, counts / np.maximum(total, 1), np.nan))
    return np.concatenate(parts)

"""Training of a whole encoder on labels: fine-tuning from pretrained parameters, or training from scratch.

Every patch of a tile is visible; the pooled tokens feed a linear layer. Fine-tuning starts from a linear probe: its
coefficients, on features standardized by fixed numbers, are the linear layer's first values (LP-FT, Kumar et al., arXiv
2202.10054), and the probe itself is a candidate. From scratch the linear layer is zero. AdamW with warm-up and cosine
decay. Options after BEiT and MAE (arXiv 2106.08254, appendix; 2111.06377, appendix A.1): layer-wise decay of the
learning rate, drop path, a moving average of the parameters, freezing all but the last blocks. Step and learning rate
are selected on the labeled validation split, an advantage over the linear probes; the scored split is read once.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree
from ml_collections import ConfigDict

from fusionx_jax import encoder as encoder_lib
from fusionx_jax import progress
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate.batches import Batch, DeviceReader, augment_rows, read_ahead
from fusionx_jax.evaluate.numerics import metrics
from fusionx_jax.prepared import order
from fusionx_jax.training.optimizer import decay_mask

_SCORE_BATCH = 200  # tiles; bounds the memory of scoring and does not affect scores
_TARGETS = "targets"  # key of the targets in a training batch

_HEAD_SCALES = {"kernel": np.float32(1), "bias": np.float32(1)}  # of the learning rate

_STANDARD_SCALES = {"center": np.float32(0), "scale": np.float32(0)}

_LOSSES = {"single": optax.softmax_cross_entropy, "multi": optax.sigmoid_binary_cross_entropy}


class Task(NamedTuple):
    """Kind ("single" or "multi") and targets by split: 0/1 matrices [tiles, classes], one-hot for "single"."""

    kind: str
    targets: Mapping[str, Float[np.ndarray, "_tiles classes"]]


class LinearStart(NamedTuple):
    """A linear layer to start from: `((features - center) / scale) @ kernel + bias`."""

    center: Float[np.ndarray, "features"]
    scale: Float[np.ndarray, "features"]
    kernel: Float[np.ndarray, "features classes"]
    bias: Float[np.ndarray, "classes"]


class Outcome(NamedTuple):
    """Scores of the selected step and learning rate on the scored split, out of `num_steps` steps."""

    scores: Float[np.ndarray, "tiles classes"]
    learning_rate: float
    step: int
    num_steps: int


class TrainState(NamedTuple):
    """Parameters {"encoder": …, "head": …, "standard": …}, of which the last are fixed, their moving average (None
    without `ema`) and the optimizer's state."""

    params: PyTree
    average: PyTree | None
    opt_state: optax.OptState

    @property
    def scored_params(self) -> PyTree:
        """The parameters that are evaluated: the moving average if one is kept."""
        return self.params if self.average is None else self.average


@dataclasses.dataclass(frozen=True)
class Settings:
    """Hyperparameters; `evaluate.finetune` and `evaluate.supervised` of a config have these fields.

    Attributes:
      batch_size: tiles per step; all labeled tiles where there are fewer.
      num_steps: steps with all labels.
      min_steps: lower bound of the number of steps.
      eval_every: steps between two evaluations on the validation split.
      val_tiles: number of validation tiles used; 0 uses all.
      learning_rates: peak learning rates to select from.
      weight_decay: AdamW's, for kernels.
      warmup_share: share of the steps with a rising learning rate.
      layer_decay: factor of the learning rate from one block to the block below.
      drop_path: rate of stochastic depth.
      ema: decay of the moving average of the parameters; 0 keeps none.
      unfreeze: number of last blocks that are trained; -1 trains all, 0 the head alone.
    """

    batch_size: int
    num_steps: int
    min_steps: int
    eval_every: int
    val_tiles: int
    learning_rates: tuple[float, ...]
    weight_decay: float
    warmup_share: float
    layer_decay: float
    drop_path: float
    ema: float
    unfreeze: int

    def __post_init__(self) -> None:
        if not (0 < self.layer_decay <= 1 and 0 <= self.drop_path < 1 and 0 <= self.ema < 1):
            raise InputError(
                f"layer_decay is {self.layer_decay}, drop_path {self.drop_path} and ema {self.ema}; they must lie in "
                "(0, 1], [0, 1) and [0, 1)."
            )
        if self.unfreeze < -1:
            raise InputError(f"unfreeze is {self.unfreeze}; it must be a number of blocks, or -1 for all.")

    @classmethod
    def from_config(cls, config: ConfigDict) -> "Settings":
        """The settings in `evaluate.finetune` or `evaluate.supervised`.

        Raises:
          InputError: an option is out of range.
        """
        values = {field.name: config[field.name] for field in dataclasses.fields(cls)}
        return cls(**values | {"learning_rates": tuple(config.learning_rates)})

    def steps(self, labels: int, all_labels: int) -> int:
        """Number of steps: grows with the square root of the number of labels, at least `min_steps`."""
        return max(self.min_steps, round(self.num_steps * (labels / all_labels) ** 0.5))

    def schedule(self, peak: float, steps: int) -> optax.Schedule:
        """Learning rate by step."""
        return optax.warmup_cosine_decay_schedule(0.0, peak, max(1, int(self.warmup_share * steps)), steps)


class _Candidate(NamedTuple):
    """Parameters that may be selected, and their value on the validation split."""

    value: float
    params: PyTree
    learning_rate: float
    step: int


class LabelTrainer:
    """Trains one method on one task. The compiled programs are shared by all label subsets and seeds.

    Compilation takes longer than most trainings; learning rates and their scales are arguments of the step, so that
    they share one program.
    """

    def __init__(
        self,
        encoder: encoder_lib.Encoder,
        reader: DeviceReader,
        task: Task,
        settings: Settings,
        *,
        pooling: str,
        initial: Callable[[int], PyTree] | None = None,
    ):
        """Compiles nothing yet.

        Args:
          encoder: network, normalization and the parameters to fine-tune.
          reader: the prepared set with the modalities to train on.
          pooling: of the tokens, one of `encoder.POOLINGS`.
          initial: parameters by seed, for training from scratch; by default those of `encoder`.
        """
        model = encoder.model.clone(config=dataclasses.replace(encoder.model.config, drop_path=settings.drop_path))
        self._encoder = dataclasses.replace(encoder, model=model)
        self._reader, self._task, self._settings, self._pooling = reader, task, settings, pooling
        self._initial = initial or (lambda seed: encoder.params)
        self._optimizer = optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.scale_by_adam(),
            optax.add_decayed_weights(settings.weight_decay, mask=decay_mask),
        )
        self._step = jax.jit(self._update, donate_argnums=0, static_argnames="count")
        self._predict = jax.jit(self._scores)
        shapes = jax.eval_shape(lambda: self._initial(0)["encoder"])
        self._width = self._pooled_width(shapes)
        distance = encoder.model.layer_groups(shapes).distance
        scales = {
            "encoder": rate_scales(distance, settings.layer_decay, settings.unfreeze),
            "head": _HEAD_SCALES,
            "standard": _STANDARD_SCALES,
        }
        self._scales = reader.replicate(scales)

    def num_steps(self, labels: int) -> int:
        """Steps of one training on so many labeled tiles."""
        return self._settings.steps(labels, self._reader.prepared.size("train"))

    def train(
        self,
        subset: Int[np.ndarray, "labeled"],
        seed: int,
        bar: progress.Progress,
        score_split: str = "test",
        start: LinearStart | None = None,
    ) -> Outcome:
        """Trains once per learning rate on the tiles `subset`; scores `score_split` with the best parameters.

        With `start` the parameters before the first step are a candidate too.
        """
        steps = self.num_steps(len(subset))
        best = _Candidate(-np.inf, {}, 0.0, 0)
        if start is not None:
            params = self._start(seed, start).params
            best = _Candidate(self.validate(params), params, 0.0, 0)
        for rate in self._settings.learning_rates:
            for step, state in enumerate(self.states(subset, seed, rate, steps, start), start=1):
                bar.advance()
                if step % self._settings.eval_every and step != steps:
                    continue
                value = self.validate(state.scored_params)
                if value > best.value:
                    best = _Candidate(value, jax.tree.map(jnp.copy, state.scored_params), rate, step)
        tiles = np.arange(self._reader.prepared.size(score_split))
        return Outcome(self.scores(best.params, score_split, tiles), best.learning_rate, best.step, steps)

    def states(
        self,
        subset: Int[np.ndarray, "labeled"],
        seed: int,
        peak: float,
        steps: int,
        start: LinearStart | None = None,
    ) -> Iterator[TrainState]:
        """The state after every step. Its buffers are donated to the next step: copy what must outlive it."""
        schedule = self._settings.schedule(peak, steps)
        state = self._start(seed, start)
        batch_size = min(self._settings.batch_size, len(subset))

        def read(step: int) -> Batch:
            tiles = subset[order.batch_indices(seed, step - 1, batch_size, len(subset))]
            return self._reader.read("train", tiles, {_TARGETS: self._task.targets["train"]})

        for step, batch in enumerate(read_ahead(read, range(1, steps + 1)), start=1):
            key = jax.random.fold_in(jax.random.key(seed), step)
            state = self._step(state, self._scales, batch.arrays, key, schedule(step - 1), count=batch.num_kept)
            yield state

    def validate(self, params: PyTree) -> float:
        """Macro average precision ("multi") or balanced accuracy ("single") on the validation split."""
        size = self._reader.prepared.size("val")
        count = min(self._settings.val_tiles or size, size)
        # Evenly spaced: tiles in a row may come from one place.
        tiles = np.linspace(0, size - 1, count).round().astype(int)
        return _selection_metric(self._task, self.scores(params, "val", tiles), self._task.targets["val"][tiles])

    def scores(self, params: PyTree, split: str, tiles: Int[np.ndarray, "tiles"]) -> Float[np.ndarray, "tiles classes"]:
        """Logits of the given tiles."""
        batches = self._reader.sweep(split, tiles, _SCORE_BATCH)
        return np.concatenate([np.asarray(self._predict(params, b.arrays))[: b.num_kept] for b in batches])

    def _start(self, seed: int, start: LinearStart | None = None) -> TrainState:
        classes = self._task.targets["train"].shape[1]
        if start is None:
            width = self._width
            start = LinearStart(np.zeros(width), np.ones(width), np.zeros((width, classes)), np.zeros(classes))
        values = {name: jnp.asarray(value, jnp.float32) for name, value in start._asdict().items()}
        params = self._reader.replicate(
            {
                "encoder": self._initial(seed)["encoder"],
                "head": {k: values[k] for k in _HEAD_SCALES},
                "standard": {k: values[k] for k in _STANDARD_SCALES},
            }
        )
        average = jax.tree.map(jnp.copy, params) if self._settings.ema else None
        return TrainState(params, average, self._reader.replicate(self._optimizer.init(params)))

    def _pooled_width(self, params: PyTree) -> int:
        images = self._reader.prepared.contract.features()
        contracts = {name: images[name] for name in self._reader.features}
        shapes = {name: (1, c.height, c.width, len(c.bands)) for name, c in contracts.items()}
        wire = {name: jax.ShapeDtypeStruct(shape, jnp.uint16) for name, shape in shapes.items()}
        return jax.eval_shape(self._pooled, params, wire).shape[1]

    def _pooled(
        self, encoder_params: PyTree, wire: Mapping[str, Array], rngs: Mapping[str, Array] | None = None
    ) -> Float[Array, "batch features"]:
        pools = self._encoder.with_params({"encoder": encoder_params}).pooled(wire, rngs)
        return jnp.asarray(encoder_lib.assemble(pools, self._pooling))

    def _scores(
        self, params: PyTree, wire: Mapping[str, Array], rngs: Mapping[str, Array] | None = None
    ) -> Float[Array, "batch classes"]:
        standard = jax.lax.stop_gradient(params["standard"])
        features = (self._pooled(params["encoder"], wire, rngs) - standard["center"]) / standard["scale"]
        return features @ params["head"]["kernel"] + params["head"]["bias"]

    def _update(
        self,
        state: TrainState,
        scales: PyTree,
        arrays: dict[str, Array],
        key: Key[Array, ""],
        rate: Float[Array, ""],
        *,
        count: int,
    ) -> TrainState:
        """One step of AdamW on the first `count` rows of a batch."""
        s = self._settings
        flip_key, drop_key = jax.random.split(key)
        wire = {name: array for name, array in arrays.items() if name != _TARGETS}
        moved = augment_rows(flip_key, wire, count)

        def loss(params: PyTree) -> Float[Array, ""]:
            logits = self._scores(params, moved, {"drop_path": drop_key})
            return _mean_of_first(_LOSSES[self._task.kind](logits, arrays[_TARGETS]), count)

        updates, opt_state = self._optimizer.update(jax.grad(loss)(state.params), state.opt_state, state.params)
        params = jax.tree.map(lambda p, u, f: p - rate * f * u, state.params, updates, scales)
        average = state.average
        if average is not None:
            average = jax.tree.map(lambda a, p: s.ema * a + (1 - s.ema) * p, average, params)
        return TrainState(params, average, opt_state)


def _mean_of_first(losses: Float[Array, "rows *classes"], count: int) -> Float[Array, ""]:
    if count == len(losses):
        return losses.mean()
    rows = jnp.arange(len(losses)).reshape(-1, *[1] * (losses.ndim - 1))
    return losses.mean(where=rows < count)


def rate_scales(distance: PyTree, layer_decay: float, unfreeze: int) -> PyTree:
    """Factors of the learning rate of the encoder's parameters, from their distances to the last block.

    `layer_decay` to the power of the distance from the head, which is one block above the last; zero below the last
    `unfreeze` blocks (-1: none is frozen).
    """

    def scale(blocks: Int[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        frozen = (unfreeze >= 0) & (blocks >= unfreeze)
        return np.where(frozen, 0.0, layer_decay ** (blocks + 1)).astype(np.float32)

    return jax.tree.map(scale, distance)


def _selection_metric(
    task: Task, scores: Float[np.ndarray, "tiles classes"], targets: Float[np.ndarray, "tiles classes"]
) -> float:
    once = np.ones((len(scores), 1), int)
    if task.kind == "single":
        return float(metrics.single_label(scores, targets.argmax(1), once)["balanced_accuracy"][0])
    value = float(metrics.multi_label(scores, targets > 0, once)["macro_map"][0])
    return value if np.isfinite(value) else -1.0  # no class can be scored: the first candidate is kept

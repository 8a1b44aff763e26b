"""Training of a whole encoder on labels: fine-tuning from pretrained parameters, or training from scratch.

Every patch of a tile is visible; the pooled tokens feed a linear layer. Fine-tuning starts from a linear probe: its
coefficients, on features standardized by fixed numbers, are the linear layer's first values (LP-FT, Kumar et al., arXiv
2202.10054), and the probe itself is a candidate. From scratch the linear layer is zero. AdamW with warm-up and cosine
decay. Options after BEiT and MAE (arXiv 2106.08254, appendix; 2111.06377, appendix A.1): layer-wise decay of the
learning rate, drop path, a moving average of the parameters, freezing all but the last blocks.

Step, learning rate and layer decay are selected inside the labels, as the regularization of the linear probes is: by
the log-loss on a share of the labels that is held out. Then the network is trained on all labels for as many steps.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree
from ml_collections import ConfigDict

from fusionx_jax import encoder as encoder_lib
from fusionx_jax import progress
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate.batches import Batch, DeviceReader, augment_rows, read_ahead
from fusionx_jax.evaluate.numerics import logistic
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


class Starts(NamedTuple):
    """The linear layers that the selection starts from (fitted to the labels that are not held out), and the final
    training (fitted to all)."""

    selection: LinearStart
    final: LinearStart


class Outcome(NamedTuple):
    """Scores on the scored split, with the selected learning rate, layer decay and step, out of `num_steps` steps."""

    scores: Float[np.ndarray, "tiles classes"]
    learning_rate: float
    layer_decay: float
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
      eval_every: steps between two evaluations on the labels held out.
      holdout: share of the labels held out to select step, learning rate and layer decay.
      patience: evaluations without a lower loss after which a training ends; 0: it never ends early.
      learning_rates: peak learning rates to select from.
      weight_decay: AdamW's, for kernels.
      warmup_share: share of the steps with a rising learning rate.
      layer_decays: factors of the learning rate from one block to the block below, to select from.
      drop_path: rate of stochastic depth.
      ema: decay of the moving average of the parameters; 0 keeps none.
      unfreeze: number of last blocks that are trained; -1 trains all, 0 the head alone.
    """

    batch_size: int
    num_steps: int
    min_steps: int
    eval_every: int
    holdout: float
    patience: int
    learning_rates: tuple[float, ...]
    weight_decay: float
    warmup_share: float
    layer_decays: tuple[float, ...]
    drop_path: float
    ema: float
    unfreeze: int

    def __post_init__(self) -> None:
        if not (self.layer_decays and all(0 < d <= 1 for d in self.layer_decays)):
            raise InputError(f"layer_decays is {self.layer_decays}; it must be one or more numbers in (0, 1].")
        if not (0 <= self.drop_path < 1 and 0 <= self.ema < 1):
            raise InputError(f"drop_path is {self.drop_path} and ema {self.ema}; they must lie in [0, 1).")
        if not 0 < self.holdout <= 0.5:
            raise InputError(f"holdout is {self.holdout}; the share of the labels held out must lie in (0, 0.5].")
        if self.unfreeze < -1:
            raise InputError(f"unfreeze is {self.unfreeze}; it must be a number of blocks, or -1 for all.")

    @classmethod
    def from_config(cls, config: ConfigDict) -> "Settings":
        """The settings in `evaluate.finetune` or `evaluate.supervised`.

        Raises:
          InputError: an option is out of range.
        """
        values = {field.name: config[field.name] for field in dataclasses.fields(cls)}
        return cls(**values | {k: tuple(config[k]) for k in ("learning_rates", "layer_decays")})

    def steps(self, labels: int, all_labels: int) -> int:
        """Number of steps: grows with the square root of the number of labels, at least `min_steps`."""
        return max(self.min_steps, round(self.num_steps * (labels / all_labels) ** 0.5))

    def schedule(self, peak: float, steps: int) -> optax.Schedule:
        """Learning rate by step."""
        return optax.warmup_cosine_decay_schedule(0.0, peak, max(1, int(self.warmup_share * steps)), steps)


class _Candidate(NamedTuple):
    """What may be selected: learning rate, layer decay and step, and their log-loss on the labels held out."""

    loss: float
    learning_rate: float
    layer_decay: float
    step: int


@dataclasses.dataclass(frozen=True)
class _Training:
    """The pure functions of a training; equal ones share compiled programs."""

    architecture: encoder_lib.Architecture
    kind: str
    pooling: str
    weight_decay: float
    ema: float

    @property
    def optimizer(self) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.scale_by_adam(),
            optax.add_decayed_weights(self.weight_decay, mask=decay_mask),
        )

    def pooled(
        self, encoder_params: PyTree, wire: Mapping[str, Array], rngs: Mapping[str, Array] | None = None
    ) -> Float[Array, "batch features"]:
        pools = self.architecture.encoder.with_params({"encoder": encoder_params}).pooled(wire, rngs)
        return jnp.asarray(encoder_lib.assemble(pools, self.pooling))

    def scores(
        self, params: PyTree, wire: Mapping[str, Array], rngs: Mapping[str, Array] | None = None
    ) -> Float[Array, "batch classes"]:
        standard = jax.lax.stop_gradient(params["standard"])
        features = (self.pooled(params["encoder"], wire, rngs) - standard["center"]) / standard["scale"]
        return features @ params["head"]["kernel"] + params["head"]["bias"]

    def update(
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
        flip_key, drop_key = jax.random.split(key)
        wire = {name: array for name, array in arrays.items() if name != _TARGETS}
        moved = augment_rows(flip_key, wire, count)

        def loss(params: PyTree) -> Float[Array, ""]:
            logits = self.scores(params, moved, {"drop_path": drop_key})
            return _mean_of_first(_LOSSES[self.kind](logits, arrays[_TARGETS]), count)

        updates, opt_state = self.optimizer.update(jax.grad(loss)(state.params), state.opt_state, state.params)
        params = jax.tree.map(lambda p, u, f: p - rate * f * u, state.params, updates, scales)
        average = state.average
        if average is not None:
            average = jax.tree.map(lambda a, p: self.ema * a + (1 - self.ema) * p, average, params)
        return TrainState(params, average, opt_state)


class _Programs(NamedTuple):
    step: Callable[..., TrainState]
    predict: Callable[[PyTree, Mapping[str, Array]], Array]


@functools.lru_cache(maxsize=16)
def _compile(training: _Training) -> _Programs:
    """Compilation takes longer than most trainings: label subsets, seeds, folds and candidates share the programs."""
    return _Programs(jax.jit(training.update, donate_argnums=0, static_argnames="count"), jax.jit(training.scores))


class LabelTrainer:
    """Trains one method on one task; learning rates and their scales are arguments of the compiled step."""

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
        architecture = encoder_lib.Architecture.from_encoder(dataclasses.replace(encoder, model=model))
        self._training = _Training(architecture, task.kind, pooling, settings.weight_decay, settings.ema)
        self._programs = _compile(self._training)
        self._reader, self._task, self._settings = reader, task, settings
        self._initial = initial or (lambda seed: encoder.params)
        shapes = jax.eval_shape(lambda: self._initial(0)["encoder"])
        self._width = self._pooled_width(shapes)
        self._distance = encoder.model.layer_groups(shapes).distance

    def num_steps(self, labels: int) -> int:
        """Steps of one training on so many labeled tiles."""
        return self._settings.steps(labels, self._reader.prepared.size("train"))

    def num_trainings(self) -> int:
        """Trainings for one label subset: one for each candidate, and the final one."""
        return len(self._settings.learning_rates) * len(self._settings.layer_decays) + 1

    def divide(
        self, subset: Int[np.ndarray, "labeled"], seed: int
    ) -> tuple[Int[np.ndarray, "fitted"], Int[np.ndarray, "held"]]:
        """The tiles of `subset` that the selection trains on, and those that it holds out."""
        held_out = hold_out(self._task.targets["train"][subset], self._settings.holdout, seed)
        return subset[~held_out], subset[held_out]

    def train(
        self,
        subset: Int[np.ndarray, "labeled"],
        seed: int,
        bar: progress.Progress,
        score_split: str = "test",
        starts: Starts | None = None,
    ) -> Outcome:
        """Selects on a part of the tiles `subset`, trains on all of them, and scores `score_split`.

        With `starts` the parameters before the first step are a candidate too.
        """
        steps = self.num_steps(len(subset))
        best = self._select(subset, seed, steps, bar, starts.selection if starts else None)
        start = starts.final if starts else None
        if not best.step:
            params = self._start(seed, start).params
        else:
            states = self.states(subset, seed, best.learning_rate, steps, start, best.layer_decay)
            for state in itertools.islice(states, best.step):
                params = state.scored_params
                bar.advance()
        bar.advance(steps - best.step)
        tiles = np.arange(self._reader.prepared.size(score_split))
        return Outcome(self.scores(params, score_split, tiles), *best[1:], steps)

    def _select(
        self,
        subset: Int[np.ndarray, "labeled"],
        seed: int,
        steps: int,
        bar: progress.Progress,
        start: LinearStart | None,
    ) -> _Candidate:
        s, best = self._settings, None
        fitted, held = self.divide(subset, seed)
        if start is not None:
            best = _Candidate(self.loss(self._start(seed, start).params, held), 0.0, 1.0, 0)
        for rate, decay in itertools.product(s.learning_rates, s.layer_decays):
            lowest, waited, step = np.inf, 0, 0
            for step, state in enumerate(self.states(fitted, seed, rate, steps, start, decay), start=1):
                bar.advance()
                if step % s.eval_every and step != steps:
                    continue
                loss = self.loss(state.scored_params, held)
                lowest, waited = (loss, 0) if loss < lowest else (lowest, waited + 1)
                if best is None or loss < best.loss:
                    best = _Candidate(loss, rate, decay, step)
                if s.patience and waited >= s.patience:
                    break
            bar.advance(steps - step)
        assert best is not None, "there is a learning rate and a step"
        return best

    def states(
        self,
        subset: Int[np.ndarray, "labeled"],
        seed: int,
        peak: float,
        steps: int,
        start: LinearStart | None = None,
        layer_decay: float = 1.0,
    ) -> Iterator[TrainState]:
        """The state after every step. Its buffers are donated to the next step: copy what must outlive it."""
        schedule = self._settings.schedule(peak, steps)
        state = self._start(seed, start)
        scales = self._reader.replicate(
            {
                "encoder": rate_scales(self._distance, layer_decay, self._settings.unfreeze),
                "head": _HEAD_SCALES,
                "standard": _STANDARD_SCALES,
            }
        )
        batch_size = min(self._settings.batch_size, len(subset))

        def read(step: int) -> Batch:
            tiles = subset[order.batch_indices(seed, step - 1, batch_size, len(subset))]
            return self._reader.read("train", tiles, {_TARGETS: self._task.targets["train"]})

        for step, batch in enumerate(read_ahead(read, range(1, steps + 1)), start=1):
            key = jax.random.fold_in(jax.random.key(seed), step)
            state = self._programs.step(state, scales, batch.arrays, key, schedule(step - 1), count=batch.num_kept)
            yield state

    def loss(self, params: PyTree, tiles: Int[np.ndarray, "tiles"]) -> float:
        """Mean log-loss of training tiles, over classes too for "multi"; infinite where it is not a number."""
        logits = self.scores(params, "train", tiles)
        value = float(_LOSSES[self._task.kind](logits, self._task.targets["train"][tiles]).mean())
        return value if np.isfinite(value) else np.inf

    def scores(self, params: PyTree, split: str, tiles: Int[np.ndarray, "tiles"]) -> Float[np.ndarray, "tiles classes"]:
        """Logits of the given tiles."""
        batches = self._reader.sweep(split, tiles, _SCORE_BATCH)
        return np.concatenate([np.asarray(self._programs.predict(params, b.arrays))[: b.num_kept] for b in batches])

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
        return TrainState(params, average, self._reader.replicate(self._training.optimizer.init(params)))

    def _pooled_width(self, params: PyTree) -> int:
        images = self._reader.prepared.contract.features()
        contracts = {name: images[name] for name in self._reader.features}
        shapes = {name: (1, c.height, c.width, len(c.bands)) for name, c in contracts.items()}
        wire = {name: jax.ShapeDtypeStruct(shape, jnp.uint16) for name, shape in shapes.items()}
        return jax.eval_shape(self._training.pooled, params, wire).shape[1]


def hold_out(targets: Float[np.ndarray, "labeled classes"], share: float, seed: int) -> Bool[np.ndarray, "labeled"]:
    """Which labeled tiles are held out: about `share` of them, stratified by the rarest class of each tile.

    Raises:
      InputError: there are fewer than two labeled tiles.
    """
    if len(targets) < 2:
        raise InputError(
            "One labeled tile is too few to train on: step and learning rate are selected on labels held out; leave "
            "finetune, scratch and supervised out, or raise label_fractions."
        )
    folds = logistic.fold_numbers(targets > 0, round(1 / share), np.random.default_rng([seed, len(targets)]))
    return folds == 0


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

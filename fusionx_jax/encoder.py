"""A trained encoder: its network, weights and normalization, and everything that turns images into features.

Evaluation, export, notebooks and scenes read features through this module alone. `load(path)` needs neither the run's
config file nor its data set: a checkpoint names its network, the bands it expects, their unit, and the
statistics that normalize them. Input that does not fit is refused.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from fusionx_jax import checkpoint, preprocess
from fusionx_jax import config as config_lib
from fusionx_jax import modalities as modalities_lib
from fusionx_jax.contract import ModalityContract, acquisition, check_modality_unit
from fusionx_jax.errors import InputError
from fusionx_jax.models import build, layers
from fusionx_jax.models.network import Network
from fusionx_jax.prepared import order
from fusionx_jax.types import Untyped

POOLINGS = ("mean", "mean_std", "class")


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A network, its weights and how its input is normalized.

    `zeros` names sensors that are not given but filled with zeros, their bands' mean: the practice that leaving tokens
    out is compared with. With two `acquisitions` each date of a tile is encoded, and the tokens are those of `compare`.
    """

    model: Network
    params: PyTree
    normalizer: preprocess.Normalizer
    zeros: tuple[str, ...] = ()
    acquisitions: int = 1

    def with_params(self, params: PyTree) -> "Encoder":
        return dataclasses.replace(self, params=params)

    def tokens(self, wire: Mapping[str, Array], rngs: Mapping[str, Array] | None = None) -> layers.Tokens:
        """Tokens of a batch of wire tiles, every patch visible; further dates are named as `acquisition` names them."""
        if self.acquisitions == 1:
            return self._tokens(wire, rngs)
        names = [n for n, _ in self.model.config.channels if n in wire]
        dates = [{n: wire[acquisition(n, i)] for n in names} for i in range(self.acquisitions)]
        return compare(*(self._tokens(date, rngs) for date in dates))

    def _tokens(self, wire: Mapping[str, Array], rngs: Mapping[str, Array] | None) -> layers.Tokens:
        p = self.model.config.patch_size
        images, valid = self.normalizer(preprocess.pad_to_multiple(wire, p, self.normalizer.nodata))
        has_data = None if valid is None else preprocess.patch_has_data(valid, p)
        first = next(iter(images.values()))
        for name, channels in self.model.config.channels:
            if name in self.zeros and name not in images:
                images[name] = jnp.zeros((*first.shape[:3], channels))
                if has_data is not None:
                    has_data[name] = jnp.ones_like(next(iter(has_data.values())))
        return self.model.apply({"params": self.params}, images, None, has_data, method="encode", rngs=rngs)

    def pooled(
        self, wire: Mapping[str, Array], rngs: Mapping[str, Array] | None = None
    ) -> dict[str, Float[Array, "batch _dim"]]:
        """All poolings of a batch: "class" (the summary token), and mean and deviation of each group's tokens."""
        return self.pools(self.tokens(wire, rngs))

    def pools(self, tokens: layers.Tokens) -> dict[str, Float[Array, "batch _dim"]]:
        """All poolings of what `tokens` gives."""
        out = {"class": tokens.summary.astype(jnp.float32)}
        for name, group in tokens.groups.items():
            out[f"{name}_mean"], out[f"{name}_std"] = pool(group.astype(jnp.float32), tokens.ok[name])
        return out

    def architecture_key(self) -> str:
        """Hash of all but the weights: network, normalization, modalities filled with zeros."""
        n = self.normalizer
        static: tuple[Untyped, ...] = (type(self.model).__name__, self.model.config, n.order, n.nodata, n.masked)
        static += (self.zeros, *([self.acquisitions] if self.acquisitions > 1 else []))
        digest = hashlib.sha256(repr(static).encode())
        for name in sorted(n.gain):
            digest.update(n.gain[name].tobytes() + n.shift[name].tobytes())
        return digest.hexdigest()[:16]

    def fingerprint(self) -> str:
        """Hash of the weights and of the normalization."""
        digest = hashlib.sha256(self.architecture_key().encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()[:16]


_Values = TypeVar("_Values", Array, np.ndarray)


def comparison(first: _Values, second: _Values) -> list[_Values]:
    """What is read of the values at two dates: both, their absolute difference and their product."""
    return [first, second, abs(second - first), first * second]


def compare(first: layers.Tokens, second: layers.Tokens) -> layers.Tokens:
    """Tokens of two dates as one: both, their absolute difference and their product, side by side.

    The difference without sign is that of SeCo (arXiv 2103.16607, section 4.4); a token has data where both dates have.
    """

    def both(a: Array, b: Array) -> Array:
        return jnp.concatenate(comparison(a.astype(jnp.float32), b.astype(jnp.float32)), axis=-1)

    ok: dict[str, Array | None] = {}
    for name, known in first.ok.items():
        other = second.ok[name]
        ok[name] = None if known is None or other is None else known & other
    groups = {name: both(tokens, second.groups[name]) for name, tokens in first.groups.items()}
    return layers.Tokens(both(first.summary, second.summary), groups, ok)


Pools = dict[str, Float[Array, "batch _dim"]]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """An encoder without weights; equal ones share compiled programs."""

    key: str
    encoder: Encoder = dataclasses.field(compare=False)

    @classmethod
    def from_encoder(cls, encoder: Encoder) -> "Architecture":
        """That of an encoder, whose weights are dropped: caches of programs must not hold them."""
        return cls(encoder.architecture_key(), encoder.with_params(None))


@functools.lru_cache(maxsize=64)
def _compile_pooled(architecture: Architecture) -> Callable[[PyTree, Mapping[str, Array]], Pools]:
    return jax.jit(lambda params, wire: architecture.encoder.with_params(params).pooled(wire))


def pooled_program(encoder: Encoder) -> Callable[[PyTree, Mapping[str, Array]], Pools]:
    """The jitted function (params, wire) -> pools, one for all encoders of the same network and normalization.

    It compiles once per input shape, whichever splits and weights it is called with.
    """
    return _compile_pooled(Architecture.from_encoder(encoder))


def pool(
    tokens: Float[Array, "batch tokens dim"], ok: Array | None
) -> tuple[Float[Array, "batch dim"], Float[Array, "batch dim"]]:
    """Mean and deviation over the tokens that carry data."""
    weight = jnp.ones(tokens.shape[:2]) if ok is None else ok.astype(jnp.float32)
    weight = (weight / jnp.maximum(weight.sum(1, keepdims=True), 1))[..., None]
    mean = (tokens * weight).sum(1)
    return mean, jnp.sqrt((((tokens - mean[:, None]) ** 2) * weight).sum(1) + 1e-8)


def assemble(pools: Mapping[str, Array | np.ndarray], pooling: str) -> Float[Array | np.ndarray, "examples dim"]:
    """The feature vector of a pooling.

    "mean" and "mean_std" pool each modality present on its own and set the parts side by side; "class" is the class
    token.

    Raises:
      InputError: there is no such pooling.
    """
    if pooling not in POOLINGS:
        raise InputError(f"evaluate.pooling is {pooling!r}; it must be one of {', '.join(POOLINGS)}.")
    if pooling == "class":
        return pools["class"]
    names = sorted(k.removesuffix("_mean") for k in pools if k.endswith("_mean"))
    kinds = ("mean",) if pooling == "mean" else ("mean", "std")
    parts = [pools[f"{n}_{k}"] for n in names for k in kinds]
    return (np if isinstance(parts[0], np.ndarray) else jnp).concatenate(parts, axis=1)


class Encoded(NamedTuple):
    """Features of a batch of tiles.

    `pooled` [B, F] is the vector that the evaluation probes (mean and deviation of each sensor's tokens, side by side,
    unless the run's `evaluate.pooling` says otherwise); `summary` [B, D] the class token; `tokens` [B, h, w, D] by
    group, a map with one vector a patch.
    """

    pooled: Float[np.ndarray, "batch features"]
    summary: Float[np.ndarray, "batch dim"]
    tokens: dict[str, Float[np.ndarray, "batch rows columns dim"]]


@dataclasses.dataclass(frozen=True)
class TrainedEncoder:
    """A trained encoder with everything needed to run it."""

    saved: checkpoint.Saved
    config: ConfigDict
    model: Network
    params: PyTree

    @property
    def modalities(self) -> dict[str, ModalityContract]:
        """The contract of each modality: bands, unit, processing level, and the statistics that normalize it."""
        return {m: self.saved.contract.modalities[m] for m in self.config.modalities}

    def encode(
        self,
        images: Mapping[str, np.ndarray],
        bands: Mapping[str, Sequence[str]] | None = None,
        batch_size: int = 64,
    ) -> Encoded:
        """Encodes co-registered tiles; modalities that are not given are left out of the token sequence.

        Args:
          images: by modality, physical values [B, H, W, C] in the unit of `modalities` (decibels, reflectance x 10^4),
            NaN where there is no data. Height and width are any, the same for all; they are padded to whole patches.
          bands: by modality, the names of its channels where they are not the checkpoint's own or in another order.
          batch_size: tiles encoded at once.

        Returns:
          Features; not-a-number for tiles without any data.

        Raises:
          InputError: an unknown modality, missing or doubled bands, shapes that do not fit, or values that are no real
            numbers or in another unit.
        """
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; it must be at least 1.")
        wire = self.to_wire(images, bands or {})
        first = next(iter(wire.values()))
        p = self.config.model.patch_size
        rows, columns = -(-first.shape[1] // p), -(-first.shape[2] // p)
        gaps = any((w == modalities_lib.NODATA).any() for w in wire.values())
        run = self.programs[gaps or bool(first.shape[1] % p or first.shape[2] % p)]
        parts = []
        for index, kept in order.equal_batches(len(first), batch_size):
            out = run(self.params, {m: w[index] for m, w in wire.items()})
            parts.append(jax.tree.map(lambda x, kept=kept: np.asarray(x)[:kept], out))
        whole = jax.tree.map(lambda *x: np.concatenate(x), *parts)
        if gaps:
            empty = np.logical_and.reduce([(w == modalities_lib.NODATA).all((1, 2, 3)) for w in wire.values()])
            if empty.any():
                whole = jax.tree.map(lambda x: np.where(empty.reshape(-1, *[1] * (x.ndim - 1)), np.nan, x), whole)
        return Encoded(
            whole["pooled"], whole["summary"],
            {m: t.reshape(len(first), rows, columns, -1) for m, t in whole["tokens"].items()},
        )  # fmt: skip

    def to_wire(self, images: Mapping[str, np.ndarray], bands: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
        """Checked tiles, bands in the order of the weights, as the uint16 that training saw."""
        if not isinstance(images, Mapping) or not images:
            raise InputError(f"No images are given by modality; this encoder knows {', '.join(self.modalities)}.")
        unknown = [m for m in [*images, *bands] if m not in self.modalities]
        if unknown:
            raise InputError(
                f"There is no modality {', '.join(unknown)} in {self.saved.path}; it has {', '.join(self.modalities)}."
            )
        out, shapes = {}, set()
        for name in (m for m in self.modalities if m in images):
            m, image = self.modalities[name], _real_array(images[name], name)
            have = tuple(bands.get(name, m.bands))
            doubled = sorted({b for b in have if have.count(b) > 1})
            if doubled:
                raise InputError(f"bands[{name!r}] names {doubled[0]} twice; name each channel of the images once.")
            if image.ndim != 4 or image.shape[-1] != len(have) or 0 in image.shape:
                raise InputError(
                    f"images[{name!r}] has the shape {image.shape}; it must be [tiles, height, width, {len(have)}] "
                    f"with the bands {', '.join(have)} (a single tile x is x[None]; name other bands with `bands`)."
                )
            missing = [b for b in m.bands if b not in have]
            if missing:
                raise InputError(
                    f"images[{name!r}] lacks the band {', '.join(missing)}; the weights were trained on "
                    f"{', '.join(m.bands)}."
                )
            image = image[..., [have.index(b) for b in m.bands]]
            check_modality_unit(image, name, m, f"images[{name!r}]")
            out[name] = modalities_lib.encode(image, m.scale, m.offset)
            shapes.add(image.shape[:3])
        if len(shapes) > 1:
            raise InputError(
                f"Modalities differ in tiles, height or width: {sorted(shapes)}; give co-registered tiles."
            )
        return out

    @functools.cached_property
    def programs(self) -> dict[bool, Untyped]:
        """Functions (params, wire) -> pooled, summary and tokens, compiled when called; True: pixels may lack data."""
        kept = {"model": self.model, "pooling": self.config.evaluate.pooling}
        return {m: jax.jit(functools.partial(outputs, normalizer=self.normalizer(m), **kept)) for m in (False, True)}

    def normalizer(self, masked: bool) -> preprocess.Normalizer:
        """Wire values to the weights' statistics; `masked`: pixels may lack data."""
        return dataclasses.replace(preprocess.make_normalizer(self.modalities, self.modalities), masked=masked)


def _real_array(values: Untyped, name: str) -> Float[np.ndarray, "..."]:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InputError(f"images[{name!r}] is not an array ({error}); give [tiles, height, width, bands].") from error
    if array.dtype.kind not in "uif":
        raise InputError(f"images[{name!r}] holds {array.dtype}; give real numbers in the unit of `modalities`.")
    return array.astype(np.float64)


def outputs(
    params: PyTree, wire: Mapping[str, Array], *, model: Network, normalizer: preprocess.Normalizer, pooling: str
) -> PyTree:
    """Pooled features, summary and tokens [B, N, D] of a batch of wire tiles; a pure function."""
    encoder = Encoder(model, params, normalizer)
    tokens = encoder.tokens(wire)
    return {
        "pooled": assemble(encoder.pools(tokens), pooling),
        "summary": tokens.summary.astype(jnp.float32),
        "tokens": {m: t.astype(jnp.float32) for m, t in tokens.groups.items()},
    }


def load(path: str) -> TrainedEncoder:
    """The encoder of a workdir's newest checkpoint, of one checkpoint, or of an export to Orbax.

    Raises:
      InputError: there is none, or its parameters are not those of the network it names.
    """
    saved = checkpoint.find(path)
    config = config_lib.from_json(saved.config)
    model = build.make_model(config, saved.contract.modalities)
    shapes = jax.eval_shape(lambda: build.init_params(model, jax.random.key(0)))
    return TrainedEncoder(
        saved, config, model, checkpoint.load_params(saved, {"encoder": shapes["encoder"]}, part=True)
    )

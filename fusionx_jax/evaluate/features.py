"""Features of a prepared set: pooled tokens of a frozen encoder, or per-band statistics.

Pooled features are cached on disk, keyed by the weights' hash, the data set's contract and the modalities present, so
that a second evaluation of the same checkpoint reads them back.
"""

import dataclasses
import hashlib
import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fusionx_jax import distributed, files, preprocess, progress, sharding, tiles
from fusionx_jax.contract import InputError
from fusionx_jax.models import layers

POOLINGS = ("mean", "mean_std", "class")


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A network, its weights and how its input is normalised.

    `zeros` names sensors that are not given but filled with zeros, their bands' mean: the practice that leaving tokens
    out is compared with.
    """

    model: Any  # one of build.FAMILIES
    params: Any
    normaliser: preprocess.Normaliser
    zeros: tuple[str, ...] = ()

    def with_params(self, params: Any) -> "Encoder":
        return dataclasses.replace(self, params=params)

    def tokens(self, wire: Mapping[str, Array], rngs: Mapping[str, Array] | None = None) -> layers.Tokens:
        """Tokens of a batch of wire tiles, every patch shown."""
        p = self.model.config.patch_size
        images, valid = self.normaliser(preprocess.pad_to_multiple(wire, p, self.normaliser.nodata))
        has_data = None if valid is None else preprocess.patch_has_data(valid, p)
        some = next(iter(images.values()))
        for name, channels in self.model.config.channels:
            if name in self.zeros and name not in images:
                images[name] = jnp.zeros((*some.shape[:3], channels))
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

    def fingerprint(self) -> str:
        """Hash of the weights and of the normalisation."""
        what = (type(self.model).__name__, self.model.config, self.normaliser.order, self.zeros)
        digest = hashlib.sha256(repr(what).encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
        for name in sorted(self.normaliser.gain):
            digest.update(self.normaliser.gain[name].tobytes() + self.normaliser.shift[name].tobytes())
        return digest.hexdigest()[:16]


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


def extract(
    encoder: Encoder,
    prepared: tiles.Readable,
    split: str,
    modalities: Sequence[str],
    batch_size: int,
    cache: str | None = None,
    what: str = "features",
    together: bool = False,
) -> dict[str, np.ndarray]:
    """Pooled features [N, ...] of every tile of a split, in order, each counted once; only `modalities` are shown.

    Batches are spread over this process's devices; the last one is filled up and what was added is cut off again.
    `together`: every process of the job calls this and encodes its share of the tiles; the first keeps them all.
    """
    key = "-".join([encoder.fingerprint(), contract_hash(prepared), split, "+".join(modalities)])
    path = os.path.join(cache, key + ".npz") if cache else None
    kept_already = bool(path) and os.path.exists(path)
    if together:
        kept_already = distributed.as_the_first_says(kept_already)
    if kept_already:
        try:
            with np.load(path, allow_pickle=False) as stored:
                return dict(stored)
        except (OSError, EOFError, ValueError, zipfile.BadZipFile):
            progress.logger.warning("The cached features %s are damaged and will be computed again.", path)
    size = prepared.size(split)
    own = np.arange(size)
    if together:  # shares of one size, the last filled up
        share = -(-size // jax.process_count())
        own = np.minimum(np.arange(share) + jax.process_index() * share, size - 1)
    mesh = sharding.make_mesh(devices=jax.local_devices())
    spread = sharding.batch_sharding(mesh)
    run = jax.jit(lambda params, wire: encoder.with_params(params).pooled(wire))
    params = jax.device_put(encoder.params, sharding.replicated(mesh))
    parts = []
    with progress.Progress(len(own), f"{what}, {split}, {'+'.join(modalities)}", "tile") as bar:
        for index, kept in tiles.equal_batches(len(own), batch_size, mesh.size):
            batch = prepared.read(split, own[index], modalities)
            found = run(params, jax.device_put(batch, spread))
            parts.append({k: np.asarray(v)[:kept] for k, v in found.items()})
            bar.advance(kept)
    out = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    if together:
        out = {k: v[:size] for k, v in distributed.gather(out).items()}
    if path and distributed.is_first():
        os.makedirs(cache, exist_ok=True)
        with files.replacing(path, "wb") as f:
            np.savez(f, **out)
    return out


def contract_hash(prepared: tiles.Readable) -> str:
    return hashlib.sha256(prepared.contract.to_json().encode()).hexdigest()[:16]


def band_statistics(
    prepared: tiles.Readable, split: str, modalities: Sequence[str], batch_size: int = 512
) -> Float[np.ndarray, "examples dim"]:
    """Mean and deviation of every band over each tile's valid pixels, in standardised units: the simplest features."""
    size = prepared.size(split)
    parts = []
    for start in range(0, size, batch_size):
        batch = prepared.read(split, np.arange(start, min(start + batch_size, size)), modalities)
        row = []
        for name in modalities:
            m = prepared.contract.modalities[name]
            wire = batch[name].astype(np.float32)
            valid = (batch[name] != m.nodata).all(-1)[..., None]
            count = np.maximum(valid.sum((1, 2)), 1)
            standard = (wire * m.scale + (m.offset - np.array(m.mean, np.float32))) / np.array(m.std, np.float32)
            mean = np.where(valid, standard, 0).sum((1, 2)) / count
            spread = np.where(valid, (standard - mean[:, None, None]) ** 2, 0).sum((1, 2)) / count
            row += [mean, np.sqrt(spread)]
        parts.append(np.concatenate(row, axis=1))
    return np.concatenate(parts).astype(np.float32)


def standardise(train: Float[np.ndarray, "train dim"], *others: Float[np.ndarray, "_examples dim"]) -> list[np.ndarray]:
    """Zero mean and unit deviation by the training split, labels unseen (MAE's probe: BatchNorm without affine)."""
    mean, std = train.mean(0), train.std(0)
    std = np.where(std > 1e-6 * max(float(std.max()), 1e-12), std, 1.0)
    return [((x - mean) / std).astype(np.float32) for x in (train, *others)]

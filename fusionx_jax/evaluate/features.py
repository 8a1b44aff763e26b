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

from fusionx_jax import files, preprocess, progress, tiles
from fusionx_jax.contract import InputError
from fusionx_jax.models import fusionx

POOLINGS = ("mean", "mean_std", "class")


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A network, its weights and how its input is normalised."""

    model: fusionx.FusionX
    params: Any
    normaliser: preprocess.Normaliser

    def fingerprint(self) -> str:
        """Hash of the weights and of the normalisation."""
        digest = hashlib.sha256(repr((self.model.config, self.normaliser.order)).encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
        for name in sorted(self.normaliser.gain):
            digest.update(self.normaliser.gain[name].tobytes() + self.normaliser.shift[name].tobytes())
        return digest.hexdigest()[:16]


def encode_tokens(model, params, normaliser, wire):
    """Class token, tokens by modality and their validity (None: all) of a batch of wire tiles."""
    p = model.config.patch_size
    images, valid = normaliser(preprocess.pad_to_multiple(wire, p, normaliser.nodata))
    has_data = None if valid is None else preprocess.patch_has_data(valid, p)
    first, tokens = model.apply({"params": params}, images, None, has_data, method="encode")
    return first, tokens, has_data


def pool(
    tokens: Float[Array, "batch tokens dim"], ok: Array | None
) -> tuple[Float[Array, "batch dim"], Float[Array, "batch dim"]]:
    """Mean and deviation over the tokens that carry data."""
    weight = jnp.ones(tokens.shape[:2]) if ok is None else ok.astype(jnp.float32)
    weight = (weight / jnp.maximum(weight.sum(1, keepdims=True), 1))[..., None]
    mean = (tokens * weight).sum(1)
    return mean, jnp.sqrt((((tokens - mean[:, None]) ** 2) * weight).sum(1) + 1e-8)


def pooled(model, params, normaliser, wire) -> dict[str, Float[Array, "batch dim"]]:
    """All poolings of a batch: "class", and mean and deviation of each modality's and of all tokens."""
    first, tokens, ok = encode_tokens(model, params, normaliser, wire)
    out = {"class": first.astype(jnp.float32)}
    groups = {name: (t, None if ok is None else ok[name]) for name, t in tokens.items()}
    joint = jnp.concatenate(list(tokens.values()), axis=1)
    groups["joint"] = (joint, None if ok is None else jnp.concatenate([ok[n] for n in tokens], axis=1))
    for name, (t, mask) in groups.items():
        out[f"{name}_mean"], out[f"{name}_std"] = pool(t.astype(jnp.float32), mask)
    return out


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
    names = sorted(k.removesuffix("_mean") for k in pools if k.endswith("_mean") and k != "joint_mean")
    kinds = ("mean",) if pooling == "mean" else ("mean", "std")
    parts = [pools[f"{n}_{k}"] for n in names for k in kinds]
    return (np if isinstance(parts[0], np.ndarray) else jnp).concatenate(parts, axis=1)


def extract(
    encoder: Encoder,
    prepared: tiles.PreparedSet,
    split: str,
    modalities: Sequence[str],
    batch_size: int,
    cache: str | None = None,
    what: str = "features",
) -> dict[str, np.ndarray]:
    """Pooled features [N, ...] of every tile of a split, in order, each counted once; only `modalities` are shown."""
    key = "-".join([encoder.fingerprint(), contract_hash(prepared), split, "+".join(modalities)])
    path = os.path.join(cache, key + ".npz") if cache else None
    if path and os.path.exists(path):
        try:
            with np.load(path, allow_pickle=False) as stored:
                return dict(stored)
        except (OSError, ValueError, zipfile.BadZipFile):
            progress.logger.warning("The cached features %s are damaged and will be computed again.", path)
    size = prepared.size(split)
    batch_size = min(batch_size, size)
    run = jax.jit(lambda params, wire: pooled(encoder.model, params, encoder.normaliser, wire))
    parts = []
    with progress.Progress(size, f"{what}, {split}, {'+'.join(modalities)}", "tile") as bar:
        for start in range(0, size, batch_size):
            index = np.arange(start, start + batch_size) % size  # the last batch is filled up, then cut: one shape
            kept = min(batch_size, size - start)
            batch = prepared.read(split, index, modalities)
            parts.append({k: np.asarray(v)[:kept] for k, v in run(encoder.params, batch).items()})
            bar.advance(kept)
    out = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    if path:
        os.makedirs(cache, exist_ok=True)
        with files.replacing(path, "wb") as f:
            np.savez(f, **out)
    return out


def contract_hash(prepared: tiles.PreparedSet) -> str:
    return hashlib.sha256(prepared.contract.to_json().encode()).hexdigest()[:16]


def band_statistics(
    prepared: tiles.PreparedSet, split: str, modalities: Sequence[str], batch_size: int = 512
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

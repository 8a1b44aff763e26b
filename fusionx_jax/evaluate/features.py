"""Features of a prepared set: pooled tokens of a frozen encoder, or per-band statistics.

Pooled features are cached on disk. The cache key is the hash of the weights, the data set's contract and the modalities
given, so a second evaluation of the same checkpoint reads them back.
"""

import hashlib
import io
import zipfile
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float

from fusionx_jax import distributed, files, progress, sharding
from fusionx_jax.encoder import Encoder, pooled_program
from fusionx_jax.prepared import order, sets

VERSION = 1  # raised when pooled features change for the same weights; kept features and cells are not used then


def extract(
    encoder: Encoder,
    prepared: sets.Readable,
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
    path = files.join(cache, key + ".npz") if cache else None
    kept_already = path is not None and files.exists(path)
    if together:
        kept_already = distributed.as_the_first_says(kept_already)
    if kept_already and path is not None:
        try:
            with np.load(io.BytesIO(files.read_bytes(path)), allow_pickle=False) as stored:
                return dict(stored)
        except (OSError, EOFError, ValueError, zipfile.BadZipFile):
            progress.logger.warning("The cached features %s are damaged and will be computed again.", path)
    size = prepared.size(split)
    local = np.arange(size)
    if together:  # shares of one size, the last filled up
        share = -(-size // jax.process_count())
        local = np.minimum(np.arange(share) + jax.process_index() * share, size - 1)
    mesh = sharding.make_mesh(devices=jax.local_devices())
    spread = sharding.batch_sharding(mesh)
    run = pooled_program(encoder)
    params = jax.device_put(encoder.params, sharding.replicated(mesh))
    parts = []
    with progress.Progress(len(local), f"{what}, {split}, {'+'.join(modalities)}", "tile") as bar:
        for index, kept in order.equal_batches(len(local), batch_size, mesh.size):
            batch = prepared.read(split, local[index], modalities)
            found = run(params, jax.device_put(batch, spread))
            parts.append({k: np.asarray(v)[:kept] for k, v in found.items()})
            bar.advance(kept)
    out = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    if together:
        out = {k: v[:size] for k, v in distributed.gather(out).items()}
    if cache and path and distributed.is_first():
        files.makedirs(cache)
        with files.replacing(path, "wb") as f:
            np.savez(f, **out)  # type: ignore[arg-type]  # numpy types its keyword allow_pickle, and the arrays, alike
    return out


def contract_hash(prepared: sets.Readable) -> str:
    return hashlib.sha256(prepared.contract.to_json().encode()).hexdigest()[:16]


def band_statistics(
    prepared: sets.Readable, split: str, modalities: Sequence[str], batch_size: int = 512
) -> Float[np.ndarray, "examples dim"]:
    """Mean and deviation of every band over each tile's valid pixels, in standardized units: the simplest features."""
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


def standardize(train: Float[np.ndarray, "train dim"], *others: Float[np.ndarray, "_examples dim"]) -> list[np.ndarray]:
    """Zero mean and unit deviation by the training split, labels unseen (MAE's probe: BatchNorm without affine)."""
    mean, std = moments(train)
    return [((x - mean) / std).astype(np.float32) for x in (train, *others)]


def moments(train: Float[np.ndarray, "train dim"]) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim"]]:
    """Mean and deviation of features; the deviation of a constant one is 1."""
    mean, std = train.mean(0), train.std(0)
    return mean, np.where(std > 1e-6 * max(float(std.max()), 1e-12), std, 1.0)

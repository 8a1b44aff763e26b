"""Features of a prepared set: pooled tokens of a frozen encoder, or per-band statistics.

Pooled features are cached on disk. The cache key is the hash of the weights, the data set's contract and the modalities
given, so a second evaluation of the same checkpoint reads them back.
"""

import hashlib
import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from fusionx_jax import distributed, files, progress, sharding
from fusionx_jax.contract import images
from fusionx_jax.encoder import Encoder, comparison, pooled_program
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
            batch = prepared.read(split, local[index], images(modalities, encoder.acquisitions))
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


class _Dates(NamedTuple):
    """One modality of a batch in standardized units, by date, and which of its pixels are valid at all dates."""

    values: list[Float[np.ndarray, "batch height width bands"]]
    valid: Bool[np.ndarray, "batch height width 1"]

    def mean(self, values: Float[np.ndarray, "batch height width bands"]) -> Float[np.ndarray, "batch bands"]:
        """Mean over the valid pixels of each tile."""
        return np.where(self.valid, values, 0).sum((1, 2)) / np.maximum(self.valid.sum((1, 2)), 1)

    def spread(self, values: Float[np.ndarray, "batch height width bands"]) -> Float[np.ndarray, "batch bands"]:
        """Deviation over the valid pixels of each tile."""
        return np.sqrt(self.mean((values - self.mean(values)[:, None, None]) ** 2))


def _statistics(
    prepared: sets.Readable,
    split: str,
    modalities: Sequence[str],
    acquisitions: int,
    compute: Callable[[list[_Dates]], Sequence[np.ndarray]],
    batch_size: int = 64,  # so few that the planes stay in the cache
) -> Float[np.ndarray, "examples dim"]:
    """What `compute` makes of the modalities of each tile, side by side."""
    size = prepared.size(split)
    parts = []
    for start in range(0, size, batch_size):
        index = np.arange(start, min(start + batch_size, size))
        batch = prepared.read(split, index, images(modalities, acquisitions))
        parts.append(np.concatenate(compute([_dates(prepared, batch, m, acquisitions) for m in modalities]), axis=1))
    return np.concatenate(parts).astype(np.float32)


def _dates(prepared: sets.Readable, batch: Mapping[str, np.ndarray], name: str, acquisitions: int) -> _Dates:
    m = prepared.contract.modalities[name]
    wire = [batch[feature] for feature in images([name], acquisitions)]
    valid = np.logical_and.reduce([(w != m.nodata).all(-1) for w in wire])[..., None]
    shift, std = m.offset - np.array(m.mean, np.float32), np.array(m.std, np.float32)
    return _Dates([(w.astype(np.float32) * m.scale + shift) / std for w in wire], valid)


def band_statistics(
    prepared: sets.Readable, split: str, modalities: Sequence[str], acquisitions: int = 1
) -> Float[np.ndarray, "examples dim"]:
    """Mean and deviation of every band over each tile's valid pixels, in standardized units: the simplest features.

    Of two dates: of both, of their absolute difference and of their product, as `encoder.compare` compares tokens.
    """

    def compute(sensors: list[_Dates]) -> list[np.ndarray]:
        row = []
        for dates in sensors:
            for plane in _planes(dates):
                row += [dates.mean(plane), dates.spread(plane)]
        return row

    return _statistics(prepared, split, modalities, acquisitions, compute)


def texture(
    prepared: sets.Readable, split: str, modalities: Sequence[str], acquisitions: int = 1
) -> Float[np.ndarray, "examples dim"]:
    """As `band_statistics`, and of every plane the mean length of its gradient and its mean local deviation.

    The gradient is taken by central differences, the deviation over 3 x 3 pixels: what co-occurrence matrices measure
    as contrast (Haralick et al., IEEE TSMC 1973).
    """

    def compute(sensors: list[_Dates]) -> list[np.ndarray]:
        row = []
        for dates in sensors:
            for plane in _planes(dates):
                filled = np.where(dates.valid, plane, dates.mean(plane)[:, None, None])
                rows, columns = np.gradient(filled, axis=(1, 2))
                row += [dates.mean(plane), dates.spread(plane), dates.mean(np.hypot(rows, columns))]
                row.append(dates.mean(_local_deviation(filled)))
        return row

    return _statistics(prepared, split, modalities, acquisitions, compute)


def _planes(dates: _Dates) -> list[Float[np.ndarray, "batch height width bands"]]:
    """The values of one date; of two dates both, their absolute difference and their product."""
    if len(dates.values) == 1:
        return dates.values
    return comparison(*dates.values)


def _local_deviation(values: Float[np.ndarray, "batch height width bands"]) -> Float[np.ndarray, "..."]:
    """Deviation over the 3 x 3 pixels around each pixel, edges repeated."""

    def mean(x: np.ndarray) -> np.ndarray:
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
        return (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / 9

    return np.sqrt(np.maximum(mean(values**2) - mean(values) ** 2, 0))


def difference_of_means(
    prepared: sets.Readable, split: str, modalities: Sequence[str]
) -> Float[np.ndarray, "examples dim"]:
    """Absolute difference between two dates of the mean of every band, in standardized units."""

    def compute(sensors: list[_Dates]) -> list[np.ndarray]:
        return [np.abs(d.mean(d.values[1]) - d.mean(d.values[0])) for d in sensors]

    return _statistics(prepared, split, modalities, 2, compute)


def change_vector(prepared: sets.Readable, split: str, modalities: Sequence[str]) -> Float[np.ndarray, "examples 3"]:
    """Change vector analysis: mean, deviation and largest length of the difference between two dates over the pixels.

    The length is taken over all bands in standardized units (Malila, "Change vector analysis", 1980; Bovolo & Bruzzone,
    IEEE TGRS 45(1), 2007).
    """

    def compute(sensors: list[_Dates]) -> list[np.ndarray]:
        valid = np.logical_and.reduce([d.valid for d in sensors])
        squares = sum(((d.values[1] - d.values[0]) ** 2).sum(-1, keepdims=True) for d in sensors)
        joint = _Dates([np.sqrt(squares)], valid)
        (length,) = joint.values
        return [joint.mean(length), joint.spread(length), np.where(valid, length, 0).max((1, 2))]

    return _statistics(prepared, split, modalities, 2, compute)


def standardize(train: Float[np.ndarray, "train dim"], *others: Float[np.ndarray, "_examples dim"]) -> list[np.ndarray]:
    """Zero mean and unit deviation by the training split, labels unseen (MAE's probe: BatchNorm without affine)."""
    center, scale = moments(train)
    return [rescale(x, center, scale) for x in (train, *others)]


def rescale(
    x: Float[np.ndarray, "examples dim"], center: Float[np.ndarray, "dim"], scale: Float[np.ndarray, "dim"]
) -> Float[np.ndarray, "examples dim"]:
    """Features less `center`, over `scale`."""
    return ((x - center) / scale).astype(np.float32)


def moments(train: Float[np.ndarray, "train dim"]) -> tuple[Float[np.ndarray, "dim"], Float[np.ndarray, "dim"]]:
    """Mean and deviation of features; the deviation of a constant one is 1."""
    mean, std = train.mean(0), train.std(0)
    return mean, np.where(std > 1e-6 * max(float(std.max()), 1e-12), std, 1.0)

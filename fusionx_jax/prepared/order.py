"""The order of tiles as a pure function of (seed, step). No TensorFlow.

The order is a format-preserving permutation of the indices (a Feistel network with cycle walking, after Black &
Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002). Each epoch visits every tile once, and the batch of any
step is computed in O(batch) without the steps before it: resuming at step 10^6 costs no more than at step 0.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

_ROUNDS = 6  # Luby & Rackoff (1988) prove four enough for large halves; halves of few bits need more
# Constants of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014).
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def _hash(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer on uint64 arrays."""
    with np.errstate(over="ignore"):
        x = x + _MIX[0]
        x = (x ^ (x >> np.uint64(30))) * _MIX[1]
        x = (x ^ (x >> np.uint64(27))) * _MIX[2]
        return x ^ (x >> np.uint64(31))


def permute(position: np.ndarray, size: int, seed: int, epoch: np.ndarray) -> np.ndarray:
    """The image of each position under its epoch's permutation of range(size).

    Args:
      position: int64, each in range(size).
      epoch: int64, of the same shape. Returns int64 of that shape.
    """
    half = max(1, ((max(size - 1, 1)).bit_length() + 1) // 2)
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    key = _hash(_hash(np.full(position.shape, seed, np.uint64)) ^ epoch.astype(np.uint64))
    out = position.astype(np.uint64)
    outside = np.ones(position.shape, bool)
    while outside.any():  # cycle walking: the cipher's domain is at most 4 times as large as `size`
        left, right = out[outside] >> shift, out[outside] & mask
        for i in range(_ROUNDS):
            left, right = right, left ^ (_hash(right ^ key[outside] ^ np.uint64(i << 56)) & mask)
        out[outside] = (left << shift) | right
        outside &= out >= np.uint64(size)
    return out.astype(np.int64)


def batch_indices(seed: int, step: int, batch_size: int, size: int) -> np.ndarray:
    """Tile indices int64 [batch_size] of the global batch of `step`: a pure function of its arguments."""
    position = np.int64(step) * batch_size + np.arange(batch_size, dtype=np.int64)
    return permute(position % size, size, seed, position // size)


def spread(size: int, count: int) -> np.ndarray:
    """`count` indices of range(size), evenly spaced and away from both ends; all indices if there are no more."""
    if size <= count:
        return np.arange(size)
    return np.unique(np.linspace(0, size - 1, count + 2).round().astype(int)[1:-1])


class Part(NamedTuple):
    """The tiles of a batch that one of several members holds: their rows in the batch, and their indices in it."""

    member: int
    rows: np.ndarray
    indices: np.ndarray


def parts(edges: np.ndarray, indices: np.ndarray) -> Iterator[Part]:
    """Divides tile indices that count through several members, of which number i begins at `edges[i]`."""
    member_of = np.searchsorted(edges, indices, side="right") - 1
    for member in np.unique(member_of):
        rows = np.flatnonzero(member_of == member)
        yield Part(int(member), rows, indices[rows] - edges[member])


def join(
    found: Sequence[tuple[np.ndarray, Mapping[str, np.ndarray]]], features: Sequence[str]
) -> dict[str, np.ndarray]:
    """One batch from parts of it, each with the rows that it fills."""
    if len(found) == 1:
        return dict(found[0][1])
    inverse = np.argsort(np.concatenate([rows for rows, _ in found]))
    return {f: np.concatenate([batch[f] for _, batch in found])[inverse] for f in features}


class PaddedBatch(NamedTuple):
    """Indices of one batch, and how many of them count; the others pad the batch to the common length."""

    indices: np.ndarray
    num_kept: int


def equal_batches(size: int, batch_size: int, multiple: int = 1) -> Iterator[PaddedBatch]:
    """Batches over range(size) in order, all of one length that is a multiple of `multiple`: one compiled program.

    The last batch is padded with indices from the beginning.
    """
    batch_size = -(-min(batch_size, size) // multiple) * multiple
    for start in range(0, size, batch_size):
        yield PaddedBatch(np.arange(start, start + batch_size) % size, min(batch_size, size - start))

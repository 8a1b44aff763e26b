"""Order as a pure function of (seed, step). No TensorFlow.

The order is a format-preserving permutation of the indices (a Feistel network with cycle walking, after Black &
Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002): each epoch visits every tile once, and the batch of
any step is computed in O(batch) without walking there, so that a resume at step 10^6 costs nothing.
"""

from collections.abc import Iterator

import numpy as np

_ROUNDS = 6
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # SplitMix64


def _hash(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer on uint64 arrays (Steele, Lea & Flood, OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        x = x + _MIX[0]
        x = (x ^ (x >> np.uint64(30))) * _MIX[1]
        x = (x ^ (x >> np.uint64(27))) * _MIX[2]
        return x ^ (x >> np.uint64(31))


def permute(position: np.ndarray, size: int, seed: int, epoch: np.ndarray) -> np.ndarray:
    """Where each position 0..size-1 of its epoch falls under that epoch's permutation of range(size).

    Args:
      position, epoch: int64 arrays of one shape. Returns int64 of that shape.
    """
    half = max(1, ((max(size - 1, 1)).bit_length() + 1) // 2)
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    key = _hash(_hash(np.full(position.shape, seed, np.uint64)) ^ epoch.astype(np.uint64))
    out = position.astype(np.uint64)
    todo = np.ones(position.shape, bool)
    while todo.any():  # cycle walking: the domain is at most 4 times as large as `size`
        left, right = out[todo] >> shift, out[todo] & mask
        for i in range(_ROUNDS):
            left, right = right, left ^ (_hash(right ^ key[todo] ^ np.uint64(i << 56)) & mask)
        out[todo] = (left << shift) | right
        todo &= out >= np.uint64(size)
    return out.astype(np.int64)


def batch_indices(seed: int, step: int, batch_size: int, size: int) -> np.ndarray:
    """Tile indices [batch_size] of the global batch of `step`: a pure function of its arguments."""
    place = np.int64(step) * batch_size + np.arange(batch_size, dtype=np.int64)
    return permute(place % size, size, seed, place // size)


def spread(size: int, count: int) -> np.ndarray:
    """`count` indices inside range(size), evenly spread and off its ends; all where there are no more."""
    if size <= count:
        return np.arange(size)
    return np.unique(np.linspace(0, size - 1, count + 2).round().astype(int)[1:-1])


def equal_batches(size: int, batch_size: int, multiple: int = 1) -> Iterator[tuple[np.ndarray, int]]:
    """Batches over range(size), in order and all of one length, a multiple of `multiple`: one compiled program.

    The last one is filled up from the beginning; each comes with how many of it count.
    """
    batch_size = -(-min(batch_size, size) // multiple) * multiple
    for start in range(0, size, batch_size):
        yield np.arange(start, start + batch_size) % size, min(batch_size, size - start)

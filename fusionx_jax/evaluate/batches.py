"""Batches of a prepared set on all local devices, read ahead by a thread while the devices compute.

Batches are split over the devices, parameters are replicated. Shapes are static: a batch whose size the number of
devices does not divide is padded with repeated tiles, which the caller leaves out of losses and scores. With one device
nothing is padded in training.
"""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, PyTree, Shaped

from fusionx_jax import preprocess, sharding
from fusionx_jax.prepared import order
from fusionx_jax.prepared.readable import Readable

_AHEAD = 2  # batches read while one is computed on, as in prepared/pipeline.py

Item = TypeVar("Item")
Value = TypeVar("Value")


class Batch(NamedTuple):
    """Arrays by feature, split over the devices; rows from `num_kept` on are padding."""

    arrays: dict[str, Shaped[Array, "rows ..."]]
    num_kept: int


def read_ahead(read: Callable[[Item], Value], items: Iterable[Item]) -> Iterator[Value]:
    """`read(item)` for every item, in order; one thread works `_AHEAD` items ahead of the consumer."""
    pending: collections.deque[concurrent.futures.Future[Value]] = collections.deque()
    pool = concurrent.futures.ThreadPoolExecutor(1, "read-ahead")
    try:
        for item in items:
            pending.append(pool.submit(read, item))
            if len(pending) > _AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # also where the consumer stops early
        pool.shutdown(cancel_futures=True)


class DeviceReader:
    """Reads features of a prepared set's tiles onto this process's devices."""

    def __init__(self, prepared: Readable, features: Sequence[str]):
        self.prepared = prepared
        self.features = list(features)
        self._mesh = sharding.make_mesh(devices=jax.local_devices())

    def read(
        self,
        split: str,
        tiles: Int[np.ndarray, "tiles"],
        columns: Mapping[str, Shaped[np.ndarray, "_size ..."]] | None = None,
    ) -> Batch:
        """The batch of `tiles`, padded to a multiple of the number of devices.

        `columns` are arrays with one row per tile of the split, added to the batch under their names.
        """
        padded = np.resize(tiles, -(-len(tiles) // self._mesh.size) * self._mesh.size)
        arrays = self.prepared.read(split, padded, self.features)
        arrays |= {name: column[padded] for name, column in (columns or {}).items()}
        return Batch(jax.device_put(arrays, sharding.batch_sharding(self._mesh)), len(tiles))

    def sweep(self, split: str, tiles: Int[np.ndarray, "tiles"], batch_size: int) -> Iterator[Batch]:
        """Batches over `tiles` in order, all of one shape."""
        parts = order.equal_batches(len(tiles), batch_size, self._mesh.size)
        return read_ahead(lambda part: self.read(split, tiles[part[0]])._replace(num_kept=part[1]), parts)

    def replicate(self, tree: PyTree) -> PyTree:
        """A copy of the arrays of `tree` on every device; the copy may be donated."""
        return jax.device_put(jax.tree.map(jnp.copy, tree), sharding.replicated(self._mesh))


def augment_rows(
    key: Key[Array, ""], arrays: Mapping[str, Shaped[Array, "rows ..."]], count: int
) -> dict[str, Shaped[Array, "rows ..."]]:
    """Random flips and turns of the first `count` rows; the padding does not affect the draws."""
    moved = preprocess.augment(key, {name: array[:count] for name, array in arrays.items()}, 0, True)
    if all(count == len(array) for array in arrays.values()):
        return moved
    return {name: jnp.concatenate([moved[name], array[count:]]) for name, array in arrays.items()}

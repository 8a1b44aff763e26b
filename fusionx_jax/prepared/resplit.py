"""A reader whose splits are made anew from the tiles of another one."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from fusionx_jax.prepared.order import batch_indices, join, parts
from fusionx_jax.prepared.readable import Readable


class Resplit:
    """The tiles of a reader in other splits.

    Tiles are numbered through the reader's splits, in the order of its contract (`positions`).
    """

    def __init__(self, reader: Readable, tiles: Mapping[str, Int[np.ndarray, "_tiles"]]):
        """`tiles` are the numbers of each split's tiles."""
        self._reader, self.directory, self._tiles = reader, reader.directory, tiles
        self._splits = list(reader.contract.splits)
        self._edges = np.cumsum([0, *reader.contract.splits.values()])
        self.contract = dataclasses.replace(reader.contract, splits={s: len(t) for s, t in tiles.items()})

    def size(self, split: str) -> int:
        """Number of tiles of a split."""
        return len(self._tiles[split])

    def order(self, split: str, seed: int, step: int, batch_size: int) -> np.ndarray:
        """Tile indices of the global batch of `step`: a pure function of its arguments."""
        return batch_indices(seed, step, batch_size, self.size(split))

    def read(self, split: str, indices: Sequence[int] | np.ndarray, features: Sequence[str]) -> dict[str, np.ndarray]:
        """The named features of the given tiles, stacked in the order of `indices`."""
        tiles = self._tiles[split][np.asarray(indices, np.int64)]
        found = [
            (p.rows, self._reader.read(self._splits[p.member], p.indices, features)) for p in parts(self._edges, tiles)
        ]
        return join(found, features)


def positions(reader: Readable, split: str) -> Int[np.ndarray, "tiles"]:
    """The numbers of a split's tiles among those of all splits."""
    splits = list(reader.contract.splits)
    first = sum(reader.contract.splits[s] for s in splits[: splits.index(split)])
    return np.arange(first, first + reader.size(split))

"""The interface of everything that tiles are read from."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from fusionx_jax.contract import Contract


@runtime_checkable
class Readable(Protocol):
    """Random access to tiles by index: a prepared set, a mixture of sets, band groups, or a reader of your own.

    Attributes:
      directory: where the tiles are stored; error messages and results name it.
      contract: bands, units, statistics, tasks and splits of the tiles.
    """

    directory: str
    contract: Contract

    def size(self, split: str) -> int:
        """Number of tiles of a split."""

    def order(self, split: str, seed: int, step: int, batch_size: int) -> np.ndarray:
        """Tile indices int64 [batch_size] of the global batch of `step`: a pure function of its arguments."""

    def read(self, split: str, indices: Sequence[int] | np.ndarray, features: Sequence[str]) -> dict[str, np.ndarray]:
        """The named features of the given tiles, stacked in the order of `indices`."""

"""Groups of bands as modalities of their own."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from fusionx_jax import contract as contract_lib
from fusionx_jax.errors import InputError
from fusionx_jax.prepared.mixture import Mixture
from fusionx_jax.prepared.store import PreparedSet


class Grouped:
    """A prepared set with groups of bands as modalities of their own, beside the sensors they come from.

    A group can then be hidden, left out or missing like any sensor.
    """

    def __init__(self, prepared: PreparedSet | Mixture, groups: Mapping[str, Sequence[str]]):
        """`groups` gives each new modality's sensor, then its bands.

        Raises:
          InputError: a group has the name of a sensor, or names a sensor or band that the set does not have.
        """
        self._prepared, self.directory = prepared, prepared.directory
        self._taken: dict[str, tuple[str, list[int]]] = {}
        known = dict(prepared.contract.modalities)
        for name, (sensor, *bands) in groups.items():
            own = prepared.contract.modalities.get(sensor)
            missing = [b for b in bands if own is None or b not in own.bands]
            if name in prepared.contract.modalities or own is None or missing or not bands:
                have = ", ".join(own.bands) if own is not None else ", ".join(prepared.contract.modalities)
                raise InputError(
                    f"band_groups gives {name!r} as {(sensor, *bands)}; it must be a new name with a sensor of the "
                    f"data set and some of its bands ({sensor if own is not None else prepared.directory} has {have})."
                )
            known[name] = contract_lib.in_band_order(own, bands)
            self._taken[name] = sensor, [own.bands.index(b) for b in bands]
        self.contract = dataclasses.replace(prepared.contract, modalities=known)

    def size(self, split: str) -> int:
        """Number of tiles of a split."""
        return self._prepared.size(split)

    def order(self, split: str, seed: int, step: int, batch_size: int) -> np.ndarray:
        """Tile indices of the global batch of `step`."""
        return self._prepared.order(split, seed, step, batch_size)

    def read(self, split: str, indices: Sequence[int] | np.ndarray, features: Sequence[str]) -> dict[str, np.ndarray]:
        """The named features of the given tiles; a group's are its bands of its sensor's."""
        stored = dict.fromkeys(self._taken[f][0] if f in self._taken else f for f in features)
        read = self._prepared.read(split, indices, list(stored))
        out = {}
        for f in features:
            sensor, bands = self._taken.get(f, (f, None))
            out[f] = read[sensor] if bands is None else np.ascontiguousarray(read[sensor][..., bands])
        return out

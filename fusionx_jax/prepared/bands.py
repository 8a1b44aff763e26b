"""Groups of bands as modalities."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fusionx_jax import contract as contract_lib
from fusionx_jax.contract import acquisition
from fusionx_jax.errors import InputError
from fusionx_jax.prepared.readable import Readable


class _Group(NamedTuple):
    """The feature that a group's bands come from, and their positions among its bands."""

    stored: str
    positions: list[int]


class BandGroups:
    """A reader with groups of bands as additional modalities, beside the sensors they come from.

    A group can be masked, left out or missing like any sensor.
    """

    def __init__(self, reader: Readable, groups: Mapping[str, Sequence[str]]):
        """`groups` maps the name of each new modality to a sensor followed by bands of that sensor.

        Raises:
          InputError: a group has the name of a sensor, or names an unknown sensor or band.
        """
        self._reader, self.directory = reader, reader.directory
        self._groups = {}
        for name, members in groups.items():
            sensor, positions = members[0], _positions(reader, name, members)
            for date in range(reader.contract.modalities[sensor].acquisitions):
                self._groups[acquisition(name, date)] = _Group(acquisition(sensor, date), positions)
        known = dict(reader.contract.modalities)
        for name, (sensor, *bands) in groups.items():
            known[name] = contract_lib.in_band_order(known[sensor], bands)
        self.contract = dataclasses.replace(reader.contract, modalities=known)

    def size(self, split: str) -> int:
        """Number of tiles of a split."""
        return self._reader.size(split)

    def order(self, split: str, seed: int, step: int, batch_size: int) -> np.ndarray:
        """Tile indices of the global batch of `step`."""
        return self._reader.order(split, seed, step, batch_size)

    def read(self, split: str, indices: Sequence[int] | np.ndarray, features: Sequence[str]) -> dict[str, np.ndarray]:
        """The named features of the given tiles; a group is read as the bands [N, H, W, C] of its sensor."""
        stored = dict.fromkeys(self._groups[f].stored if f in self._groups else f for f in features)
        batch = self._reader.read(split, indices, list(stored))
        return {f: self._bands(batch, f) if f in self._groups else batch[f] for f in features}

    def _bands(self, batch: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        group = self._groups[name]
        return np.ascontiguousarray(batch[group.stored][..., group.positions])


def _positions(reader: Readable, name: str, members: Sequence[str]) -> list[int]:
    """The positions of a group's bands in its sensor."""
    sensor, *bands = members
    modality = reader.contract.modalities.get(sensor)
    known = modality.bands if modality is not None else ()
    if name in reader.contract.modalities or not bands or any(b not in known for b in bands):
        where = sensor if modality is not None else reader.directory
        available = ", ".join(known or reader.contract.modalities)
        raise InputError(
            f"band_groups defines {name!r} as {(sensor, *bands)}; expected a new name, a sensor of the data set and at "
            f"least one of its bands ({where} has {available})."
        )
    return [known.index(b) for b in bands]

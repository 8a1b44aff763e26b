"""Several prepared sets as one, and their common contract."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from fusionx_jax import contract as contract_lib
from fusionx_jax.errors import InputError
from fusionx_jax.prepared.order import join, parts, permute
from fusionx_jax.prepared.readable import Readable

_CYCLE = 1000  # tiles after which each set has had exactly its share
_CYCLE_SEED = 0x6D69  # XORed with the seed: the order of sets in a cycle is independent of the order in a set
_EQUAL_FIELDS = ("bands", "unit", "level", "scale", "offset", "nodata", "height", "width")


class Mixture:
    """Several prepared sets as one: tiles are drawn by weight and addressed by (seed, step), like those of one set.

    The stream of tiles is divided into cycles of 1000. In each cycle every set has its share of places, at positions
    given by a permutation of the cycle, and fills them with the next tiles of its own order. Tile indices count through
    the sets one after the other.
    """

    def __init__(self, sets: Sequence[Readable], weights: Sequence[float] = ()):
        """Without weights each set counts by its training tiles.

        Raises:
          InputError: the number of weights is wrong, a weight is too small, or the sets differ in bands, unit, level,
            encoding or tile size.
        """
        self._sets = list(sets)
        self.directory = ",".join(s.directory for s in sets)
        weights = list(weights) or [float(s.size("train")) for s in sets]
        if len(weights) != len(sets) or min(weights) <= 0:
            raise InputError(
                f"dataset_weights is {tuple(weights)} for {len(sets)} data sets; give one positive weight for each."
            )
        places = _places_per_cycle(np.array(weights, np.float64))
        if places.min() < 1:
            raise InputError(
                f"dataset_weights is {tuple(weights)}; a set with less than 1/{_CYCLE} of the total is never read: "
                "give it a larger weight or leave it out."
            )
        self._edges = np.concatenate([[0], np.cumsum(places)])
        self.contract = merge_contracts([s.contract for s in sets], places / _CYCLE, [s.directory for s in sets])

    def size(self, split: str) -> int:
        """Number of tiles of a split over all sets."""
        return sum(s.size(split) for s in self._sets)

    def order(self, split: str, seed: int, step: int, batch_size: int) -> np.ndarray:
        """Tile indices of the global batch of `step`: a pure function of its arguments."""
        position = np.int64(step) * batch_size + np.arange(batch_size, dtype=np.int64)
        cycle = position // _CYCLE
        place = permute(position % _CYCLE, _CYCLE, seed ^ _CYCLE_SEED, cycle)
        out = np.empty(batch_size, np.int64)
        first = 0
        for number, member in enumerate(self._sets):
            low, high = self._edges[number], self._edges[number + 1]
            chosen = (place >= low) & (place < high)
            drawn = cycle[chosen] * (high - low) + place[chosen] - low  # tiles drawn from this set before this one
            size = member.size(split)
            out[chosen] = first + permute(drawn % size, size, seed + number, drawn // size)
            first += size
        return out

    def read(self, split: str, indices: Sequence[int] | np.ndarray, features: Sequence[str]) -> dict[str, np.ndarray]:
        """The named features of the given tiles, as `PreparedSet.read` returns them."""
        edges = np.cumsum([0] + [s.size(split) for s in self._sets])
        found = [
            (p.rows, self._sets[p.member].read(split, p.indices, features))
            for p in parts(edges, np.asarray(indices, np.int64))
        ]
        return join(found, features)


def _places_per_cycle(weights: np.ndarray) -> np.ndarray:
    """Places of each set in a cycle: shares rounded so that they sum to the cycle (largest remainder)."""
    share = weights / sum(weights.tolist())
    places = np.floor(share * _CYCLE).astype(np.int64)
    largest = np.argsort(places - share * _CYCLE, kind="stable")[: _CYCLE - places.sum()]
    places[largest] += 1
    return places


def merge_contracts(
    contracts: Sequence[contract_lib.Contract], shares: np.ndarray, names: Sequence[str]
) -> contract_lib.Contract:
    """The contract of a mixture: statistics pooled by share, no tasks (classes differ between sets).

    Raises:
      InputError: modalities differ in bands, unit, level, encoding or tile size; the message names both sets.
    """
    first = contracts[0]
    for other, name in zip(contracts[1:], names[1:]):
        _check_equal(first, other, names[0], name)
    versions = [f"{c.source_version} ({100 * w:.3g} %)" for c, w in zip(contracts, shares)]
    return contract_lib.Contract(
        name="+".join(c.name for c in contracts),
        simulated=any(c.simulated for c in contracts),
        modalities={m: _pooled([c.modalities[m] for c in contracts], shares) for m in first.modalities},
        tasks={},
        splits={s: sum(c.splits.get(s, 0) for c in contracts) for s in first.splits},
        split_origin="; ".join(f"{c.name}: {c.split_origin}" for c in contracts),
        license="; ".join(dict.fromkeys(c.license for c in contracts)),
        citation=" ".join(dict.fromkeys(c.citation for c in contracts)),
        source_version=", mixed with ".join(versions),
        notes=tuple(dict.fromkeys(note for c in contracts for note in c.notes)),
    )


def _check_equal(first: contract_lib.Contract, other: contract_lib.Contract, first_name: str, name: str) -> None:
    if set(other.modalities) != set(first.modalities):
        raise InputError(
            f"{first_name} has the modalities {', '.join(first.modalities)}, {name} has {', '.join(other.modalities)}; "
            "the sets of a mixture must have the same modalities."
        )
    for key, m in first.modalities.items():
        for field in _EQUAL_FIELDS:
            if getattr(m, field) != getattr(other.modalities[key], field):
                raise InputError(
                    f"Modality {key}: {first_name} has {field} {getattr(m, field)!r}, {name} has "
                    f"{getattr(other.modalities[key], field)!r}; the sets of a mixture must agree."
                )


def _pooled(modalities: Sequence[contract_lib.ModalityContract], shares: np.ndarray) -> contract_lib.ModalityContract:
    """The first modality with the mean and deviation of all, weighted by share."""
    mean = np.sum([w * np.array(m.mean) for w, m in zip(shares, modalities)], axis=0)
    square = np.sum([w * (np.array(m.std) ** 2 + np.array(m.mean) ** 2) for w, m in zip(shares, modalities)], axis=0)
    return dataclasses.replace(
        modalities[0],
        mean=tuple(mean.tolist()),
        std=tuple(np.sqrt(square - mean**2).tolist()),
        nodata_fraction=float(sum(w * m.nodata_fraction for w, m in zip(shares, modalities))),
        acquisitions=min(m.acquisitions for m in modalities),
    )

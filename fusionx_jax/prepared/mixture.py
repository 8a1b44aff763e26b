"""Several prepared sets as one, and one contract for them."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from fusionx_jax import contract as contract_lib
from fusionx_jax.errors import InputError
from fusionx_jax.prepared.order import permute
from fusionx_jax.prepared.store import PreparedSet

_CYCLE = 1000  # places of a mixture's stream after which the shares of its sets are met exactly


class Mixture:
    """Several prepared sets as one: tiles are drawn by weight, and addressed by (seed, step) like those of one set.

    The stream of tiles is cut into cycles of 1000 places; in each, every set has its share of places, at positions that
    a permutation of the cycle gives, and takes the next tiles of its own order. Indices run through the sets in turn.
    """

    def __init__(self, sets: Sequence[PreparedSet], weights: Sequence[float] = ()):
        """Without weights each set counts by its training tiles.

        Raises:
          InputError: weights do not fit the sets, or the sets differ in bands, unit, level, encoding or tile size.
        """
        self._sets = list(sets)
        self.directory = ",".join(s.directory for s in sets)
        weights = list(weights) or [float(s.size("train")) for s in sets]
        if len(weights) != len(sets) or min(weights) <= 0:
            raise InputError(
                f"dataset_weights is {tuple(weights)} for {len(sets)} data sets; give a positive weight for each."
            )
        share = np.array(weights, np.float64) / sum(weights)
        counts = np.floor(share * _CYCLE).astype(np.int64)
        rest = np.argsort(counts - share * _CYCLE, kind="stable")[: _CYCLE - counts.sum()]
        counts[rest] += 1
        if counts.min() < 1:
            raise InputError(f"dataset_weights is {tuple(weights)}: a set of less than a thousandth is never read.")
        self._edges = np.concatenate([[0], np.cumsum(counts)])
        self.contract = merge_contracts([s.contract for s in sets], counts / _CYCLE, [s.directory for s in sets])

    def size(self, split: str) -> int:
        """Number of tiles of a split over all sets."""
        return sum(s.size(split) for s in self._sets)

    def order(self, split: str, seed: int, step: int, batch_size: int) -> np.ndarray:
        """Tile indices of the global batch of `step`: a pure function of its arguments."""
        place = np.int64(step) * batch_size + np.arange(batch_size, dtype=np.int64)
        slot = permute(place % _CYCLE, _CYCLE, seed ^ 0x6D69, place // _CYCLE)
        out = np.empty(batch_size, np.int64)
        first = 0
        for number, prepared in enumerate(self._sets):
            low, high = self._edges[number], self._edges[number + 1]
            mine = (slot >= low) & (slot < high)
            own = (place[mine] // _CYCLE) * (high - low) + slot[mine] - low
            size = prepared.size(split)
            out[mine] = first + permute(own % size, size, seed + number, own // size)
            first += size
        return out

    def read(self, split: str, indices: Sequence[int] | np.ndarray, features: Sequence[str]) -> dict[str, np.ndarray]:
        """The named features of the given tiles, as `PreparedSet.read` gives them."""
        indices = np.asarray(indices, np.int64)
        edges = np.cumsum([0] + [s.size(split) for s in self._sets])
        parts, places = [], []
        for number, prepared in enumerate(self._sets):
            mine = np.flatnonzero((indices >= edges[number]) & (indices < edges[number + 1]))
            if len(mine):
                parts.append(prepared.read(split, indices[mine] - edges[number], features))
                places.append(mine)
        back = np.argsort(np.concatenate(places))
        return {f: np.concatenate([p[f] for p in parts])[back] for f in features}


def merge_contracts(
    contracts: Sequence[contract_lib.Contract], share: np.ndarray, names: Sequence[str]
) -> contract_lib.Contract:
    """One contract for a mixture: statistics pooled by share, labels left out (classes differ between sets).

    Raises:
      InputError: modalities differ in bands, unit, level, encoding or tile size; both sets are named.
    """
    first = contracts[0]
    for other, name in zip(contracts[1:], names[1:]):
        if set(other.modalities) != set(first.modalities):
            raise InputError(
                f"{names[0]} has the modalities {', '.join(first.modalities)}, {name} {', '.join(other.modalities)}; "
                "sets that are mixed must have the same."
            )
        for key, m in first.modalities.items():
            for field in ("bands", "unit", "level", "scale", "offset", "nodata", "height", "width"):
                if getattr(m, field) != getattr(other.modalities[key], field):
                    raise InputError(
                        f"Modality {key}: {names[0]} has {field} {getattr(m, field)!r}, {name} "
                        f"{getattr(other.modalities[key], field)!r}; sets that are mixed must agree."
                    )
    pooled = {}
    for key, m in first.modalities.items():
        of = [c.modalities[key] for c in contracts]
        mean = sum(w * np.array(o.mean) for w, o in zip(share, of))
        square = sum(w * (np.array(o.std) ** 2 + np.array(o.mean) ** 2) for w, o in zip(share, of))
        pooled[key] = dataclasses.replace(
            m,
            mean=tuple(mean.tolist()),
            std=tuple(np.sqrt(square - mean**2).tolist()),
            nodata_fraction=float(sum(w * o.nodata_fraction for w, o in zip(share, of))),
        )
    together = [f"{c.source_version} ({100 * w:.3g} %)" for c, w in zip(contracts, share)]
    return contract_lib.Contract(
        name="+".join(c.name for c in contracts),
        simulated=any(c.simulated for c in contracts),
        modalities=pooled,
        tasks={},
        splits={s: sum(c.splits.get(s, 0) for c in contracts) for s in first.splits},
        split_origin="; ".join(f"{c.name}: {c.split_origin}" for c in contracts),
        license="; ".join(dict.fromkeys(c.license for c in contracts)),
        citation=" ".join(dict.fromkeys(c.citation for c in contracts)),
        source_version=", mixed with ".join(together),
        notes=tuple(dict.fromkeys(note for c in contracts for note in c.notes)),
    )

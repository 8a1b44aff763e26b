"""Tiles at several dates, as pretraining draws them: one date for each tile and modality."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from fusionx_jax.contract import acquisition
from fusionx_jax.errors import InputError
from fusionx_jax.prepared.order import batch_indices
from fusionx_jax.prepared.readable import Readable

DRAWS = ("same", "independent", "first")
_DRAWN_SPLIT = "train"


class Acquisitions:
    """A reader whose training tiles are those of another one at every date; other splits have the first dates.

    With "same" a training tile is a place at one date, the same for all modalities; with "independent" it is a place at
    one date for each modality, all combinations; with "first" only first dates are read. An epoch of the order visits
    each of them once, so which date a batch holds is a function of (seed, step), as the order is. In place of a date
    without any data the next one with data is read. The second acquisition of a drawn tile is the date after the drawn
    one, the first date after the last.
    """

    def __init__(self, reader: Readable, draw: str):
        """`draw` is one of DRAWS.

        Raises:
          InputError: it is none of them.
        """
        if draw not in DRAWS:
            raise InputError(f"acquisitions is {draw!r}; it must be one of {', '.join(DRAWS)}.")
        self._reader, self.directory = reader, reader.directory
        modalities = reader.contract.modalities
        self._dates = {name: m.acquisitions for name, m in modalities.items()}
        self._drawn = {acquisition(n, later): (n, later) for n, k in self._dates.items() if k > 1 for later in (0, 1)}
        self._independent = draw == "independent"
        counts = list(self._dates.values())
        self._draws = 1 if draw == "first" else math.prod(counts) if self._independent else max(counts)
        splits = dict(reader.contract.splits)
        if _DRAWN_SPLIT in splits:
            splits[_DRAWN_SPLIT] *= self._draws
        self.contract = dataclasses.replace(
            reader.contract,
            modalities={n: dataclasses.replace(m, acquisitions=min(m.acquisitions, 2)) for n, m in modalities.items()},
            tasks={n: t for n, t in reader.contract.tasks.items() if t.acquisitions == 1},
            splits=splits,
            has_dates=False,
        )

    def size(self, split: str) -> int:
        """Number of tiles of a split; a training tile counts once for each draw."""
        return self._reader.size(split) * (self._draws if split == _DRAWN_SPLIT else 1)

    def order(self, split: str, seed: int, step: int, batch_size: int) -> np.ndarray:
        """Tile indices of the global batch of `step`: a pure function of its arguments."""
        return batch_indices(seed, step, batch_size, self.size(split))

    def read(self, split: str, indices: Sequence[int] | np.ndarray, features: Sequence[str]) -> dict[str, np.ndarray]:
        """The named features of the given tiles, each modality at the date that the index of the tile means."""
        indices = np.asarray(indices, np.int64)
        tiles, draw = indices, np.zeros_like(indices)
        if split == _DRAWN_SPLIT:
            places = self._reader.size(split)
            tiles, draw = indices % places, indices // places
        numbers = self._numbers(draw)
        dated = [f for f in features if f in self._drawn]
        out = self._reader.read(split, tiles, [f for f in features if f not in dated]) if dated != [*features] else {}
        for feature in dated:
            name, later = self._drawn[feature]
            out[feature] = self._read_dated(split, tiles, name, numbers[name] + later)
        return {f: out[f] for f in features}

    def _numbers(self, draw: np.ndarray) -> Mapping[str, np.ndarray]:
        """The date that each draw means, by modality."""
        out = {}
        for name, count in self._dates.items():
            out[name] = draw % count
            if self._independent:
                draw = draw // count
        return out

    def _read_dated(self, split: str, tiles: np.ndarray, name: str, numbers: np.ndarray) -> np.ndarray:
        count, nodata = self._dates[name], self._reader.contract.modalities[name].nodata
        m = self._reader.contract.modalities[name]
        out = np.empty((len(tiles), m.height, m.width, len(m.bands)), np.uint16)
        left = np.arange(len(tiles))
        for attempt in range(count):
            wanted = (numbers[left] + attempt) % count
            for number in np.unique(wanted):
                rows = left[wanted == number]
                feature = acquisition(name, int(number))
                out[rows] = self._reader.read(split, tiles[rows], [feature])[feature]
            left = left[(out[left] == nodata).all((1, 2, 3))]
            if not len(left):
                break
        return out

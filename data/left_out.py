"""Examples that cannot be used: how many are tolerated, and the list of them."""

import collections
import csv
import os

from data.source import LITTLE_DATA, LeftOut, Source
from data.tile_statistics import ShardStatistics
from fusionx_jax import files
from fusionx_jax.errors import InputError

FILE_NAME = "left_out.csv"


class Tally:
    """Examples left out so far. The preparation ends when they exceed a share of all examples."""

    def __init__(self, source: Source, directory: str, max_failures: float):
        if not 0 <= max_failures < 1:
            raise InputError(f"--max_failures is {max_failures:g}; it is a share of all tiles, from 0 to below 1.")
        self.entries = list(source.left_out())
        self._directory, self._total, self._max_failures = directory, source.listed(), max_failures

    def add(self, statistics: ShardStatistics) -> None:
        self.entries += statistics.left_out

    def forget(self, statistics: ShardStatistics) -> None:
        """Removes the entries of a shard that will be written again."""
        removed = set(statistics.left_out)
        self.entries = [entry for entry in self.entries if entry not in removed]

    def summary(self) -> str:
        """How many examples are left out, by kind."""
        kinds = collections.Counter(entry.kind for entry in self.entries)
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        return f"{len(self.entries)} of {self._total} tiles left out ({listed})"

    def too_many(self) -> bool:
        failures = sum(entry.kind != LITTLE_DATA for entry in self.entries)
        return failures > self._max_failures * self._total

    def check(self) -> None:
        """Ends the preparation if too many examples were left out.

        Raises:
          InputError: with their number by kind and the first of them.
        """
        if self.too_many():
            os.makedirs(self._directory, exist_ok=True)
            self.write()
            first = next(entry for entry in self.entries if entry.kind != LITTLE_DATA)
            raise InputError(
                f"{self.summary()}, more than --max_failures={self._max_failures:g} allows; the first: "
                f"{first.id}: {first.detail}. All are listed in {os.path.join(self._directory, FILE_NAME)}: repair the "
                "files, or allow a larger share."
            )

    def write(self) -> None:
        """Writes the list, or removes that of an earlier run if nothing is left out now."""
        path = os.path.join(self._directory, FILE_NAME)
        if not self.entries:
            files.remove(path)
            return
        with files.replacing(path, newline="") as f:
            csv.writer(f).writerows([LeftOut._fields, *sorted(self.entries)])

"""Rates of alternatives that take turns in one run.

The speed of a shared machine changes within minutes, so only rates measured in turn can be compared.
"""

import statistics
import time
from collections.abc import Callable, Mapping

Turn = Callable[[], float]
"""One turn of an alternative; returns the number of items it processed."""


def rates(contestants: Mapping[str, Turn], rounds: int) -> dict[str, float]:
    """Median items per second of each alternative over `rounds` turns, after one turn that is not timed."""
    measured: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in contestants.values():  # compiles, fills caches
        turn()
    for _ in range(rounds):
        for name, turn in contestants.items():
            started = time.perf_counter()
            count = turn()
            measured[name].append(count / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in measured.items()}

"""Label subsets: nested, stratified fractions and k-shot sets, stored as files of tile ids and reused.

Stratification of multi-label data after Sechidis, Tsoumakas & Vlahavas, "On the Stratification of Multi-Label Data"
(ECML 2011): the rarest remaining label is assigned first. Each fraction is drawn from the next larger one, so the
subsets of one seed are nested.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int

from fusionx_jax import files
from fusionx_jax.errors import InputError

# Keep the random streams of the two kinds of subsets apart; any two numbers do.
_FRACTION_STREAM, _SHOT_STREAM = 0x5B5E7, 0x5407


def stratified_subset(
    labels: Bool[np.ndarray, "examples classes"], count: int, rng: np.random.Generator
) -> Int[np.ndarray, "{count}"]:
    """Sorted positions of `count` examples with nearly the label shares of all examples.

    Raises:
      ValueError: `count` is not between 1 and the number of examples.
    """
    total = len(labels)
    if not 0 < count <= total:
        raise ValueError(f"cannot draw {count} of {total} examples")
    if count == total:
        return np.arange(total)
    stratifier = _Stratifier(labels, count, rng)
    shuffled = rng.permutation(total)
    while (label := stratifier.rarest_label()) is not None:
        for example in shuffled[(stratifier.unassigned & labels[:, label])[shuffled]]:
            stratifier.assign(int(example), label)
    for example in shuffled[stratifier.unassigned[shuffled]]:
        stratifier.assign(int(example), None)
    return np.flatnonzero(stratifier.chosen)


class _Stratifier:
    """Assigns examples to two bins, chosen and left out, as iterative stratification does."""

    def __init__(self, labels: Bool[np.ndarray, "examples classes"], count: int, rng: np.random.Generator):
        total = len(labels)
        share = count / total
        positives = labels.sum(0).astype(np.float64)
        self._labels, self._rng = labels, rng
        # By bin: how many examples, and how many positives of each label, are still missing.
        self._capacity = np.array([count, total - count], np.float64)
        self._missing = np.stack([positives * share, positives * (1 - share)])
        self._remaining = positives
        self.unassigned = np.ones(total, bool)
        self.chosen = np.zeros(total, bool)

    def rarest_label(self) -> int | None:
        """The label with the fewest unassigned positives; None once all are assigned."""
        remaining = np.flatnonzero(self._remaining > 0)
        return int(remaining[np.argmin(self._remaining[remaining])]) if len(remaining) else None

    def assign(self, example: int, label: int | None) -> None:
        """Puts an example into the bin that misses most of `label` (None: most examples), ties by capacity."""
        missing = self._missing[:, label] if label is not None else self._capacity
        open_bins = np.flatnonzero(self._capacity > 0)
        best = open_bins[missing[open_bins] == missing[open_bins].max()]
        if len(best) > 1:
            best = best[self._capacity[best] == self._capacity[best].max()]
        target = int(best[0] if len(best) == 1 else self._rng.choice(best))
        self._capacity[target] -= 1
        self._missing[target, self._labels[example]] -= 1
        self._remaining[self._labels[example]] -= 1
        self.unassigned[example] = False
        self.chosen[example] = target == 0


def nested_subsets(
    labels: Bool[np.ndarray, "examples classes"], fractions: Sequence[float], seed: int
) -> dict[float, Int[np.ndarray, "_count"]]:
    """Positions by fraction; each subset contains the smaller ones.

    Raises:
      InputError: a fraction is outside (0, 1] or selects fewer than two examples.
    """
    rng = np.random.default_rng([seed, _FRACTION_STREAM])
    current = np.arange(len(labels))
    subsets = {}
    for fraction in sorted(fractions, reverse=True):
        if not 0 < fraction <= 1:
            raise InputError(f"label_fractions contains {fraction}; a fraction must be above 0 and at most 1.")
        count = round(fraction * len(labels))
        if count < 2:
            raise InputError(
                f"The label fraction {fraction:g} of {len(labels)} training tiles selects {count}; at least 2 are "
                "needed: use a larger fraction or more data."
            )
        current = current[stratified_subset(labels[current], count, rng)]
        subsets[fraction] = current
    return {fraction: subsets[fraction] for fraction in sorted(subsets)}


def k_shot(
    labels: Bool[np.ndarray, "examples classes"], shots: Sequence[int], seed: int
) -> dict[int, Int[np.ndarray, "_count"]]:
    """Positions by k: random examples, at least k of every class (all examples of a class that has fewer).

    Exactly k per class for single-label data. For multi-label data the rarest class is filled first, and an example
    counts for all its classes. Each set contains the smaller ones.

    Raises:
      InputError: a number of shots is not positive.
    """
    if any(k < 1 for k in shots):
        raise InputError(f"shots is {tuple(shots)}; each must be at least 1.")
    order = np.random.default_rng([seed, _SHOT_STREAM]).permutation(len(labels))
    rarest_first = np.argsort(labels.sum(0), kind="stable")
    chosen = np.zeros(len(labels), bool)
    subsets = {}
    for k in sorted(shots):
        for c in rarest_first:
            positives = order[labels[order, c]]
            missing = k - int(labels[chosen, c].sum())
            if missing > 0:
                chosen[positives[~chosen[positives]][:missing]] = True
        subsets[k] = np.flatnonzero(chosen)
    return subsets


def draw(
    labels: Bool[np.ndarray, "examples classes"], fractions: Sequence[float], shots: Sequence[int], seed: int
) -> dict[str, Int[np.ndarray, "_count"]]:
    """All subsets of one seed by name: "0.1" for a fraction of the labels, "5-shot" for five examples per class."""
    by_fraction = nested_subsets(labels, fractions, seed) if fractions else {}
    named = {f"{fraction:g}": positions for fraction, positions in by_fraction.items()}
    return named | {f"{k}-shot": positions for k, positions in k_shot(labels, shots, seed).items()}


def digest(positions: Int[np.ndarray, "_count"]) -> str:
    """Hash of a set of positions."""
    return hashlib.sha256(np.sort(positions).astype("<i8").tobytes()).hexdigest()[:12]


def file_name(label: str, seed: int) -> str:
    """Name of the file that lists a subset's tiles."""
    return f"{label}_seed{seed}.txt" if label.endswith("shot") else f"fraction{label}_seed{seed}.txt"


def write(directory: str, ids: Sequence[str], subsets: Mapping[str, Int[np.ndarray, "_count"]], seed: int) -> None:
    """Writes one file per subset with one tile id per line; files are replaced atomically."""
    files.makedirs(directory)
    for label, positions in subsets.items():
        path = files.join(directory, file_name(label, seed))
        with files.replacing(path) as f:
            f.writelines(f"{ids[p]}\n" for p in positions)


def _lines(path: str) -> list[str]:
    """Lines that are not empty, without a byte-order mark."""
    try:
        text = files.read_text(path).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason}); save the file in UTF-8.") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def read(
    directory: str, ids: Sequence[str], labels: Sequence[str], seed: int
) -> dict[str, Int[np.ndarray, "_count"]] | None:
    """Positions of the subsets stored in a directory, by name; None if a file is missing.

    Raises:
      InputError: a file does not list at least two distinct tiles of the training split.
    """
    positions = {tile: i for i, tile in enumerate(ids)}
    subsets = {}
    for label in labels:
        path = files.join(directory, file_name(label, seed))
        if not files.exists(path):
            return None
        listed = _lines(path)
        unknown = [tile for tile in listed if tile not in positions]
        if unknown or len(listed) < 2 or len(set(listed)) < len(listed):
            raise InputError(
                f"{path} lists {len(listed)} tiles, {len(set(listed))} of them distinct, of which {len(unknown)} are "
                "not in the training split"
                + (f" (the first is {unknown[0]})" if unknown else "")
                + "; at least 2 distinct tiles of this data set are expected: correct the file, or remove the folder "
                "to draw new subsets."
            )
        subsets[label] = np.array([positions[tile] for tile in listed])
    return subsets

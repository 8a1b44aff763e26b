"""Nested, stratified label subsets, written as id files and reusable.

Stratification of multi-label data follows Sechidis, Tsoumakas & Vlahavas, "On the Stratification of Multi-Label Data"
(ECML 2011): examples of the label with fewest left are placed first. Each smaller fraction is drawn from the next
larger one, so subsets of one seed are nested.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int

from fusionx_jax import files
from fusionx_jax.errors import InputError


def stratified_subset(
    labels: Bool[np.ndarray, "examples classes"], count: int, rng: np.random.Generator
) -> Int[np.ndarray, "count"]:
    """Sorted positions of `count` examples whose label shares are those of all examples, as nearly as may be."""
    total = len(labels)
    if not 0 < count <= total:
        raise ValueError(f"cannot draw {count} of {total} examples")
    if count == total:
        return np.arange(total)
    share = count / total
    # Two bins, chosen and left; `wanted` is how many examples (and positives of each label) each still lacks.
    room = np.array([count, total - count], np.float64)
    positives = labels.sum(0).astype(np.float64)
    wanted = np.stack([positives * share, positives * (1 - share)])
    unplaced = np.ones(total, bool)
    left = positives.copy()
    chosen = np.zeros(total, bool)
    shuffled = rng.permutation(total)

    def place(example: int, label: int | None) -> None:
        need = wanted[:, label] if label is not None else room
        open_bins = np.flatnonzero(room > 0)
        best = open_bins[need[open_bins] == need[open_bins].max()]
        if len(best) > 1:
            best = best[room[best] == room[best].max()]
        target = int(best[0] if len(best) == 1 else rng.choice(best))
        room[target] -= 1
        wanted[target, labels[example]] -= 1
        left[labels[example]] -= 1
        unplaced[example] = False
        chosen[example] = target == 0

    while True:
        remaining = np.flatnonzero(left > 0)
        if not len(remaining):
            break
        label = int(remaining[np.argmin(left[remaining])])
        for example in shuffled[(unplaced & labels[:, label])[shuffled]]:
            place(int(example), label)
    for example in shuffled[unplaced[shuffled]]:
        place(int(example), None)
    return np.flatnonzero(chosen)


def nested_subsets(
    labels: Bool[np.ndarray, "examples classes"], fractions: Sequence[float], seed: int
) -> dict[float, Int[np.ndarray, "count"]]:
    """Positions by fraction, each smaller subset inside the next larger one.

    Raises:
      InputError: a fraction is outside (0, 1] or leaves fewer than two examples.
    """
    rng = np.random.default_rng([seed, 0x5B5E7])
    current = np.arange(len(labels))
    out = {}
    for fraction in sorted(fractions, reverse=True):
        if not 0 < fraction <= 1:
            raise InputError(f"label_fractions holds {fraction}; fractions lie above 0 and at most at 1.")
        count = round(fraction * len(labels))
        if count < 2:
            raise InputError(
                f"The label fraction {fraction:g} of {len(labels)} training tiles leaves {count}; at least 2 are "
                "needed: use a larger fraction or more data."
            )
        current = current[stratified_subset(labels[current], count, rng)]
        out[fraction] = current
    return {f: out[f] for f in sorted(out)}


def k_shot(
    labels: Bool[np.ndarray, "examples classes"], shots: Sequence[int], seed: int
) -> dict[int, Int[np.ndarray, "_count"]]:
    """Positions by k: at least k examples of every class (all it has where they are fewer), drawn at random.

    Exactly k a class for single-label data. For multi-label data the rarest class is filled first and an example counts
    for all its classes. Smaller sets lie inside larger ones.

    Raises:
      InputError: a number of shots is not positive.
    """
    if any(k < 1 for k in shots):
        raise InputError(f"shots is {tuple(shots)}; each must be at least 1.")
    order = np.random.default_rng([seed, 0x5407]).permutation(len(labels))
    rarest_first = np.argsort(labels.sum(0), kind="stable")
    chosen = np.zeros(len(labels), bool)
    out = {}
    for k in sorted(shots):
        for c in rarest_first:
            own = order[labels[order, c]]
            lacking = k - int(labels[chosen, c].sum())
            if lacking > 0:
                chosen[own[~chosen[own]][:lacking]] = True
        out[k] = np.flatnonzero(chosen)
    return out


def draw(
    labels: Bool[np.ndarray, "examples classes"], fractions: Sequence[float], shots: Sequence[int], seed: int
) -> dict[str, Int[np.ndarray, "_count"]]:
    """All subsets of one seed by label: "0.1" for a share of the labels, "5-shot" for five of each class."""
    out = {f"{f:g}": positions for f, positions in nested_subsets(labels, fractions, seed).items()} if fractions else {}
    return out | {f"{k}-shot": positions for k, positions in k_shot(labels, shots, seed).items()}


def digest(positions: Int[np.ndarray, "_count"]) -> str:
    """A word for which examples these are."""
    return hashlib.sha256(np.sort(positions).astype("<i8").tobytes()).hexdigest()[:12]


def file_name(label: str, seed: int) -> str:
    return f"{label}_seed{seed}.txt" if label.endswith("shot") else f"fraction{label}_seed{seed}.txt"


def write(directory: str, ids: Sequence[str], subsets: Mapping[str, np.ndarray], seed: int) -> None:
    """One file a subset, one tile id a line, under its final name only when complete."""
    os.makedirs(directory, exist_ok=True)
    for label, positions in subsets.items():
        path = os.path.join(directory, file_name(label, seed))
        with files.replacing(path) as f:
            f.writelines(f"{ids[p]}\n" for p in positions)


def read(directory: str, ids: Sequence[str], labels: Sequence[str], seed: int) -> dict[str, np.ndarray] | None:
    """Subsets written before, or published ones; None if a file is missing.

    Raises:
      InputError: a file names a tile that the training split does not have.
    """
    place = {tile: i for i, tile in enumerate(ids)}
    out = {}
    for label in labels:
        path = os.path.join(directory, file_name(label, seed))
        if not os.path.exists(path):
            return None
        with open(path, encoding="utf-8") as f:
            wanted = f.read().splitlines()
        unknown = [tile for tile in wanted if tile not in place]
        if unknown or len(wanted) < 2 or len(set(wanted)) < len(wanted):
            raise InputError(
                f"{path} names {len(wanted)} tiles, {len(set(wanted))} of them distinct, of which {len(unknown)} are "
                "not in the training split"
                + (f" (the first is {unknown[0]})" if unknown else "")
                + "; give the subsets of this data set, or remove the folder."
            )
        out[label] = np.array([place[tile] for tile in wanted])
    return out

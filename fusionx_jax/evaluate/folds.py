"""How tiles are divided into those whose labels are used and those that are scored.

By default by the splits of the set. With `evaluate.folds` the tiles of all splits are divided into folds, and each fold
is scored with the labels of the others: every tile is scored once, as small sets need. The tiles of a group (a scene, a
place) are in one fold.
"""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from ml_collections import ConfigDict

from fusionx_jax.contract import Contract
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate.labels import Labels
from fusionx_jax.prepared import resplit
from fusionx_jax.prepared.order import parts
from fusionx_jax.prepared.readable import Readable

_ALL = "all"  # the tiles of all splits


class Division(NamedTuple):
    """Training and scored tiles with their labels.

    name: "" for the set's own splits.
    labels: of tiles that are labeled, by split.
    prepared: the tiles by these splits.
    rows: by split, the numbers of its tiles (`resplit.positions`); None where they are the set's own.
    """

    name: str
    labels: Labels
    prepared: Readable
    rows: Mapping[str, Int[np.ndarray, "_tiles"]] | None

    def select(self, features: Callable[[str], np.ndarray], contract: Contract) -> Callable[[str], np.ndarray]:
        """`features`, which gives those of a split of the set, for the splits of this division."""
        if self.rows is None:
            return features
        rows = self.rows

        @functools.cache
        def selected(split: str) -> np.ndarray:
            edges, splits = np.cumsum([0, *contract.splits.values()]), list(contract.splits)
            # Tiles of a division are in ascending order, so that the parts follow one another.
            return np.concatenate([features(splits[p.member])[p.indices] for p in parts(edges, rows[split])])

        return selected


def divide(labels: Labels, prepared: Readable, config: ConfigDict) -> list[Division]:
    """The divisions that `config` (the `evaluate` part) asks for; unlabeled tiles are in none.

    Raises:
      InputError: a split has no labeled tile, or there are fewer groups than folds.
    """
    count = config.get("folds", 0)
    splits = list(prepared.contract.splits)
    if not count:
        labeled = {s: _labeled(labels, s) for s in labels.targets}
        if all(known.all() for known in labeled.values()):
            return [Division("", labels, prepared, None)]
        rows = {s: resplit.positions(prepared, s)[known] for s, known in labeled.items() if known.any()}
        lacking = [s for s in ("train", str(config.score_split)) if s not in rows]
        if lacking:
            raise InputError(
                f"Task {labels.name}: no tile of the split {lacking[0]!r} of {prepared.directory} is labeled."
            )
        divided = labels.select({s: np.flatnonzero(labeled[s]) for s in rows})
        return [Division("", divided, resplit.Resplit(prepared, rows), rows)]
    pool = labels.joined(splits, _ALL)
    known = np.flatnonzero(_labeled(pool, _ALL))
    groups = pool.groups[_ALL][known] if pool.groups else None
    fold_of = assign_folds(pool.targets[_ALL][known] > 0, groups, count, f"{prepared.directory}, task {labels.name}")
    out = []
    for fold in range(count):
        rows = {"train": known[fold_of != fold], str(config.score_split): known[fold_of == fold]}
        name = f"fold{fold}-of-{count}"
        out.append(Division(name, pool.select(rows, _ALL), resplit.Resplit(prepared, rows), rows))
    return out


def assign_folds(
    present: Bool[np.ndarray, "tiles classes"], groups: np.ndarray | None, count: int, where: str
) -> Int[np.ndarray, "tiles"]:
    """The fold of each tile: groups stay together, folds have about equal shares of the rarest class of each tile.

    scikit-learn's StratifiedGroupKFold, in an order that depends on nothing but its arguments.

    Raises:
      InputError: there are fewer groups than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    groups = np.arange(len(present)) if groups is None else groups
    number = len(np.unique(groups))
    if number < count:
        raise InputError(
            f"evaluate.folds is {count}, but {where} has {number} group(s) of labeled tiles (scenes, places), which "
            "stay together; use fewer folds or more places."
        )
    frequency = present.sum(0)
    rarest = np.where(present, frequency, len(present) + 1).argmin(1)
    stratum = np.where(present.any(1), rarest, present.shape[1])
    out = np.empty(len(present), np.int64)
    # The shuffle decides between equal choices; a class with fewer tiles than folds only makes it warn.
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for fold, (_, scored) in enumerate(splitter.split(present, stratum, groups)):
            out[scored] = fold
    empty = [f for f in range(count) if not (out == f).any()]
    if empty:
        raise InputError(
            f"evaluate.folds is {count}, but the groups of {where} differ so much in size that a fold stays empty; use "
            "fewer folds."
        )
    return out


def _labeled(labels: Labels, split: str) -> Bool[np.ndarray, "tiles"]:
    return np.isfinite(labels.targets[split]).all(1)

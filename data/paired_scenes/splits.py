"""Assigning tiles to splits: by scene, by block, or from lists of scenes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data.paired_scenes.spec import SplitSpec
from data.source import SPLITS
from fusionx_jax.errors import InputError
from fusionx_jax.types import Untyped

# Between two neighboring tiles of different splits, the tile of the split named first here is kept.
_KEPT_FIRST = ("test", "val", "train")


class Tile(NamedTuple):
    """A tile's scene and its first row and column in pixels."""

    scene: str
    row: int
    column: int


def assign_splits(split: SplitSpec, tiles: Sequence[Tile], size: int) -> dict[str, tuple[Tile, ...]]:
    """Assigns tiles of `size` pixels to splits.

    By scene, all tiles of a scene belong to one split. By block, all tiles of a square block do, and tiles that touch
    a tile of another split are left out. A split that lists its scenes leaves out the scenes that no list names.

    Raises:
      InputError: a listed scene is missing, or the training or test split is empty.
    """
    scenes = sorted({t.scene for t in tiles})
    rng = np.random.default_rng(split.seed)
    assigned: Mapping[Tile, str | None]
    if split.by == "list":
        listed = {scene: s for s, names in split.scenes.items() for scene in names}
        unknown = sorted(set(listed) - set(scenes))
        if unknown:
            raise InputError(
                f"The spec's split names the scene {unknown[0]}, which is not there ({', '.join(scenes)})."
            )
        assigned = {t: listed.get(t.scene) for t in tiles}
    elif split.by == "scene":
        if len(scenes) < 3:
            raise InputError(
                f"Splitting by scene needs at least 3 scenes, and there are {len(scenes)}; use `split: {{by: block}}`."
            )
        split_of_scene = _random_splits(scenes, split.fractions, rng)
        assigned = {t: split_of_scene[t.scene] for t in tiles}
    else:
        assigned = _by_block(tiles, size, split.block, split.fractions, rng)
    out = {s: tuple(t for t in tiles if assigned[t] == s) for s in SPLITS}
    empty = [s for s in ("train", "test") if not out[s]]
    if empty:
        raise InputError(
            f"The split {empty[0]!r} is empty: there are {len(tiles)} tiles of {len(scenes)} scene(s); use smaller "
            "tiles, smaller blocks, or other fractions in the spec's `split:`."
        )
    return out


def _random_splits(
    items: Sequence[Untyped], fractions: Mapping[str, float], rng: np.random.Generator
) -> dict[Untyped, str]:
    """A split for each item, in random order: first one item for each split, then by fraction."""
    names = [s for s in ("test", "train", "val") if fractions.get(s, 0) > 0]
    counts = dict.fromkeys(names, 0)
    total = sum(fractions[s] for s in names)
    out = {}
    for i, k in enumerate(rng.permutation(len(items))):
        split = max(names, key=lambda s: (counts[s] == 0, fractions[s] / total * (i + 1) - counts[s]))
        counts[split] += 1
        out[items[k]] = split
    return out


def _by_block(
    tiles: Sequence[Tile], size: int, block: int, fractions: Mapping[str, float], rng: np.random.Generator
) -> dict[Tile, str | None]:
    """Splits of tiles by blocks of `block` x `block` tiles; None for tiles that touch a split kept before theirs."""
    block_of = {t: (t.scene, t.row // (size * block), t.column // (size * block)) for t in tiles}
    split_of_block = _random_splits(sorted(set(block_of.values())), fractions, rng)
    assigned = {t: split_of_block[block_of[t]] for t in tiles}

    def touches_split_kept_first(tile: Tile) -> bool:
        around = (
            assigned.get(Tile(tile.scene, tile.row + rows, tile.column + columns))
            for rows in (-size, 0, size)
            for columns in (-size, 0, size)
        )
        return any(s and _KEPT_FIRST.index(s) < _KEPT_FIRST.index(assigned[tile]) for s in around)

    return {t: None if touches_split_kept_first(t) else s for t, s in assigned.items()}

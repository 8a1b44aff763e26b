"""Assigning tiles to splits: by scene, by block, or from lists of scenes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data.paired_scenes.footprints import Place
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

    @property
    def id(self) -> str:
        return f"{self.scene}_r{self.row}_c{self.column}"


def assign_splits(
    split: SplitSpec, tiles: Sequence[Tile], size: int, places: Mapping[str, Place] | None = None
) -> dict[str, tuple[Tile, ...]]:
    """Assigns tiles of `size` pixels to splits.

    By scene, all tiles of a group of scenes belong to one split. By block, all tiles of a square block of the ground
    do, and tiles that touch a tile of another split are left out; a group whose scenes have no common pixel grid is one
    block. A split that lists its scenes leaves out the scenes that no list names.

    Args:
      places: groups of scenes that show the same ground (`footprints.place_scenes`); by default each scene is one.

    Raises:
      InputError: a listed scene is missing, a group is in several lists, or the training or test split is empty.
    """
    scenes = sorted({t.scene for t in tiles})
    places = places or {s: Place(s, 0, 0) for s in scenes}
    group_of = {s: places[s].group for s in scenes}
    groups = sorted(set(group_of.values()))
    rng = np.random.default_rng(split.seed)
    assigned: Mapping[Tile, str | None]
    if split.by == "list":
        listed = {scene: s for s, names in split.scenes.items() for scene in names}
        unknown = sorted(set(listed) - set(scenes))
        if unknown:
            raise InputError(
                f"The spec's split names the scene {unknown[0]}, which is not there ({', '.join(scenes)})."
            )
        _check_groups(listed, group_of)
        assigned = {t: listed.get(t.scene) for t in tiles}
    elif split.by == "scene":
        if len(groups) < 3:
            largest = max(([s for s in scenes if group_of[s] == g] for g in groups), key=len)
            overlap = f"; {', '.join(largest)} overlap and count as one" if len(largest) > 1 else ""
            raise InputError(
                f"Splitting by scene needs at least 3 places, and there are {len(groups)}{overlap}; use "
                "`split: {by: block}`."
            )
        split_of_group = _random_splits(groups, split.fractions, rng)
        assigned = {t: split_of_group[group_of[t.scene]] for t in tiles}
    else:
        assigned = _by_block(tiles, size, split, places, rng)
    out = {s: tuple(t for t in tiles if assigned[t] == s) for s in SPLITS}
    empty = [s for s in ("train", "test") if not out[s]]
    if empty:
        raise InputError(
            f"The split {empty[0]!r} is empty: there are {len(tiles)} tiles of {len(scenes)} scene(s); use smaller "
            "tiles, smaller blocks, or other fractions in the spec's `split:`."
        )
    return out


def _check_groups(listed: Mapping[str, str], group_of: Mapping[str, str]) -> None:
    """Refuses lists that put scenes of one group into different splits."""
    first: dict[str, str] = {}
    for scene, split in listed.items():
        other = first.setdefault(group_of[scene], scene)
        if listed[other] != split:
            raise InputError(
                f"The scenes {other} and {scene} overlap or are one group, but the spec's lists put {other} into "
                f"{listed[other]} and {scene} into {split}; put them into one split."
            )


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
    tiles: Sequence[Tile], size: int, split: SplitSpec, places: Mapping[str, Place], rng: np.random.Generator
) -> dict[Tile, str | None]:
    """Splits of tiles by square blocks; None for tiles that touch or overlap a tile of a split kept before theirs."""
    side = size * split.block
    ground: dict[Tile, tuple[str, int, int] | None] = {}
    block_of: dict[Tile, tuple[str, int, int]] = {}
    for t in tiles:
        place = places[t.scene]
        if place.row is None or place.column is None:
            block_of[t] = (place.group, -1, -1)
            continue
        ground[t] = (place.group, place.row + t.row, place.column + t.column)
        block_of[t] = (place.group, (place.row + t.row) // side, (place.column + t.column) // side)
    split_of_block = _random_splits(sorted(set(block_of.values())), split.fractions, rng)
    assigned = {t: split_of_block[block_of[t]] for t in tiles}
    cells: dict[tuple[str, int, int], list[Tile]] = {}
    for t, where in ground.items():
        if where:
            cells.setdefault((where[0], where[1] // size, where[2] // size), []).append(t)

    def touches_split_kept_first(tile: Tile) -> bool:
        where = ground.get(tile)
        if where is None:
            return False
        group, row, column = where
        for rows in (-1, 0, 1):
            for columns in (-1, 0, 1):
                for other in cells.get((group, row // size + rows, column // size + columns), ()):
                    _, other_row, other_column = ground[other] or where
                    near = abs(other_row - row) <= size and abs(other_column - column) <= size
                    if near and _KEPT_FIRST.index(assigned[other]) < _KEPT_FIRST.index(assigned[tile]):
                        return True
        return False

    return {t: None if touches_split_kept_first(t) else s for t, s in assigned.items()}

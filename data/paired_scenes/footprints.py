"""Scenes that show the same ground: their footprints overlap, or the YAML names them as one group."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from data.raster import grid as grids
from data.raster.file import Grid

_ALIGNED = 0.1  # pixels by which aligned grids may differ
_EDGE_POINTS = 9  # on each side of a footprint, since sides may curve in longitude and latitude


class Place(NamedTuple):
    """Where a scene lies among those that show the same ground.

    Attributes:
      group: scenes of one group must not be in different splits.
      row, column: the scene's first pixel on the pixel grid of the group; None if the scenes have no common one.
    """

    group: str
    row: int | None
    column: int | None


def place_scenes(
    grid_of: Mapping[str, Grid | None], named: Mapping[str, Sequence[str]], whole_scenes: bool = True
) -> tuple[dict[str, Place], list[str]]:
    """The place of each scene, and remarks on scenes that overlap.

    A group has the name that the YAML gives it, or that of its first scene. Where all scenes have one footprint, no
    split of whole scenes could keep it apart, and their coordinates may be placeholders: each scene is then a group,
    with a warning.

    Args:
      whole_scenes: whether scenes are assigned to splits as a whole, and not block by block of the ground.
    """
    grids_only = [g for g in grid_of.values() if g is not None]
    several = whole_scenes and len(grid_of) > 2 and not named and len(grids_only) == len(grid_of)
    if several and all(grids.is_same(g, grids_only[0]) for g in grids_only):
        warning = (
            f"warning: all {len(grid_of)} scenes have the same footprint. If their coordinates are right, splits by "
            "scene show the same ground: use `split: {by: block}`, or give scenes of several places"
        )
        return {scene: Place(scene, 0, 0) for scene in grid_of}, [warning]
    members_of = _groups(grid_of, named)
    names = {scene: name for name, members in named.items() for scene in members}
    out: dict[str, Place] = {}
    remarks = []
    for members in members_of:
        name = next((names[s] for s in members if s in names), min(members))
        out |= {scene: Place(name, *offset) for scene, offset in _offsets(members, grid_of).items()}
        if len(members) > 1 and not set(members) <= set(names):
            remarks.append(f"the scenes {', '.join(members)} overlap and stay in one split where they do")
    return out, remarks


def _groups(grid_of: Mapping[str, Grid | None], named: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Scenes that are named together or overlap, directly or through others."""
    parent = {scene: scene for scene in grid_of}

    def root(scene: str) -> str:
        while parent[scene] != scene:
            scene = parent[scene]
        return scene

    for members in named.values():
        for scene in members[1:]:
            parent[root(scene)] = root(members[0])
    placed = {s: g for s, g in grid_of.items() if g is not None}
    for a, b in _candidates(placed):
        if grids.overlap(placed[a], placed[b]) > 0 or grids.overlap(placed[b], placed[a]) > 0:
            parent[root(b)] = root(a)
    members_of: dict[str, list[str]] = {}
    for scene in grid_of:
        members_of.setdefault(root(scene), []).append(scene)
    return list(members_of.values())


def _offsets(
    members: Sequence[str], grid_of: Mapping[str, Grid | None]
) -> dict[str, tuple[int, int] | tuple[None, None]]:
    """First row and column of each scene on the pixel grid of the first one; None if their grids do not align."""
    first = grid_of[members[0]]
    if len(members) == 1:
        return {members[0]: (0, 0)}
    out: dict[str, tuple[int, int] | tuple[None, None]] = {}
    for scene in members:
        grid = grid_of[scene]
        if first is None or grid is None or grid.crs != first.crs:
            return dict.fromkeys(members, (None, None))
        column, row = ~first.transform * (grid.transform.c, grid.transform.f)
        moved = first.transform * first.transform.translation(column, row)
        if (
            not np.allclose(tuple(moved)[:6], tuple(grid.transform)[:6], rtol=1e-6)
            or abs(np.array([row, column]) - np.rint([row, column])).max() > _ALIGNED
        ):
            return dict.fromkeys(members, (None, None))
        out[scene] = (round(row), round(column))
    return out


def _candidates(placed: Mapping[str, Grid]) -> list[tuple[str, str]]:
    """Pairs of scenes whose bounds in longitude and latitude overlap."""
    scenes = sorted(placed)
    if not scenes:
        return []
    bounds = np.stack([_bounds(placed[s]) for s in scenes])
    pairs = []
    for i in range(len(scenes)):
        later = bounds[i + 1 :]
        meets = (later[:, :2] < bounds[i, 2:]).all(1) & (later[:, 2:] > bounds[i, :2]).all(1)
        pairs += [(scenes[i], scenes[i + 1 + j]) for j in np.flatnonzero(meets)]
    return pairs


def _bounds(grid: Grid) -> Float[np.ndarray, "4"]:
    """West, south, east, north in degrees; all of the Earth where the grid crosses the date line."""
    from rasterio.warp import transform

    along = np.linspace(0, 1, _EDGE_POINTS)
    rows, columns = np.meshgrid(along * grid.height, along * grid.width)
    x, y = grid.transform * (columns.ravel(), rows.ravel())
    longitude, latitude = (np.array(v) for v in transform(grid.crs, "EPSG:4326", list(x), list(y)))
    if np.ptp(longitude) > 180:
        longitude = np.array([-180.0, 180.0])
    return np.array([longitude.min(), latitude.min(), longitude.max(), latitude.max()])

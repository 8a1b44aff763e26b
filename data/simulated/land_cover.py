"""The map of one simulated place: parcels, then woods, a town, a lake and a river over them."""

from typing import NamedTuple

import numpy as np

from data.simulated.classes import (
    BROADLEAF,
    CLASSES,
    CONIFER,
    FLOODED,
    PADDY,
    PRIOR,
    URBAN,
    WATER,
    WETLAND,
    WOODLAND,
)
from data.simulated.fields import field, grid


class LandCover(NamedTuple):
    """Class and parcel number of each pixel, int64 [H, W]."""

    cover: np.ndarray
    parcel: np.ndarray


class _Parcels(NamedTuple):
    """Parcel number of each pixel, and how many parcels were drawn."""

    number: np.ndarray
    drawn: int


def draw(rng: np.random.Generator, size: int) -> LandCover:
    """The map of a place. The order of the draws is part of the world: changing it changes every tile."""
    yx = grid(size)
    parcels = _parcels(rng, yx, size)
    # A place favors a few classes: a Dirichlet draw around the long-tailed prior.
    mix = rng.dirichlet(PRIOR * 3.0)
    classes = rng.choice(len(CLASSES), size=parcels.drawn, p=mix)
    cover = classes[parcels.number]
    if rng.random() < 0.30:  # woods that follow the terrain, not the parcels
        wood = rng.choice([BROADLEAF, CONIFER, FLOODED, WOODLAND], p=[0.45, 0.33, 0.10, 0.12])
        cover = np.where(field(rng, size, 3.2) > rng.uniform(0.3, 1.6), wood, cover)
    if rng.random() < 0.14:  # a town
        center = rng.uniform(0, size, 2)
        reach = np.hypot(yx[0] - center[0], yx[1] - center[1]) / rng.uniform(0.10, 0.35) / size
        cover = np.where(reach + 0.25 * field(rng, size, 2.5) < 1.0, URBAN, cover)
    if rng.random() < 0.12:  # a lake
        center = rng.uniform(0, size, 2)
        reach = np.hypot(yx[0] - center[0], yx[1] - center[1]) / rng.uniform(0.08, 0.35) / size
        cover = np.where(reach + 0.2 * field(rng, size, 3.0) < 1.0, WATER, cover)
    if rng.random() < 0.16:
        cover = _add_river(rng, yx, size, cover)
    return LandCover(cover.astype(np.int64), parcels.number)


def _parcels(rng: np.random.Generator, yx: np.ndarray, size: int) -> _Parcels:
    """Parcels around random sites: the nearest one in a rotated, stretched and slightly warped metric."""
    count = int(rng.integers(3, 15))
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 2.5)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    warp = np.stack([field(rng, size, 3.0), field(rng, size, 3.0)]) * rng.uniform(0.0, 2.5)
    metric = np.diag([1.0, stretch]) @ rotation
    points = np.tensordot(metric, yx + warp, axes=1)
    sites = metric @ (rng.uniform(0, size, (2, count)))
    distance = ((points[:, None] - sites[:, :, None, None]) ** 2).sum(0)
    return _Parcels(distance.argmin(0), count)


def _add_river(rng: np.random.Generator, yx: np.ndarray, size: int, cover: np.ndarray) -> np.ndarray:
    """A winding river, sometimes with wet banks."""
    angle = rng.uniform(0, np.pi)
    along = np.cos(angle) * yx[1] + np.sin(angle) * yx[0]
    across = -np.sin(angle) * yx[1] + np.cos(angle) * yx[0]
    across = across - across.mean() - rng.uniform(-0.3, 0.3) * size
    bend = rng.uniform(2, 8) * np.sin(along / size * rng.uniform(3, 9) + rng.uniform(0, 6.3))
    width = rng.uniform(1.2, 4.0)
    distance = np.abs(across - bend)
    if rng.random() < 0.35:
        bank = rng.choice([WETLAND, FLOODED, PADDY])
        cover = np.where(distance < width + rng.uniform(2, 7), bank, cover)
    return np.where(distance < width, WATER, cover)

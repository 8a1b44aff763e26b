"""What both sensors see of a place: map, date, weather, terrain, moisture, vegetation."""

import dataclasses

import numpy as np

from data.simulated import land_cover
from data.simulated.classes import (
    BARE,
    BROADLEAF,
    CONIFER,
    CROP,
    FLOODED,
    GRASS,
    ORCHARD,
    PADDY,
    URBAN,
    WATER,
    WETLAND,
    WOODLAND,
)
from data.simulated.fields import field, grid, row_pattern


@dataclasses.dataclass(frozen=True)
class Place:
    """One place and date; arrays are [size, size].

    Attributes:
      cover: class number of each pixel.
      parcel: parcel number of each pixel, below `count`.
      summer: 0 in mid-winter, 1 in mid-summer.
      slope_x: slope of the terrain across the swath.
      moisture: of the soil, 0..1.
      row_angle: direction of ploughing and planting, radians.
      rows: the pattern of rows, -1..1.
      fine: fine texture, zero mean and unit deviation.
      trees: share of tree crowns where there is open woodland or an orchard.
      green: share of green vegetation.
    """

    size: int
    cover: np.ndarray
    parcel: np.ndarray
    count: int
    summer: float
    slope_x: np.ndarray
    moisture: np.ndarray
    row_angle: np.ndarray
    rows: np.ndarray
    fine: np.ndarray
    trees: np.ndarray
    green: np.ndarray

    def by_parcel(self, values: np.ndarray) -> np.ndarray:
        """Values [count] of the parcels, as an image."""
        return values[self.parcel]


def draw(rng: np.random.Generator, size: int) -> Place:
    """Draws a place. The order of the draws is part of the world: changing it changes every tile."""
    cover, parcel = land_cover.draw(rng, size)
    count = int(parcel.max()) + 1
    season = rng.random()  # 0 mid-winter, 0.5 mid-summer
    summer = 0.5 - 0.5 * np.cos(2 * np.pi * season)
    relief = field(rng, size, 3.6) * rng.uniform(0.0, 0.7)
    slope_x = np.gradient(relief, axis=1) * 6.0
    vigor = 0.10 * field(rng, size, 2.2) + rng.normal(0, 0.12, count)[parcel] + rng.normal(0, 0.06)
    moisture = np.clip(
        rng.uniform(0.15, 0.75) + 0.08 * field(rng, size, 2.6) + rng.normal(0, 0.06, count)[parcel], 0, 1
    )
    row_angle = rng.uniform(0, np.pi, count)[parcel]
    fine = field(rng, size, 0.8, cutoff=0.35)
    row_period = rng.uniform(3.2, 5.5, count)[parcel]
    row_phase = rng.uniform(0, 6.3, count)[parcel]
    rows = row_pattern(grid(size), row_angle, row_period, row_phase)
    # Trees on grass, the same share in both: in rows for the orchard, at random for the woodland.
    tree_share = np.clip(rng.normal(0.48, 0.08, count)[parcel], 0.25, 0.7)
    trees = np.where(cover == ORCHARD, 0.5 + 0.5 * rows + 0.12 * fine, 0.5 + 0.36 * fine)
    trees = np.clip(trees - 0.5 + tree_share, 0, 1)
    # A crop's peak of greenness depends on the parcel.
    peak = rng.choice([0.38, 0.58], size=count, p=[0.5, 0.5])[parcel] + rng.normal(0, 0.03, count)[parcel]
    crop_green = np.exp(-(((season - peak + 0.5) % 1.0 - 0.5) ** 2) / (2 * 0.11**2))
    return Place(
        size=size,
        cover=cover,
        parcel=parcel,
        count=count,
        summer=summer,
        slope_x=slope_x,
        moisture=moisture,
        row_angle=row_angle,
        rows=rows,
        fine=fine,
        trees=trees,
        green=_greenness(cover, summer, crop_green, trees, vigor),
    )


def _greenness(
    cover: np.ndarray, summer: float, crop_green: np.ndarray, trees: np.ndarray, vigor: np.ndarray
) -> np.ndarray:
    """Share of green vegetation by class over the year."""
    green = np.zeros(cover.shape)
    by_class = {
        BROADLEAF: 0.30 + 0.65 * summer,
        FLOODED: 0.30 + 0.65 * summer,
        CONIFER: 0.88,
        GRASS: 0.35 + 0.42 * summer,
        WETLAND: 0.30 + 0.45 * summer,
        BARE: 0.07,
        URBAN: 0.18,
        WOODLAND: 0.0,
        ORCHARD: 0.0,
    }
    for number, value in by_class.items():
        green[cover == number] = value
    seasonal = (cover == CROP) | (cover == PADDY)
    green[seasonal] = 0.08 + 0.85 * crop_green[seasonal]
    treed = (cover == WOODLAND) | (cover == ORCHARD)
    wooded = trees * (0.32 + 0.6 * summer) + (1 - trees) * (0.30 + 0.38 * summer)
    green[treed] = wooded[treed]
    return np.where(cover == WATER, 0.0, np.clip(green + vigor * (green > 0.02), 0.02, 1.0))

"""The simulated Sentinel-1 image: backscatter by class, moisture, rows, wind, urban points, terrain, speckle."""

import numpy as np

from data.simulated.classes import (
    BARE,
    BROADLEAF,
    CLASSES,
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
from data.simulated.fields import blur, field
from data.simulated.place import Place

ENL = 4.4  # equivalent number of looks, Sentinel-1 IW GRDH
_TEXTURE = {BROADLEAF: 0.6, CONIFER: 0.6, FLOODED: 0.6, CROP: 0.3, GRASS: 0.3, WETLAND: 0.5, PADDY: 0.5}  # dB
_NOISE_FLOOR = 10**-2.7  # linear power, -27 dB


class _Backscatter:
    """VV and VH [H, W] in dB, filled class by class."""

    def __init__(self, cover: np.ndarray):
        self._cover = cover
        self.vv, self.vh = np.zeros(cover.shape), np.zeros(cover.shape)

    def set(self, classes: list[int], vv: float | np.ndarray, vh: float | np.ndarray) -> None:
        """Sets the pixels of some classes to numbers or to those of an image."""
        chosen = np.isin(self._cover, classes)
        self.vv[chosen] = np.broadcast_to(vv, self._cover.shape)[chosen]
        self.vh[chosen] = np.broadcast_to(vh, self._cover.shape)[chosen]


def image(rng: np.random.Generator, place: Place) -> np.ndarray:
    """Sentinel-1 RTC [H, W, 2] in dB. The order of the draws is part of the world."""
    size, cover = place.size, place.cover
    scatter = _Backscatter(cover)
    _set_vegetation(rng, place, scatter)
    wind = rng.gamma(2.0, 2.2)  # m/s
    water_vv = -26.0 + 11.0 * np.log10(1 + wind) + 0.5 * field(rng, size, 2.0)
    scatter.set([WATER], water_vv, -29.5 + 3.0 * np.log10(1 + wind))
    town = cover == URBAN
    points = rng.standard_normal((size, size)) ** 2 * rng.uniform(1.0, 3.2)
    scatter.vv[town] = -9.0 + points[town] + 1.5 * np.abs(place.fine[town])
    scatter.vh[town] = -16.5 + 0.9 * points[town] + 1.5 * np.abs(place.fine[town])
    strength = np.array([_TEXTURE.get(number, 0.0) for number in range(len(CLASSES))])
    rough = strength[cover] * field(rng, size, 0.8)
    gain = rng.normal(0, 0.35, 2)  # calibration and incidence angle, per scene
    tilt = (_range_ramp(size) * rng.uniform(-0.4, 0.4)) - 3.0 * place.slope_x
    speckle = rng.gamma(ENL, 1 / ENL, (size, size, 2))
    power = blur(10 ** ((np.stack([scatter.vv, scatter.vh], -1) + rough[..., None]) / 10))
    noise = _NOISE_FLOOR * rng.gamma(ENL, 1 / ENL, power.shape) * 0.25
    return 10 * np.log10(np.maximum(power * speckle + noise, 1e-6)) + gain + tilt[..., None]


def _set_vegetation(rng: np.random.Generator, place: Place, scatter: _Backscatter) -> None:
    """Forests, grass, wetland, fields and soil."""
    green, moisture, trees = place.green, place.moisture, place.trees
    soil_vv = -15.0 + 7.0 * moisture + place.by_parcel(rng.normal(0, 1.0, place.count))
    soil_vh = soil_vv - 8.5 + place.by_parcel(rng.normal(0, 0.6, place.count))
    forest = rng.normal(0, 0.4)
    scatter.set([BROADLEAF, CONIFER], -9.2 + forest + 1.0 * (green - 0.7), -14.8 + forest + 1.0 * (green - 0.7))
    scatter.set([FLOODED], -6.4 + forest, -13.6 + forest)
    scatter.set(
        [GRASS],
        -13.2 + 3.0 * (moisture - 0.45) + 1.5 * green,
        -20.2 + 2.0 * (moisture - 0.45) + 2.5 * green,
    )
    bounce = place.by_parcel(rng.normal(0, 0.8, place.count))
    scatter.set([WETLAND, PADDY], -9.6 + bounce, -17.6 + 0.6 * bounce)
    cover_fraction = np.clip(green, 0, 1)
    crop_vv = soil_vv * (1 - 0.6 * cover_fraction) + 0.6 * cover_fraction * -10.8
    crop_vh = soil_vh * (1 - 0.75 * cover_fraction) + 0.75 * cover_fraction * -16.8
    # Ploughed rows facing the radar look rougher: bare crop fields depend on direction, bare soil does not.
    facing = np.abs(np.cos(place.row_angle)) ** 4
    scatter.set([CROP], crop_vv + 3.2 * facing * (1 - cover_fraction), crop_vh + 1.6 * facing * (1 - cover_fraction))
    scatter.set([BARE], soil_vv - 0.8, soil_vh - 0.8)
    scatter.set(
        [WOODLAND, ORCHARD],
        10 * np.log10(trees * 10**-0.93 + (1 - trees) * 10**-1.27),
        10 * np.log10(trees * 10**-1.49 + (1 - trees) * 10**-1.93),
    )


def _range_ramp(size: int) -> np.ndarray:
    """A range ramp [size, size] from -1 to 1 across the swath direction."""
    return np.broadcast_to(np.linspace(-1, 1, size), (size, size))

"""A simulated Sentinel-1/2 world. Frozen: a new world is a new data set with a new `VERSION`.

Each tile is a pure function of (seed, index): a land-cover map, a date, an atmosphere and a weather, and from them one
Sentinel-2 L2A image (12 bands, reflectance x 10^4) and one Sentinel-1 image (VV, VH, gamma0 in dB) of the same week.
It is made of textbook ingredients, not fitted to any real scene: results on it compare methods under known
difficulties and do not transfer to real land.

Which sensor separates which of the twelve classes:

- conifer_forest / broadleaf_forest: optical only (same backscatter law).
- flooded_forest / broadleaf_forest: SAR only (double bounce under an unchanged canopy).
- orchard / open_woodland: texture only (the same trees and grass in rows or at random).
- paddy: both together. Its spectrum follows cropland's law, its backscatter wetland's.
- wetland / grassland: SAR mostly (similar greenness, wetter and brighter in VV).
- cropland / grassland / bare_soil: phenology; a bare field may be cropland out of season (SAR shows its rows).
- water: dark in SAR unless wind roughens it, dark in optical unless turbid.
- urban: bright points in SAR, heterogeneous in optical.

Clouds, their shadows and haze touch the optical tile only; speckle (gamma, 4.4 looks) the SAR tile only.

Sources: spectral shapes after the USGS spectral library's typical vegetation, soil and water curves
read at the Sentinel-2 band centers; backscatter levels after Ulaby & Dobson, "Handbook of Radar Scattering
Statistics for Terrain" (1989), C band at 35-40 degrees; 4.4 equivalent looks, Sentinel-1 Product Specification.
"""

import dataclasses

import numpy as np

from data.simulated import optical, place, radar
from data.simulated.classes import CLASSES, MULTI_LABEL_COVER

__all__ = ["CLASSES", "MULTI_LABEL_COVER", "VERSION", "Tile", "simulate"]

VERSION = "f23d301bdd8dff40"
"""Names the numbers of this world in every prepared set; a test pins a checksum of its tiles."""


@dataclasses.dataclass(frozen=True)
class Tile:
    """One simulated place. s1 [H, W, 2] dB, s2 [H, W, 12] reflectance x 10^4, pixels [H, W] class numbers."""

    s1: np.ndarray
    s2: np.ndarray
    pixels: np.ndarray


def simulate(seed: int, index: int, size: int = 64) -> Tile:
    """The tile number `index` of the world `seed`: a pure function of its arguments."""
    rng = np.random.Generator(np.random.Philox(key=[seed, index]))
    drawn = place.draw(rng, size)
    s2 = optical.image(rng, drawn)
    s1 = radar.image(rng, drawn)
    return Tile(s1=s1, s2=s2, pixels=drawn.cover.astype(np.uint8))

"""The land-cover classes of the simulated world."""

import numpy as np

CLASSES = (
    "water",
    "broadleaf_forest",
    "conifer_forest",
    "flooded_forest",
    "grassland",
    "wetland",
    "cropland",
    "paddy",
    "bare_soil",
    "open_woodland",
    "orchard",
    "urban",
)
(WATER, BROADLEAF, CONIFER, FLOODED, GRASS, WETLAND, CROP, PADDY, BARE, WOODLAND, ORCHARD, URBAN) = range(12)

# How common a class is among parcels: a long tail, as in real land-cover sets.
PRIOR = np.array([0.05, 0.18, 0.14, 0.03, 0.18, 0.03, 0.22, 0.035, 0.05, 0.04, 0.02, 0.025])

MULTI_LABEL_COVER = 0.05  # a class is a scene label from this share of the tile on

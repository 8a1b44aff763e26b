"""MODIS IGBP land cover and the ten simplified classes of SEN12MS and DFC2020.

IGBP codes: MCD12Q1 user guide, table of the IGBP legend. Simplified scheme: Yokoya et al., IEEE GRSM 8(1), 2020
(DFC2020), as in Schmitt & Wu, ISPRS Annals V-2-2021 for SEN12MS.
"""

from collections.abc import Sequence

import numpy as np

from fusionx_jax.contract import IGNORE_LABEL

SIMPLIFIED = (
    "forest",
    "shrubland",
    "savanna",
    "grassland",
    "wetlands",
    "croplands",
    "urban",
    "snow_ice",
    "barren",
    "water",
)

# IGBP code 0..17 to number in SIMPLIFIED; 0 is unused. 14, the cropland mosaic, is cropland.
_FROM_IGBP = (IGNORE_LABEL, 0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 5, 7, 8, 9)


def _table(codes: Sequence[int]) -> np.ndarray:
    table = np.full(256, IGNORE_LABEL, np.uint8)
    table[: len(codes)] = codes
    return table


FROM_IGBP = _table(_FROM_IGBP)
"""Class number by IGBP code 0..255."""
FROM_DFC = _table((IGNORE_LABEL, *range(10)))
"""Class number by DFC2020 code 0..255 (1..10 are classes)."""


def class_numbers(codes: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Raster codes (float, NaN where there is none) to class numbers uint8, 255 where a code names no class."""
    known = np.nan_to_num(codes, nan=0.0)
    return table[np.clip(known, 0, 255).astype(np.uint8)]

"""A source of tiles at two dates: in a part of them a square of the ground changes."""

import dataclasses

import numpy as np

from data.source import Description
from fusionx_jax import modalities
from fusionx_jax.contract import ACQUIRED, IGNORE_LABEL, Task

SIDE, PLACES, TILES = 16, 6, 12
OPTICAL = modalities.subset(modalities.SENTINEL2_L1C, ["B02", "B03", "B04", "B08"])
RADAR = modalities.subset(modalities.SENTINEL1_GRD, ["VV"])


@dataclasses.dataclass(frozen=True)
class TwoDates:
    """Places 0 to 3 train, 4 val, 5 test; the last tile of each place is unlabeled, and its second date is absent in
    radar."""

    def describe(self) -> Description:
        return Description(
            name="two_dates",
            simulated=True,
            modalities={"s1": RADAR, "s2": OPTICAL},
            acquisitions={"s1": 2, "s2": 2},
            gsd_m=10.0,
            tile_size=SIDE,
            tasks={
                "change": Task("label_change", "multi", ("change",), acquisitions=2),
                "change_pixel": Task("label_pixel", "pixel", ("no_change", "change"), acquisitions=2),
            },
            split_origin="by place",
            license="none",
            citation="none",
            source_version="made up",
            has_group=True,
            has_dates=True,
        )

    def splits(self) -> dict[str, int]:
        return {"train": 4 * TILES, "val": TILES, "test": TILES}

    def left_out(self) -> list:
        return []

    def listed(self) -> int:
        return PLACES * TILES

    def example(self, split: str, index: int) -> dict:
        place = {"train": 0, "val": 4, "test": 5}[split] + index // TILES
        number = index % TILES
        rng = np.random.default_rng([place, number])
        optical = rng.normal(1500, 300, (SIDE, SIDE, 4)) + 200 * place
        radar = rng.normal(-12, 2, (SIDE, SIDE, 1))
        changed = np.zeros((SIDE, SIDE), np.uint8)
        if number % 3 == 0:
            changed[4:12, 4:12] = 1
        out = {
            "s1": radar,
            "s2": optical,
            "s2@2": optical + rng.normal(0, 60, optical.shape) + 1500.0 * changed[..., None],
            "label_change": changed.any().astype(np.uint8)[None],
            "label_pixel": changed,
            "id": f"{place}_{number}",
            "group": f"place{place}",
            ACQUIRED: {"s1": ["orbit 7", ""], "s2": ["2016-01-20", "2018-03-28"]},
        }
        if number == TILES - 1:
            out["label_change"] = np.full(1, IGNORE_LABEL, np.uint8)
            out["label_pixel"] = np.full((SIDE, SIDE), IGNORE_LABEL, np.uint8)
        else:
            out["s1@2"] = radar + rng.normal(0, 1, radar.shape) + 4.0 * changed[..., None]
        return out

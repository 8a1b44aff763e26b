"""The simulated world as a source of prepared tiles. world.py describes it."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence

from data.simulated import world
from data.source import Description, LeftOut, scene_labels
from fusionx_jax import modalities
from fusionx_jax.contract import Task
from fusionx_jax.errors import InputError
from fusionx_jax.types import Example

# Tiles 0..6 of every ten train, 7 validates, 8..9 test: a larger set contains the smaller one, split for split.
_SPLIT_DIGITS = {"train": (0, 1, 2, 3, 4, 5, 6), "val": (7,), "test": (8, 9)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num_tiles", type=int, default=10_000, help="tiles over all splits (default 10000)")
    parser.add_argument("--tile_size", type=int, default=64, help="tile side in pixels of 10 m (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="which world (default 0)")


def make_source(args: argparse.Namespace) -> "Simulated":
    if args.num_tiles < 10:
        raise InputError(f"--num_tiles is {args.num_tiles}; at least 10 are needed so that no split is empty.")
    if not 16 <= args.tile_size <= 512:
        raise InputError(f"--tile_size is {args.tile_size}; the simulated world draws tiles of 16 to 512 pixels.")
    if args.seed < 0:
        raise InputError(f"--seed is {args.seed}; it must not be negative.")
    return Simulated(args.num_tiles, args.tile_size, args.seed)


@dataclasses.dataclass(frozen=True)
class Simulated:
    """`num_tiles` tiles of `tile_size` pixels of the world `seed`."""

    num_tiles: int
    tile_size: int
    seed: int

    def describe(self) -> Description:
        return Description(
            name="simulated",
            simulated=True,
            modalities={"s1": modalities.SENTINEL1_RTC, "s2": modalities.SENTINEL2_L2A},
            gsd_m=10.0,
            tile_size=self.tile_size,
            tasks={
                "multi": Task("label_multi", "multi", world.CLASSES),
                "single": Task("label_single", "single", world.CLASSES),
                "pixel": Task("label_pixel", "pixel", world.CLASSES),
            },
            split_origin="tile number modulo 10: 0-6 train, 7 val, 8-9 test; tiles are independent places",
            license="Apache-2.0",
            citation="Simulated Sentinel-1/2 world of FusionX-Net; no real satellite data.",
            source_version=(f"world {world.VERSION}, seed {self.seed}, {self.num_tiles} tiles of {self.tile_size} px"),
            notes=(
                "Simulated data: results compare methods under known difficulties and say nothing about real land.",
            ),
        )

    def splits(self) -> Mapping[str, int]:
        full, rest = divmod(self.num_tiles, 10)
        return {s: full * len(d) + sum(x < rest for x in d) for s, d in _SPLIT_DIGITS.items()}

    def left_out(self) -> Sequence[LeftOut]:
        return ()

    def listed(self) -> int:
        return self.num_tiles

    def example(self, split: str, index: int) -> Example:
        digits = _SPLIT_DIGITS[split]
        number = index // len(digits) * 10 + digits[index % len(digits)]
        tile = world.simulate(self.seed, number, self.tile_size)
        multi, single = scene_labels(tile.pixels, len(world.CLASSES), world.MULTI_LABEL_COVER)
        return {
            "s1": tile.s1,
            "s2": tile.s2,
            "label_multi": multi,
            "label_single": single,
            "label_pixel": tile.pixels,
            "id": f"sim-{self.seed}-{number:07d}",
        }

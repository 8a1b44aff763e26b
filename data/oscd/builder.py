"""OSCD with the Sentinel-1 stacks of Hafner et al.: 22 cities at two dates, with labels of urban change in 12 of them.

Layout: README.md beside this file; oscd.yaml describes the files, as `data.paired_scenes` reads them. Both dates of a
place are in one record, as acquisitions. `dates.txt` of a city has the dates of Sentinel-2 (Daudt et al., IGARSS 2018);
those of Sentinel-1 are not published, its relative orbit is in the name of the file (Hafner et al., IEEE GRSL 2022).
"""

import argparse
import dataclasses
import os
import re
from collections.abc import Collection, Mapping, Sequence

from data.paired_scenes import builder as scenes
from data.paired_scenes.spec import RasterSpec, Spec, SplitSpec, read_spec
from data.source import Description, LeftOut
from fusionx_jax import modalities
from fusionx_jax.contract import ACQUIRED
from fusionx_jax.errors import InputError
from fusionx_jax.types import Example

_SPEC = os.path.join(os.path.dirname(os.path.abspath(__file__)), "oscd.yaml")
_ORBIT = re.compile(r"_(\d+)_t\d\.tif$")
_DATE = re.compile(r"date_(\d):\s*(\d{4})(\d{2})(\d{2})")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--raw", required=True, metavar="DIR", help="folder of the images, the labels and sentinel1")
    parser.add_argument("--tile_size", type=int, default=32, help="tile side in pixels (default 32)")
    parser.add_argument(
        "--split", choices=("city", "block"), default="city",
        help="cities by list, or blocks of every city, to training, validation and test (default city)",
    )  # fmt: skip
    parser.add_argument("--block", type=int, default=6, help="side of a block in tiles, with --split=block (default 6)")
    parser.add_argument("--s2_bands", metavar="B02,B03,…", help="keep these Sentinel-2 bands alone (default all 13)")
    parser.add_argument("--num_tiles", type=int, default=None, help="keep at most this many tiles, evenly spread")
    parser.add_argument(
        "--most_missing", type=float, default=0.5,
        help="share of a tile's pixels that may lack data at a date before it is left out (default 0.5)",
    )  # fmt: skip
    parser.set_defaults(skip_incomplete=True, fingerprint="content")


def make_source(args: argparse.Namespace) -> "Oscd":
    """Lists the tiles of the cities that have both sensors.

    Raises:
      InputError: the folder holds another layout, or an option is out of range.
    """
    scenes.check_folder(args.raw)
    spec = read_spec(_SPEC)
    if args.s2_bands:
        spec = _with_bands(spec, [b for b in args.s2_bands.split(",") if b])
    if args.split == "block":
        if args.block < 1:
            raise InputError(f"--block is {args.block}; it is a number of tiles, at least 1.")
        spec = dataclasses.replace(spec, split=SplitSpec(by="block", block=args.block))
    found = scenes.find(spec, args)
    tiles = scenes.list_tiles(_of_cities(spec, found.scenes), found, args)
    return Oscd(tiles, {city: _acquired(list(paths.values())) for city, paths in tiles.scenes.items()})


def _of_cities(spec: Spec, cities: Collection[str]) -> Spec:
    """The spec with the groups and splits of the cities that are there."""
    groups = {name: tuple(c for c in members if c in cities) for name, members in spec.groups.items()}
    lists = {s: tuple(c for c in members if c in cities) for s, members in spec.split.scenes.items()}
    split = dataclasses.replace(spec.split, scenes=lists)
    return dataclasses.replace(spec, groups={n: m for n, m in groups.items() if m}, split=split)


def _with_bands(spec: Spec, bands: Sequence[str]) -> Spec:
    """The spec with some of the Sentinel-2 bands."""
    known = next(r.sensor for r in spec.rasters.values() if r.sensor.name == "s2").band_names
    unknown = [b for b in bands if b not in known]
    if unknown:
        raise InputError(f"--s2_bands names {unknown[0]}; the bands are {', '.join(known)}.")

    def kept(raster: RasterSpec) -> RasterSpec:
        if raster.sensor.name != "s2":
            return raster
        files = tuple((names, pattern) for names, pattern in raster.files if names and names[0] in bands)
        ordered = [b for b in known if b in bands]
        return dataclasses.replace(raster, files=files, sensor=modalities.subset(raster.sensor, ordered))

    return dataclasses.replace(spec, rasters={f: kept(r) for f, r in spec.rasters.items()})


def _acquired(paths: Sequence[str]) -> dict[str, list[str]]:
    """Dates and orbits of a city's acquisitions by modality, as `contract.Contract.has_dates` describes them."""
    orbits = sorted((path, m[1]) for path in paths if (m := _ORBIT.search(path)))
    folder = next(os.path.dirname(os.path.dirname(p)) for p in paths if f"{os.sep}imgs_1{os.sep}" in p)
    try:
        with open(os.path.join(folder, "dates.txt"), encoding="utf-8") as f:
            dates = {number: f"{year}-{month}-{day}" for number, year, month, day in _DATE.findall(f.read())}
    except (OSError, UnicodeDecodeError):
        dates = {}
    return {"s1": [f"orbit {orbit}" for _, orbit in orbits], "s2": [dates.get(n, "") for n in ("1", "2")]}


@dataclasses.dataclass(frozen=True)
class Oscd:
    """The tiles of the cities, and what is known of their dates."""

    tiles: scenes.PairedScenes
    acquired: Mapping[str, Mapping[str, list[str]]]

    def describe(self) -> Description:
        return dataclasses.replace(self.tiles.describe(), has_dates=True)

    def splits(self) -> Mapping[str, int]:
        return self.tiles.splits()

    def left_out(self) -> Sequence[LeftOut]:
        return self.tiles.left_out()

    def listed(self) -> int:
        return self.tiles.listed()

    def example(self, split: str, index: int) -> Example:
        city = self.tiles.tiles[split][index].scene
        return self.tiles.example(split, index) | {ACQUIRED: self.acquired[city]}

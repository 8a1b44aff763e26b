"""SSL4EO-S12 v1.0: 251,079 places, four seasons, Sentinel-1 GRD with Sentinel-2 L2A or L1C, without labels.

Layout (Wang et al., arXiv 2211.07044; README.md beside this file shows it). The sensors' season folders are named by
product and do not match by name: each Sentinel-2 season is paired with the Sentinel-1 product nearest in time. The
seasons of a place are acquisitions of one record, in the order of their dates.
"""

import argparse
import datetime
import os
import re
import sys

from tqdm import tqdm

from data import patches
from data.archive import Archive
from data.patches import Options, Patch
from data.raster import squares
from data.source import BadTile, LeftOut
from fusionx_jax import modalities
from fusionx_jax.contract import ACQUIRED, acquisition
from fusionx_jax.modalities import Modality
from fusionx_jax.types import Example

SIZE = 264
SEASONS = 4
_S1 = modalities.SENTINEL1_GRD
_Season = tuple[str, str]  # folders of Sentinel-1 and Sentinel-2
_DATE = re.compile(r"(20\d{6})T\d{6}")
_LEVELS = {"l2a": ("s2a", modalities.SENTINEL2_L2A), "l1c": ("s2c", modalities.SENTINEL2_L1C)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    patches.add_arguments(parser, "folder that holds s1 and s2a or s2c")
    parser.add_argument("--s2", choices=sorted(_LEVELS), default="l2a", help="Sentinel-2 level (default l2a)")
    parser.add_argument("--most_days", type=int, default=45, help="most days between the two sensors (default 45)")


def make_source(args: argparse.Namespace) -> patches.PatchSource:
    """Lists places and pairs their seasons.

    Raises:
      InputError: a sensor's folder is missing.
    """
    archive = Archive(args.raw)
    folder, sensor = _LEVELS[args.s2]
    s2_root = archive.require_folder([folder], "SSL4EO-S12")
    s1_root = archive.require_folder(["s1"], "SSL4EO-S12")
    members: list[Patch] = []
    unusable: list[LeftOut] = []
    places = [p for p in archive.children(s2_root) if p.isdigit()]
    for place in tqdm(places, desc="pairing seasons", unit="place", disable=not sys.stderr.isatty()):
        radar = [(date, n) for n in archive.children(f"{s1_root}/{place}") if (date := _date(n))]
        optical = [(date, n) for n in archive.children(f"{s2_root}/{place}") if (date := _date(n))]
        seasons: list[_Season] = []
        for date, name in sorted(optical):
            days, nearest = min(((abs((d - date).days), n) for d, n in radar), default=(None, ""))
            if days is None or days > args.most_days:
                near = f"the nearest is {days} days away" if nearest else "it has none"
                unusable.append(LeftOut(f"{place}/{name}", "unpaired", f"no Sentinel-1 for {name}: {near}"))
                continue
            seasons.append((f"{s1_root}/{place}/{nearest}", f"{s2_root}/{place}/{name}"))
        if len(seasons) > SEASONS:
            unusable.append(LeftOut(place, "more seasons", f"{place} has {len(seasons)}, of which {SEASONS} are used"))
        if seasons:
            members.append(Patch(place, (tuple(seasons[:SEASONS]), args.s2), (), place))
    fractions = {"train": 0.98, "val": 0.01, "test": 0.01}
    return patches.make(
        args,
        archive,
        patches.split_by_hash(members, fractions, by_group=True),
        read_patch,
        unusable,
        name=f"ssl4eo_s12_{args.s2}",
        modalities={"s1": _S1, "s2": sensor},
        acquisitions={"s1": SEASONS, "s2": SEASONS},
        gsd_m=10.0,
        tile_size=SIZE,
        tasks={},
        split_origin="by place, hashed (the set has no labels and no official split)",
        license="CC-BY-4.0",
        citation="SSL4EO-S12, Wang et al., arXiv 2211.07044. Contains modified Copernicus Sentinel data.",
        source_version=f"SSL4EO-S12 v1.0, {sensor.level}, at most {args.most_days} days between sensors",
        notes=(
            "The sensors' grids differ by up to three pixels, as delivered (SSL4EO-S12 issue 22).",
            "Version 1.1 carries an offset of +1000 and another layout; it is another set.",
        ),
        has_location=True,
        has_group=True,
        has_dates=True,
    )


def _date(name: str) -> datetime.date | None:
    match = _DATE.search(name)
    return datetime.datetime.strptime(match[1], "%Y%m%d").date() if match else None


def _plain(band: str) -> str:
    """File names here write bands without the leading zero."""
    return f"B{band[2:]}" if band.startswith("B0") else band


def read_patch(archive: Archive, patch: Patch, chosen: Options) -> Example:
    """Both sensors at every season that can be read; a few patches are a pixel larger and are resampled to 264.

    Raises:
      BadTile: no season of the place can be used.
    """
    seasons, level = patch.where
    failures: list[BadTile] = []
    out: Example = {}
    acquired: dict[str, list[str]] = {"s1": [], "s2": []}
    remarks: list[str] = []
    for season in seasons:
        try:
            sensors = _read_season(archive, season, _LEVELS[level][1], chosen)
        except BadTile as bad:
            failures.append(bad)
            remarks.append(f"a season is left out: {bad.kind}")
            continue
        number = len(acquired["s1"])
        example = patches.as_example(sensors)
        remarks += example.pop("remarks")
        out |= {acquisition(m, number): example.pop(m) for m in sensors}
        out |= example
        for name, folder in zip(acquired, season):
            acquired[name].append(str(_date(os.path.basename(folder))))
    if not acquired["s1"]:
        raise failures[0]
    return out | {ACQUIRED: acquired, "remarks": tuple(dict.fromkeys(remarks))}


def _read_season(archive: Archive, season: _Season, sensor: Modality, chosen: Options) -> dict[str, squares.Bands]:
    s1_folder, s2_folder = season
    files = [f"{s2_folder}/{_plain(b)}.tif" for b in sensor.band_names]
    s2 = patches.read_sensor(archive, sensor, files, SIZE, chosen)
    s1 = patches.read_sensor(archive, _S1, [f"{s1_folder}/{b}.tif" for b in _S1.band_names], SIZE, chosen)
    squares.require_one_place(s1, s2, f"{s2_folder} and {s1_folder}")
    for folder, bands in zip(season, (s1, s2)):
        squares.require_data(bands.values, folder, chosen.most_missing)
    return {"s1": s1, "s2": s2}

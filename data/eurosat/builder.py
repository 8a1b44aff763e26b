"""EuroSAT (27,000 Sentinel-2 L1C patches, ten classes) paired with Sentinel-1 (EuroSAT-SAR).

Layout: one folder a class, CLASS_N.tif in both sets (Helber et al., JSTARS 2019; Wang et al., FG-MAE, JSTARS 2024). In
the optical files B8A comes last, after B12 (phelber/EuroSAT issue 7).
"""

import argparse
import os

from data import patches
from data.archive import Archive
from data.patches import Options, Patch
from data.raster import squares
from data.source import LeftOut
from fusionx_jax import modalities
from fusionx_jax.contract import Task
from fusionx_jax.errors import InputError

SIZE = 64
CLASSES = (
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
)
_FILE_ORDER = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")
_S1, _S2 = modalities.SENTINEL1_GRD, modalities.SENTINEL2_L1C
_INDEXES = tuple(_FILE_ORDER.index(b) + 1 for b in _S2.band_names)
_LISTS = {s: (f"eurosat-{s}.txt", f"{s}.txt", f"eurosat-spatial-{s}.txt") for s in ("train", "val", "test")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    patches.add_arguments(parser, "folder or zip of EuroSAT's all-bands patches, one folder a class")
    parser.add_argument("--sar", metavar="DIR", help="folder or zip of EuroSAT-SAR")
    parser.add_argument("--optical_only", action="store_true", help="prepare without Sentinel-1")
    parser.add_argument("--splits", metavar="DIR", help="folder of eurosat-train.txt and so on")


def make_source(args: argparse.Namespace) -> patches.PatchSource:
    """Lists the patches of both sensors.

    Raises:
      InputError: no class folder is there, or neither --sar nor --optical_only is given.
    """
    if bool(args.sar) == args.optical_only:
        raise InputError("EuroSAT has no radar images of its own: give --sar=DIR (EuroSAT-SAR) or --optical_only.")
    archive = Archive(args.raw)
    optical = _by_name(archive)
    if not optical:
        raise InputError(
            f"{args.raw} does not look like EuroSAT: no folder below it is called {', '.join(CLASSES[:3])} and so on; "
            "give the extracted EuroSATallBands or EuroSAT_MS."
        )
    radar_archive = Archive(args.sar) if args.sar else None
    radar = _by_name(radar_archive) if radar_archive else {}
    found: dict[str, Patch] = {}
    unusable = []
    for name, path in optical.items():
        if radar_archive and name not in radar:
            unusable.append(LeftOut(name, "unpaired", f"{name} has no patch in {args.sar}"))
            continue
        where = (path, radar_archive.file(radar[name]) if radar_archive else "")
        found[name] = Patch(name, where, (CLASSES.index(name.rpartition("_")[0]),))
    if radar_archive:
        alone = sorted(set(radar) - set(optical))
        unusable += [LeftOut(n, "unpaired", f"{n} of {args.sar} has no optical patch") for n in alone]
    if args.splits:
        listed = patches.read_splits(args.splits, _LISTS, "lists of patches such as eurosat-train.txt")
        names = {s: [os.path.splitext(row[0])[0] for row in rows] for s, rows in listed.items()}
        by_split, missing = patches.by_lists(names, found, optical, args.raw)
        unusable += missing
        origin = "given lists"
    else:
        by_split = patches.split_by_hash(list(found.values()), {"train": 0.6, "val": 0.2, "test": 0.2}, by_group=False)
        origin = "by patch, hashed: neighbors may be in different splits (no lists given: --splits)"
    return patches.make(
        args,
        archive,
        by_split,
        read_patch,
        unusable,
        name="eurosat" if radar_archive else "eurosat_optical",
        modalities={"s1": _S1, "s2": _S2} if radar_archive else {"s2": _S2},
        gsd_m=10.0,
        tile_size=SIZE,
        tasks={"single": Task("label_single", "single", CLASSES)},
        split_origin=origin,
        license="MIT",
        citation="EuroSAT, Helber et al., JSTARS 2019; EuroSAT-SAR, Wang et al., JSTARS 2024. Contains modified "
        "Copernicus Sentinel data.",
        source_version="EuroSAT all bands" + (" with EuroSAT-SAR" if radar_archive else ""),
        notes=("The sensors' acquisition dates differ.",) if radar_archive else (),
        has_location=True,
    )


def _by_name(archive: Archive) -> dict[str, str]:
    """Path of each CLASS_N."""
    out = {}
    for path in archive.walk(".tif"):
        *_, folder, file = ("", *path.split("/"))
        if folder in CLASSES and file.startswith(f"{folder}_"):
            out[file.removesuffix(".tif")] = path
    return dict(sorted(out.items()))


def read_patch(archive: Archive, patch: Patch, chosen: Options) -> dict:
    """One patch of either sensor; Sentinel-1 only where the set has it."""
    path, radar = patch.where
    s2 = patches.read_sensor(archive, _S2, [path], SIZE, chosen, indexes=_INDEXES)
    if not radar:
        return patches.as_example({"s2": s2})
    s1 = squares.read_bands([radar], SIZE, chosen.resampling, sensor=_S1, indexes=(1, 2))
    squares.require_one_place(s1, s2, f"{radar} and {path}")
    return patches.as_example({"s1": s1, "s2": s2})

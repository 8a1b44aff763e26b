"""SEN12MS: 180,662 triplets of Sentinel-1 (dB), Sentinel-2 L1C and MODIS land cover, 256 x 256 pixels.

Layout (Schmitt et al., ISPRS Annals IV-2/W7, 2019; README.md beside this file shows it): a folder for each season, in
it one for each sensor and scene. Labels: the IGBP layer of the land-cover file in the ten simplified classes (Schmitt
& Wu, ISPRS Annals V-2-2021): scene labels are the classes of at least 10 % of a patch.
"""

import argparse
import os

from data import igbp, patches
from data.archive import Archive
from data.patches import Options, Patch
from data.raster.squares import read_bands
from data.source import LeftOut
from fusionx_jax import modalities

SIZE = 256
_SEASONS = ("ROIs1158_spring", "ROIs1868_summer", "ROIs1970_fall", "ROIs2017_winter")
_S1, _S2 = modalities.SENTINEL1_GRD, modalities.SENTINEL2_L1C
_S2_INDEXES = tuple(range(1, 14))  # all 13 bands of L1C, in the product's order
_COVER = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    patches.add_arguments(parser, "folder that holds ROIs1158_spring and the other seasons")
    parser.add_argument("--splits", metavar="DIR", help="folder of the official train_list.txt and test_list.txt")
    parser.add_argument("--tile_size", type=int, default=SIZE, help="cut patches into tiles of this side (default 256)")


def make_source(args: argparse.Namespace) -> patches.PatchSource:
    """Lists the pairs, with land cover where it is there.

    Raises:
      InputError: no season's folder is there, or the split lists do not fit.
    """
    archive = Archive(args.raw)
    folders = {s: archive.find_folder(s) for s in _SEASONS}
    seasons = {s: folder for s, folder in folders.items() if folder is not None}
    if not seasons:
        archive.require_folder(_SEASONS, "SEN12MS")
    found: dict[str, Patch] = {}
    unusable: list[LeftOut] = []
    with_cover = 0
    for season, folder in seasons.items():
        children = archive.children(folder)
        for s2_folder in [c for c in children if c.startswith("s2_")]:
            scene = s2_folder.removeprefix("s2_")
            names = {kind: set(archive.children(f"{folder}/{kind}_{scene}")) for kind in ("s1", "s2", "lc")}
            for s2 in sorted(n for n in names["s2"] if n.endswith(".tif")):
                s1, lc = (s2.replace("_s2_", f"_{kind}_") for kind in ("s1", "lc"))
                if s1 not in names["s1"]:
                    unusable.append(LeftOut(s2, "unpaired", f"{s2} has no Sentinel-1 patch {s1}"))
                    continue
                with_cover += lc in names["lc"]
                paths = [f"{folder}/s1_{scene}/{s1}", f"{folder}/s2_{scene}/{s2}"]
                paths.append(f"{folder}/lc_{scene}/{lc}" if lc in names["lc"] else "")
                found[s2] = Patch(s2.removesuffix(".tif"), tuple(paths), (), f"{season}_{scene}")
            alone = {n.replace("_s1_", "_s2_") for n in names["s1"]} - names["s2"]
            unusable += [LeftOut(n, "unpaired", f"{n} is missing, its Sentinel-1 patch is not") for n in sorted(alone)]
    if with_cover and with_cover < len(found):  # land cover of some patches: the others cannot be labeled
        for name in [n for n, p in found.items() if not p.where[2]]:
            unusable.append(LeftOut(name, "missing labels", f"{name} has no land-cover file"))
            del found[name]
    by_split, origin, missing = _split(args.splits, found)
    by_split = patches.cut(by_split, SIZE, args.tile_size)
    return patches.make(
        args,
        archive,
        by_split,
        read_patch,
        [*unusable, *missing],
        cover=_COVER,
        name="sen12ms",
        modalities={"s1": _S1, "s2": _S2},
        gsd_m=10.0,
        tile_size=args.tile_size,
        tasks=patches.pixel_tasks(igbp.SIMPLIFIED) if with_cover else {},
        split_origin=origin,
        license="CC-BY-4.0",
        citation="SEN12MS, Schmitt et al., ISPRS Annals IV-2/W7, 2019. Contains modified Copernicus Sentinel data.",
        source_version=f"SEN12MS, seasons {', '.join(seasons)}, tiles of {args.tile_size} px",
        notes=("Labels are MODIS land cover of 500 m in ten simplified IGBP classes: coarse and often wrong.",),
        has_location=True,
        has_group=True,
    )


def _split(folder: str | None, found: dict[str, Patch]) -> tuple[dict[str, list[Patch]], str, list[LeftOut]]:
    """Patches by split, where the split comes from, and listed patches that are not there."""
    if not folder:
        fractions = {"train": 0.8, "val": 0.1, "test": 0.1}
        origin = "by scene, hashed (no official lists given: --splits)"
        return patches.split_by_hash(list(found.values()), fractions, by_group=True), origin, []
    has_val = os.path.isfile(os.path.join(folder, "val_list.txt"))
    names = {s: (f"{s}_list.txt",) for s in ("train", "val", "test") if s != "val" or has_val}
    listed = patches.read_splits(folder, names, "the official train_list.txt and test_list.txt")
    files = {s: [row[0] for row in rows] for s, rows in listed.items()}
    by_split, missing = patches.by_lists(files, found, found, "the archive")
    origin = "official lists"
    if not has_val:  # no official list is published: a tenth of the training scenes is used
        drawn = patches.split_by_hash(by_split["train"], {"train": 0.9, "val": 0.1}, by_group=True)
        by_split |= {"train": drawn["train"], "val": drawn["val"]}
        origin += "; val: a tenth of the training scenes, hashed"
    return by_split, origin, missing


def read_patch(archive: Archive, patch: Patch, chosen: Options) -> dict:
    """The triplet of one patch."""
    s1_path, s2_path, lc_path = patch.where
    s1 = patches.read_sensor(archive, _S1, [s1_path], SIZE, chosen, indexes=(1, 2))
    s2 = patches.read_sensor(archive, _S2, [s2_path], SIZE, chosen, indexes=_S2_INDEXES)
    out = patches.as_example({"s1": s1, "s2": s2})
    if lc_path:
        codes = read_bands([archive.file(lc_path)], SIZE, "nearest", indexes=(1,)).values[..., 0]
        out[patches.PIXELS] = igbp.class_numbers(codes, igbp.FROM_IGBP)
    return out

"""Sen1Floods11, the 446 hand-labeled chips of 512 x 512 pixels in eleven floods (Bonafilia et al., CVPRW 2020).

Layout: S1Hand, S2Hand and LabelHand folders, files EVENT_CHIP_LAYER.tif; S1 in dB with NaN for no data, S2 L1C, labels
-1 (no data), 0 (land), 1 (water). Chips are cut into tiles that stay in their chip's split.
"""

import argparse

import numpy as np

from data import patches
from data.archive import Archive
from data.patches import Options, Patch
from data.raster.squares import read_bands
from data.source import LeftOut
from fusionx_jax import modalities
from fusionx_jax.contract import IGNORE_LABEL

SIZE = 512
_S1, _S2 = modalities.SENTINEL1_GRD, modalities.SENTINEL2_L1C
_FOLDERS = {"s1": ("S1Hand", "S1"), "s2": ("S2Hand", "S2"), "labels": ("LabelHand", "Labels")}
_SPLIT_FILES = {
    "train": ("flood_train_data.csv",),
    "val": ("flood_valid_data.csv",),
    "test": ("flood_test_data.csv",),
    "bolivia": ("flood_bolivia_data.csv",),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    patches.add_arguments(parser, "folder that holds S1Hand, S2Hand and LabelHand")
    parser.add_argument("--splits", metavar="DIR", help="folder of the official flood_train_data.csv and so on")
    parser.add_argument("--bolivia", action="store_true", help="with --splits: test on the held-out flood in Bolivia")
    parser.add_argument("--tile_size", type=int, default=64, help="cut chips into tiles of this side (default 64)")


def make_source(args: argparse.Namespace) -> patches.PatchSource:
    """Lists the chips that have all three files.

    Raises:
      InputError: a folder is missing, or the lists do not fit.
    """
    archive = Archive(args.raw)
    roots = {kind: _folder(archive, names) for kind, names in _FOLDERS.items()}
    stems = {
        kind: {n.rpartition("_")[0]: n for n in archive.children(root) if n.endswith(".tif")}
        for kind, root in roots.items()
    }
    found: dict[str, Patch] = {}
    unusable = []
    for chip in sorted(set().union(*stems.values())):
        lacking = [k for k in stems if chip not in stems[k]]
        if lacking:
            unusable.append(LeftOut(chip, "unpaired", f"{chip} has no {' and no '.join(lacking)} file"))
        else:
            where = tuple(f"{roots[k]}/{stems[k][chip]}" for k in ("s1", "s2", "labels"))
            found[chip] = Patch(chip, where, (), chip)
    if args.splits:
        listed = patches.read_splits(args.splits, _SPLIT_FILES, "the official lists of chips")
        chips = {s: [row[0].rpartition("_")[0] for row in rows] for s, rows in listed.items()}
        by_split, missing = patches.by_lists(chips, found, found, args.raw)
        unusable += missing
        bolivia = by_split.pop("bolivia")
        origin = "official lists of chips, without the flood in Bolivia"
        if args.bolivia:
            by_split["test"], origin = bolivia, "official lists of chips, tested on the held-out flood in Bolivia"
    else:
        by_split = patches.split_by_hash(list(found.values()), {"train": 0.6, "val": 0.2, "test": 0.2}, by_group=True)
        origin = "by chip, hashed (no official lists given: --splits)"
    return patches.make(
        args,
        archive,
        patches.cut(by_split, SIZE, args.tile_size),
        read_patch,
        unusable,
        cover=0.05,
        name="sen1floods11",
        modalities={"s1": _S1, "s2": _S2},
        gsd_m=10.0,
        tile_size=args.tile_size,
        tasks=patches.pixel_tasks(("land", "water")),
        split_origin=origin,
        license="CC-BY-4.0",
        citation="Sen1Floods11, Bonafilia et al., CVPRW 2020. Contains modified Copernicus Sentinel data.",
        source_version=f"Sen1Floods11 v1.1 hand-labeled, tiles of {args.tile_size} px",
        notes=("Sensors may lie up to two days apart; a tile's location is its chip's center.",),
        has_location=True,
        has_group=True,
    )


def _folder(archive: Archive, names: tuple[str, ...]) -> str:
    """The folder by one of its names, also inside the bucket's v1.1/data/flood_events/HandLabeled."""
    inside = "v1.1/data/flood_events/HandLabeled"
    for base in (inside, inside.removeprefix("v1.1/"), "HandLabeled"):
        if names[0] in archive.children(base):
            return f"{base}/{names[0]}"
    return archive.require_folder(names, "Sen1Floods11's hand-labeled chips")


def read_patch(archive: Archive, patch: Patch, chosen: Options) -> dict:
    """Both sensors and the labels of one chip."""
    s1_path, s2_path, label_path = patch.where
    s1 = patches.read_sensor(archive, _S1, [s1_path], SIZE, chosen, indexes=(1, 2))
    s2 = patches.read_sensor(archive, _S2, [s2_path], SIZE, chosen, indexes=tuple(range(1, 14)))
    coded = read_bands([archive.file(label_path)], SIZE, "nearest", indexes=(1,)).values[..., 0]
    labels = np.full(coded.shape, IGNORE_LABEL, np.uint8)
    for code in (0, 1):
        labels[coded == code] = code
    return {**patches.as_example({"s1": s1, "s2": s2}), patches.PIXELS: labels}

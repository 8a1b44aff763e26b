"""DFC2020: 6,114 pairs in SEN12MS's form with high-resolution land-cover labels (Yokoya et al., IEEE GRSM 8(1), 2020).

Three layouts exist: the contest's (validation and test folders), the public one by season and city, and flat copies
with lists. Patches are found by their file names, in any folder, and paired by season, scene and number.
"""

import argparse
import re

from data import igbp, patches
from data.archive import Archive
from data.patches import Options, Patch
from data.raster.squares import read_bands
from data.source import BadTile, LeftOut
from fusionx_jax import modalities
from fusionx_jax.errors import InputError

SIZE = 256
_NAME = re.compile(r"(ROIs0000_[A-Za-z]+)_(s1|s2|dfc)_([A-Za-z0-9]+)_p(\d+)\.tif")
_S1, _S2 = modalities.SENTINEL1_GRD, modalities.SENTINEL2_L1C
_S2_INDEXES = tuple(range(1, 14))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    patches.add_arguments(parser, "folder that holds the s1, s2 and dfc folders, anywhere below it")
    parser.add_argument("--splits", metavar="DIR", help="folder of dfc-train-new.csv and so on: lists of dfc files")
    parser.add_argument("--tile_size", type=int, default=SIZE, help="cut patches into tiles of this side (default 256)")


def make_source(args: argparse.Namespace) -> patches.PatchSource:
    """Finds and pairs the patches.

    Raises:
      InputError: none is there, or the lists do not fit.
    """
    archive = Archive(args.raw)
    found: dict[tuple[str, str, int], dict[str, str]] = {}
    for path in archive.walk(".tif"):
        match = _NAME.fullmatch(path.rpartition("/")[2])
        if match:
            found.setdefault((match[1], match[3], int(match[4])), {})[match[2]] = path
    if not found:
        raise InputError(
            f"{args.raw} does not look like DFC2020: no file below it is called ROIs0000_*_dfc_*_p*.tif or the like; "
            "give the extracted folder."
        )
    members, unusable = [], []
    for (season, scene, number), parts in sorted(found.items()):
        name = f"{season}_{scene}_p{number}"
        lacking = [k for k in ("s1", "s2", "dfc") if k not in parts]
        if lacking:
            unusable.append(LeftOut(name, "unpaired", f"{name} has no {' and no '.join(lacking)} file"))
        else:
            where = (parts["s1"], parts["s2"], parts["dfc"])
            members.append(Patch(name, where, (), f"{season}_{scene}"))
    by_split, origin = _split(args.splits, members)
    return patches.make(
        args,
        archive,
        patches.cut(by_split, SIZE, args.tile_size),
        read_patch,
        unusable,
        cover=0.05,
        name="dfc2020",
        modalities={"s1": _S1, "s2": _S2},
        gsd_m=10.0,
        tile_size=args.tile_size,
        tasks=patches.pixel_tasks(igbp.SIMPLIFIED),
        split_origin=origin,
        license="CC-BY-4.0",
        citation="DFC2020, Yokoya et al., IEEE GRSM 8(1), 2020. Contains modified Copernicus Sentinel data.",
        source_version=f"DFC2020, tiles of {args.tile_size} px",
        notes=("Savanna and snow are usually left out of the scores; the labels keep whatever the files hold.",),
        has_location=True,
        has_group=True,
    )


def _split(folder: str | None, members: list[Patch]) -> tuple[dict[str, list[Patch]], str]:
    if folder:
        names = {s: (f"dfc-{s}-new.csv", f"dfc-{s}.csv", f"{s}.txt") for s in ("train", "val", "test")}
        listed = patches.read_splits(folder, names, "lists of dfc files, one a line")
        by_file = {p.where[2].rpartition("/")[2]: p for p in members}
        return {s: [by_file[r[0]] for r in rows if r[0] in by_file] for s, rows in listed.items()}, "given lists"
    contest = {p.id.split("_")[1] for p in members}
    if contest == {"test", "validation"}:
        # Common use (CROMA, GFM-Bench): the contest's 5,128 test patches train, its 986 validation patches test.
        for_training = [p for p in members if "_test_" in p.id]
        by_split = patches.split_by_hash(for_training, {"train": 0.9, "val": 0.1}, by_group=False)
        by_split["test"] = [p for p in members if "_validation_" in p.id]
        return by_split, "the contest's test patches train (a tenth of them, hashed: val), its validation patches test"
    groups = {p.group for p in members}
    fractions = {"train": 0.6, "val": 0.2, "test": 0.2}
    by_group = len(groups) >= 3
    origin = "by city, hashed" if by_group else "by patch, hashed: neighbors may be in different splits"
    return patches.split_by_hash(members, fractions, by_group=by_group), origin


def read_patch(archive: Archive, patch: Patch, chosen: Options) -> dict:
    """Both sensors and the labels of one patch."""
    s1_path, s2_path, dfc_path = patch.where
    s1 = patches.read_sensor(archive, _S1, [s1_path], SIZE, chosen, indexes=(1, 2))
    s2 = patches.read_sensor(archive, _S2, [s2_path], SIZE, chosen, indexes=_S2_INDEXES)
    codes = read_bands([archive.file(dfc_path)], SIZE, "nearest", indexes=(1,)).values[..., 0]
    if codes.max() > 10:
        raise BadTile("wrong labels", f"{dfc_path} holds the code {codes.max():g}; DFC2020's are 0 to 10 (IGBP map?)")
    labels = igbp.class_numbers(codes, igbp.FROM_DFC)
    return {**patches.as_example({"s1": s1, "s2": s2}), patches.PIXELS: labels}

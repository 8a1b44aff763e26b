"""BigEarthNet-MM v1: 590,326 patches of 1.2 km in ten European countries, Sentinel-1 GRD and Sentinel-2 L2A.

Layout (Sumbul et al., IGARSS 2019 and IEEE GRSM 2021; README.md beside this file shows it): one folder a patch; the
Sentinel-1 patch's JSON names its Sentinel-2 patch. Names are opaque keys: hours without leading zero occur.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from data import clc, patches
from data.archive import Archive
from data.patches import Options, Patch
from data.raster import squares
from data.source import SPLITS, LeftOut
from fusionx_jax import modalities
from fusionx_jax.contract import Task
from fusionx_jax.errors import InputError

SIZE = 120
S1, S2 = modalities.SENTINEL1_GRD, modalities.SENTINEL2_L2A
LICENSE = "CDLA-Permissive-1.0"
_SPLIT_FILES = {s: (f"{s}.csv", f"bigearthnet-{s}.csv", f"{s}.txt", f"bigearthnet-{s}.txt") for s in SPLITS}
_EXCLUDED = ("patches_with_seasonal_snow.csv", "patches_with_cloud_and_shadow.csv")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    patches.add_arguments(parser, "folder that holds BigEarthNet-v1.0 and BigEarthNet-S1-v1.0")
    parser.add_argument("--splits", metavar="DIR", help="folder of the official train.csv, val.csv and test.csv")
    parser.add_argument(
        "--exclude", metavar="DIR", help="folder of the official lists of patches with snow, clouds and shadows"
    )
    parser.add_argument("--classes", choices=("19", "43"), default="19", help="nomenclature (default 19)")


def make_source(args: argparse.Namespace) -> patches.PatchSource:
    """Lists the pairs.

    Raises:
      InputError: the folders are not there, or split lists and patches do not fit together.
    """
    archive = Archive(args.raw)
    s2_root = archive.require_folder(["BigEarthNet-v1.0", "BigEarthNet-S2-v1.0"], "BigEarthNet v1")
    s1_root = archive.require_folder(["BigEarthNet-S1-v1.0"], "BigEarthNet v1")
    excluded = _read_excluded(args.exclude) if args.exclude else set()
    listed = patches.read_splits(args.splits, _SPLIT_FILES, "the official lists of patches") if args.splits else None
    s2_names = [n for n in archive.children(s2_root) if n not in excluded]
    known = {row[0]: row[1] for rows in (listed or {}).values() for row in rows if len(row) > 1}
    pairs, unusable = _pairs(archive, s1_root, s2_names, known)
    listed_names = {row[0] for rows in (listed or {}).values() for row in rows}
    names = [n for n in s2_names if n in pairs and (listed is None or n in listed_names)]
    labels, unlabeled, damaged = _read_labels(archive, s2_root, names, args.classes)
    unusable += damaged
    found = {
        name: Patch(name, (s2_root, s1_root, pairs[name]), numbers, "_".join(name.split("_")[:-2]))
        for name, numbers in labels.items()
    }
    if listed:
        lists = {s: [row[0] for row in rows] for s, rows in listed.items()}
        by_split, missing = patches.by_lists(lists, found, set(s2_names), s2_root)
        unusable += missing
        origin = "official lists"
    else:
        by_split = patches.split_by_hash(
            list(found.values()), {"train": 0.52, "val": 0.24, "test": 0.24}, by_group=True
        )
        origin = "by acquisition, hashed (no official lists given: --splits); not comparable with published numbers"
    return patches.make(
        args,
        archive,
        by_split,
        read_patch,
        unusable,
        name="bigearthnet_v1",
        modalities={"s1": S1, "s2": S2},
        gsd_m=10.0,
        tile_size=SIZE,
        tasks={"multi": Task("label_multi", "multi", clc.CLASSES_19 if args.classes == "19" else clc.CLASSES_43)},
        split_origin=origin,
        license=LICENSE,
        citation="BigEarthNet-MM, Sumbul et al., IEEE GRSM 2021. Contains modified Copernicus Sentinel data.",
        source_version=f"BigEarthNet v1, {args.classes} classes, {len(excluded)} patches excluded by lists",
        notes=(
            "Sentinel-1 GRD in dB as delivered; Sentinel-2 L2A of processing baselines before 04.00.",
            *((f"{unlabeled} patches without any of the 19 classes are not in the set.",) if unlabeled else ()),
        ),
        has_location=True,
        has_group=True,
    )


def _read_excluded(folder: str) -> set[str]:
    paths = [os.path.join(folder, n) for n in _EXCLUDED if os.path.isfile(os.path.join(folder, n))]
    if not paths:
        raise InputError(f"{folder} has no {' or '.join(_EXCLUDED)}; --exclude must hold one of them.")
    return {row[0] for path in paths for row in patches.read_table(path, "a list of patches")}


def _pairs(
    archive: Archive, s1_root: str, s2_names: Sequence[str], known: Mapping[str, str]
) -> tuple[dict[str, str], list[LeftOut]]:
    """Sentinel-1 patch by Sentinel-2 patch, and the patches of either sensor without a pair."""
    unusable = []
    s1_by_s2 = dict(known)
    s1_names = archive.children(s1_root)
    existing = set(s1_names)
    if not known:  # two-column lists name the pairs; otherwise each Sentinel-1 patch's JSON does
        wanted = set(s2_names)
        for s1 in tqdm(s1_names, desc="pairing sensors", unit="patch", disable=not sys.stderr.isatty()):
            path = f"{s1_root}/{s1}/{s1}_labels_metadata.json"
            try:
                s2 = json.loads(archive.read(path))["corresponding_s2_patch"]
            except (InputError, ValueError, KeyError, TypeError) as error:
                unusable.append(LeftOut(s1, "damaged metadata", f"{path}: {error}"))
                continue
            if s2 in wanted:
                s1_by_s2[s2] = s1
            else:
                unusable.append(LeftOut(s1, "unpaired", f"{s1} has no Sentinel-2 patch {s2}"))
    out = {}
    for s2 in s2_names:
        if s1_by_s2.get(s2) in existing:
            out[s2] = s1_by_s2[s2]
        elif not known or s2 in known:
            unusable.append(LeftOut(s2, "unpaired", f"{s2} has no Sentinel-1 patch"))
    return out, unusable


def _read_labels(
    archive: Archive, s2_root: str, names: Sequence[str], classes: str
) -> tuple[dict[str, tuple[int, ...]], int, list[LeftOut]]:
    """Class numbers by patch, how many patches have none of the classes, and the patches with damaged labels."""
    numbers: dict[str, tuple[int, ...]] = {}
    unlabeled, damaged = 0, []
    for name in tqdm(names, desc="reading labels", unit="patch", disable=not sys.stderr.isatty()):
        labels = _labels(archive, f"{s2_root}/{name}/{name}_labels_metadata.json")
        if isinstance(labels, LeftOut):
            damaged.append(labels)
            continue
        found = clc.to_19(labels) if classes == "19" else tuple(clc.CLASSES_43.index(n) for n in labels)
        if found:
            numbers[name] = found
        else:
            unlabeled += 1
    return numbers, unlabeled, damaged


def _labels(archive: Archive, path: str) -> list[str] | LeftOut:
    name = path.rpartition("/")[2].removesuffix("_labels_metadata.json")
    try:
        labels = json.loads(archive.read(path))["labels"]
        unknown = [n for n in labels if n not in clc.CLASSES_43]
        if unknown:
            return LeftOut(name, "unknown label", f"{path} has the label {unknown[0]!r}, not one of the 43 CLC names")
        return labels
    except (InputError, ValueError, KeyError, TypeError) as error:
        return LeftOut(name, "damaged metadata", f"{path}: {error}")


def read_patch(archive: Archive, patch: Patch, chosen: Options) -> dict:
    """Both sensors of one pair; also serves v2, whose scenes stand between root and patch."""
    s2_folder, s1_folder, s1_name = patch.where
    s2 = patches.read_sensor(archive, S2, patches.band_files(f"{s2_folder}/{patch.id}", patch.id, S2), SIZE, chosen)
    s1 = patches.read_sensor(archive, S1, patches.band_files(f"{s1_folder}/{s1_name}", s1_name, S1), SIZE, chosen)
    squares.require_one_place(s1, s2, f"{patch.id} and its Sentinel-1 patch {s1_name}")
    return patches.as_example({"s1": s1, "s2": s2})

"""BigEarthNet v2 (reBEN): 480,038 pairs with the official geographic split of metadata.parquet.

Layout and columns: Clasen et al., IGARSS 2025 (arXiv 2407.03653); README.md beside this file shows it. Patches are
in the folder of their scene. metadata.parquet names pairs, labels and splits ("validation" is our "val").
"""

import argparse
import functools
import os

import numpy as np

from data import clc, patches
from data.archive import Archive
from data.bigearthnet_v1 import builder as v1
from data.bigearthnet_v2.database import FILE, Database
from data.patches import Options, Patch
from data.raster import squares
from data.source import BadTile, LeftOut
from fusionx_jax.contract import IGNORE_LABEL, Task
from fusionx_jax.errors import InputError

_COLUMNS = ("patch_id", "labels", "split", "s1_name")
_MAP = "_reference_map"
_SPLITS = {"train": "train", "validation": "val", "test": "test"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    patches.add_arguments(parser, "folder that holds BigEarthNet-S1 and BigEarthNet-S2, or the LMDB's data.mdb")
    parser.add_argument("--metadata", metavar="FILE", help="metadata.parquet, where it is not in the --raw folder")


def make_source(args: argparse.Namespace) -> patches.PatchSource:
    """Lists the pairs that metadata.parquet names.

    Raises:
      InputError: folders or metadata are missing or belong to something else.
    """
    archive = Archive(args.raw)
    rows = read_metadata(args.metadata or os.path.join(args.raw, "metadata.parquet"))
    database = Database(args.raw) if archive.exists(FILE) else None
    if database is not None:
        s2_there = s1_there = database.names()
        s2_root = s1_root = ""
        maps = "" if any(name.endswith(_MAP) for name in s2_there) else None
    else:
        s2_root = archive.require_folder(["BigEarthNet-S2"], "BigEarthNet v2")
        s1_root = archive.require_folder(["BigEarthNet-S1"], "BigEarthNet v2")
        maps = archive.find_folder("Reference_Maps")
        s2_there = {p for scene in archive.children(s2_root) for p in archive.children(f"{s2_root}/{scene}")}
        s1_there = {p for scene in archive.children(s1_root) for p in archive.children(f"{s1_root}/{scene}")}
    by_split: dict[str, list[Patch]] = {s: [] for s in _SPLITS.values()}
    unusable = []
    for name, labels, split, s1_name in rows:
        lacking = [sensor for sensor, names, n in (("S2", s2_there, name), ("S1", s1_there, s1_name)) if n not in names]
        if lacking:
            kind = "unpaired" if len(lacking) == 1 else "missing patch"
            unusable.append(LeftOut(name, kind, f"{name} has no {' and no '.join(lacking)} folder"))
            continue
        scene, s1_scene = "_".join(name.split("_")[:-2]), "_".join(s1_name.split("_")[:-3])
        where = (
            f"{s2_root}/{scene}",
            f"{s1_root}/{s1_scene}",
            s1_name,
            f"{maps}/{scene}" if maps is not None else None,
        )
        by_split[_SPLITS[split]].append(Patch(name, where, labels, scene))
    tasks = {"multi": Task("label_multi", "multi", clc.CLASSES_19)}
    if maps is not None:
        tasks["pixel"] = Task(patches.PIXELS, "pixel", clc.CLASSES_19)
    return patches.make(
        args,
        archive,
        by_split,
        read_patch if database is None else functools.partial(read_from_database, database),
        unusable,
        name="bigearthnet_v2",
        modalities={"s1": v1.S1, "s2": v1.S2},
        gsd_m=10.0,
        tile_size=v1.SIZE,
        tasks=tasks,
        split_origin="official: the column `split` of metadata.parquet",
        license=v1.LICENSE,
        citation="reBEN, Clasen et al., IGARSS 2025, arXiv 2407.03653. Contains modified Copernicus Sentinel data.",
        source_version="BigEarthNet v2"
        + ("" if database is None else " from LMDB")
        + ("" if maps is not None else " without reference maps"),
        notes=("Sentinel-1 GRD in dB as delivered; Sentinel-2 L2A by sen2cor 2.11, acquisitions of 2017 and 2018.",),
        has_location=database is None,
        has_group=True,
    )


def read_metadata(path: str) -> list[tuple[str, tuple[int, ...], str, str]]:
    """(patch, class numbers, split, Sentinel-1 patch) by row.

    Raises:
      InputError: the file is missing, damaged, lacks a column, or holds an unknown label or split.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path, columns=list(_COLUMNS)).to_pydict()
    except FileNotFoundError as error:
        raise InputError(
            f"There is no {path}; it comes with BigEarthNet v2 and carries splits and labels: give --metadata."
        ) from error
    except (pyarrow.ArrowException, OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as BigEarthNet v2's metadata.parquet with the columns {', '.join(_COLUMNS)} "
            f"({' '.join(str(error).split())[:200]}); copy it again."
        ) from error
    if any(c not in table for c in _COLUMNS):
        raise InputError(f"{path} lacks the columns {', '.join(c for c in _COLUMNS if c not in table)}.")
    number = {name: i for i, name in enumerate(clc.CLASSES_19)}
    rows = []
    for name, labels, split, s1_name in zip(*(table[c] for c in _COLUMNS)):
        if split not in _SPLITS or any(label not in number for label in labels):
            raise InputError(
                f"{path}: {name} has the split {split!r} and the labels {labels}; expected {', '.join(_SPLITS)} and "
                "names of the 19-class nomenclature."
            )
        rows.append((name, tuple(sorted(number[label] for label in labels)), split, s1_name))
    return rows


_CODES = np.full(1000, IGNORE_LABEL, np.uint8)  # CLC code to class number; 999 and dropped classes stay unlabeled
for _code, (_, _number) in clc.LEVEL_3.items():
    if _number is not None:
        _CODES[_code] = _number


def read_patch(archive: Archive, patch: Patch, chosen: Options) -> dict:
    """Both sensors and the reference map of one pair."""
    s2_folder, s1_folder, s1_name, map_folder = patch.where
    out = v1.read_patch(archive, patch._replace(where=(s2_folder, s1_folder, s1_name)), chosen)
    if map_folder:
        codes = squares.read_bands(
            [archive.file(f"{map_folder}/{patch.id}/{patch.id}_reference_map.tif")], v1.SIZE, "nearest"
        ).values[..., 0]
        out[patches.PIXELS] = _class_numbers(codes)
    return out


def _class_numbers(codes: np.ndarray) -> np.ndarray:
    return _CODES[np.clip(np.nan_to_num(codes, nan=999), 0, 999).astype(int)]


def _without_codes(stored: np.ndarray) -> np.ndarray:
    """A stored band as floating point, NaN where it has one of the product's no-data codes."""
    return np.where(np.isin(stored, v1.S2.nodata_codes), np.nan, stored.astype(np.float64))


def read_from_database(database: Database, archive: Archive, patch: Patch, chosen: Options) -> dict:
    """The same from the LMDB form."""
    del archive
    s1_name, map_folder = patch.where[2:]
    optical, radar = database.tensors(patch.id), database.tensors(s1_name)
    lacking = [b for b in (*v1.S2.band_names, *v1.S1.band_names) if b not in {**optical, **radar}]
    if lacking:
        raise BadTile("missing band", f"{patch.id} or {s1_name} has no {', '.join(lacking)}")
    bands = [_without_codes(optical[b]) for b in v1.S2.band_names]
    s2 = np.concatenate([squares.resize(b[..., None], v1.SIZE, chosen.resampling) for b in bands], axis=-1)
    s1 = np.stack([radar[b].astype(np.float64) for b in v1.S1.band_names], axis=-1)
    out = {"s1": s1, "s2": s2 + chosen.s2_offset}
    if map_folder is not None:
        out[patches.PIXELS] = _class_numbers(database.tensors(patch.id + _MAP)["Data"].astype(np.float64))
    return out

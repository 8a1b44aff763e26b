"""So2Sat LCZ42: 400,673 pairs of 32 x 32 pixels in 42 cities, one of 17 local climate zones each (HDF5).

Keys and channels (Zhu et al., IEEE GRSM 8(3), 2020, and the data set's README): `sen1` [N, 32, 32, 8] linear, VH before
VV, channels 5 and 6 the Lee-filtered intensities; `sen2` [N, 32, 32, 10] reflectance in 0..1; `label` one-hot [N, 17].
"""

import argparse
import dataclasses

import numpy as np

from data import patches
from data.archive import Archive
from data.patches import Options, Patch
from data.source import BadTile
from fusionx_jax import modalities
from fusionx_jax.contract import Task
from fusionx_jax.errors import InputError
from fusionx_jax.types import Untyped

SIZE = 32
CLASSES = (
    "compact_high_rise",
    "compact_mid_rise",
    "compact_low_rise",
    "open_high_rise",
    "open_mid_rise",
    "open_low_rise",
    "lightweight_low_rise",
    "large_low_rise",
    "sparsely_built",
    "heavy_industry",
    "dense_trees",
    "scattered_trees",
    "bush_scrub",
    "low_plants",
    "bare_rock_or_paved",
    "bare_soil_or_sand",
    "water",
)
_LEE_VH, _LEE_VV = 4, 5  # channels from 0
_FILES = {"train": "training.h5", "val": "validation.h5", "test": "testing.h5"}
# Lee-filtered intensity of single-look complex data is not GRD: weights made for one are refused the other.
_S1 = dataclasses.replace(modalities.SENTINEL1_GRD, level="SLC_LEE")
_S2 = modalities.subset(
    modalities.SENTINEL2_L1C, ["B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"]
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    patches.add_arguments(parser, "folder that holds training.h5, validation.h5 and testing.h5")


def make_source(args: argparse.Namespace) -> patches.PatchSource:
    """Reads the labels of the three files.

    Raises:
      InputError: a file is missing, truncated, or has other keys or shapes.
    """
    archive = Archive(args.raw)
    by_split = {}
    for split, name in _FILES.items():
        if not archive.exists(name):
            if split == "val":
                continue  # version 3 has none
            raise InputError(f"{args.raw} has no {name}; So2Sat LCZ42 consists of {', '.join(_FILES.values())}.")
        numbers = _labels(archive.file(name))
        by_split[split] = [Patch(f"{split}-{i:06d}", (name, i), (int(k),)) for i, k in enumerate(numbers)]
    return patches.make(
        args,
        archive,
        by_split,
        read_patch,
        name="so2sat_lcz42",
        modalities={"s1": _S1, "s2": _S2},
        gsd_m=10.0,
        tile_size=SIZE,
        tasks={"single": Task("label_single", "single", CLASSES)},
        split_origin="official files; validation and testing are halves of the same ten cities (version 2 and later)",
        license="CC-BY-4.0",
        citation="So2Sat LCZ42, Zhu et al., IEEE GRSM 8(3), 2020. Contains modified Copernicus Sentinel data.",
        source_version="So2Sat LCZ42" + ("" if "val" in by_split else " without validation file"),
        notes=("Sentinel-1: Lee-filtered VV and VH intensities, linear in the files, converted to dB.",),
    )


def _open(path: str) -> Untyped:
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(
            f"{path} cannot be read as HDF5 ({error}); it is truncated or damaged: copy it again."
        ) from error


def _labels(path: str) -> np.ndarray:
    expected = {"sen1": (SIZE, SIZE, 8), "sen2": (SIZE, SIZE, 10), "label": (len(CLASSES),)}
    with _open(path) as file:
        if "label" not in file:
            raise InputError(f"{path} has no label (it has {', '.join(file) or 'nothing'}); give version 2, 3 or 4.")
        for key, shape in expected.items():
            found = file[key].shape[1:] if key in file else None
            if found != shape or file[key].shape[0] != file["label"].shape[0]:
                raise InputError(f"{path}: {key} has the shape {found} behind its rows, expected {shape}; wrong file?")
        return np.asarray(file["label"]).argmax(1)


_files: dict = {}  # a worker's open files


def read_patch(archive: Archive, patch: Patch, chosen: Options) -> dict:
    """Row `where[1]` of a file: intensities in dB, reflectance x 10^4."""
    name, row = patch.where
    path = archive.file(name)
    if path not in _files:
        _files[path] = _open(path)
    try:
        radar, optical = _files[path]["sen1"][row], _files[path]["sen2"][row]
    except (OSError, ValueError) as error:
        raise BadTile("unreadable file", f"{path}, row {row}: {error}") from error
    power = radar[..., [_LEE_VV, _LEE_VH]].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        decibel = np.where(power > 0, 10 * np.log10(power), np.nan)
    return {"s1": decibel, "s2": optical.astype(np.float64) * 1e4 + chosen.s2_offset}

"""Small made-up archives in the true layouts of public data sets: names, types, sizes, no-data codes, metadata.

Layouts follow each builder's README. Pixels are random but fixed by the file's name, so that tests know them.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import rasterio

RESOLUTION = {"B01": 60, "B05": 20, "B06": 20, "B07": 20, "B8A": 20, "B09": 60, "B10": 60, "B11": 20, "B12": 20}
L2A = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
L1C = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")


def rng(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def radar(name: str, size: int, bands: int = 1) -> np.ndarray:
    """Decibels [bands, size, size]."""
    return rng(name).normal(-14, 4, (bands, size, size)).astype(np.float32)


def optical(name: str, size: int, bands: int = 1) -> np.ndarray:
    """Reflectance x 10^4 [bands, size, size], dark pixels among them."""
    return rng(name).integers(20, 4000, (bands, size, size)).astype(np.uint16)


def tif(path: Path, values: np.ndarray, *, meters: float = 10, nodata=None, crs="EPSG:32633", corner=(600000, 5300000)):
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=bands, dtype=values.dtype, nodata=nodata, crs=crs,
        transform=rasterio.transform.from_origin(*corner, meters, meters),
    ) as f:  # fmt: skip
        f.write(values)


def _patch(folder: Path, name: str, sensor: str, corner=(600000, 5300000), nodata=None) -> None:
    if sensor == "s1":
        for band in ("VV", "VH"):
            tif(folder / name / f"{name}_{band}.tif", radar(f"{name}_{band}", 120), corner=corner)
        return
    for band in L2A:
        meters = RESOLUTION.get(band, 10)
        values = optical(f"{name}_{band}", 1200 // meters)
        tif(folder / name / f"{name}_{band}.tif", values, meters=meters, corner=corner, nodata=nodata)


def bigearthnet_v1(root: Path, pairs: list[tuple[str, str, list[str]]]) -> Path:
    """Pairs of (Sentinel-2 patch, Sentinel-1 patch, CLC names); either name may be empty."""
    for number, (s2, s1, labels) in enumerate(pairs):
        corner = (600000 + 1200 * number, 5300000)
        if s2:
            folder = root / "BigEarthNet-v1.0"
            _patch(folder, s2, "s2", corner)
            meta = {"labels": labels, "coordinates": {}, "acquisition_date": "2017-06-17 11:33:21"}
            (folder / s2 / f"{s2}_labels_metadata.json").write_text(json.dumps(meta))
        if s1:
            folder = root / "BigEarthNet-S1-v1.0"
            _patch(folder, s1, "s1", corner)
            meta = {"labels": labels, "corresponding_s2_patch": s2 or "S2A_MSIL2A_20170101T000000_0_0"}
            (folder / s1 / f"{s1}_labels_metadata.json").write_text(json.dumps(meta))
    return root


def bigearthnet_v2(root: Path, rows: list[dict]) -> Path:
    """Rows of metadata.parquet; each gets its files and a reference map of `codes` (repeated)."""
    import pyarrow
    import pyarrow.parquet

    root.mkdir(parents=True, exist_ok=True)
    for row in rows:
        name, s1 = row["patch_id"], row["s1_name"]
        scene, s1_scene = "_".join(name.split("_")[:-2]), "_".join(s1.split("_")[:-3])
        _patch(root / "BigEarthNet-S2" / scene, name, "s2", nodata=0)
        _patch(root / "BigEarthNet-S1" / s1_scene, s1, "s1")
        codes = np.resize(np.array(row["codes"], np.uint16), (1, 120, 120))
        tif(root / "Reference_Maps" / scene / name / f"{name}_reference_map.tif", codes, nodata=0)
    columns = ("patch_id", "labels", "split", "country", "s1_name", "s2v1_name")
    table = {c: [row.get(c, "") for row in rows] for c in columns}
    table |= {c: [False] * len(rows) for c in ("contains_seasonal_snow", "contains_cloud_or_shadow")}
    pyarrow.parquet.write_table(pyarrow.table(table), root / "metadata.parquet")
    return root


def bigearthnet_v2_database(root: Path, folders: Path) -> Path:
    """The patches of a `bigearthnet_v2` folder as rico-hdl's LMDB."""
    import lmdb
    from safetensors.numpy import save

    root.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, np.ndarray]] = {}
    for path in sorted(folders.rglob("*.tif")):
        with rasterio.open(path) as f:
            values = f.read(1)
        if path.stem.endswith("_reference_map"):
            found[path.stem] = {"Data": values}
        else:
            found.setdefault(path.parent.name, {})[path.stem.rpartition("_")[2]] = values
    with lmdb.open(str(root), map_size=1 << 28) as environment, environment.begin(write=True) as transaction:
        for name, tensors in found.items():
            transaction.put(name.encode(), save({k: np.ascontiguousarray(v) for k, v in tensors.items()}))
    return root


def sen12ms(root: Path, members: list[tuple[str, int, int]], igbp: list[int]) -> Path:
    """Triplets of (season, scene, patch); land cover repeats the codes `igbp` row by row."""
    for season, scene, number in members:
        folder = root / season

        def path(kind, folder=folder, season=season, scene=scene, number=number):
            return folder / f"{kind}_{scene}" / f"{season}_{kind}_{scene}_p{number}.tif"

        tif(path("s1"), radar(path("s1").name, 256, 2))
        tif(path("s2"), optical(path("s2").name, 256, 13))
        cover = np.repeat(np.resize(np.array(igbp, np.uint16), 256)[:, None], 256, axis=1)
        tif(path("lc"), np.stack([cover] * 4).astype(np.uint16))
    return root


def dfc2020(root: Path, members: list[tuple[str, str, str, int]], codes: list[int]) -> Path:
    """Triplets of (season, folder suffix, scene in the name, patch)."""
    for season, suffix, scene, number in members:
        for kind in ("s1", "s2", "dfc"):
            path = root / season / f"{kind}_{suffix}" / f"{season}_{kind}_{scene}_p{number}.tif"
            if kind == "s1":
                tif(path, radar(path.name, 256, 2).astype(np.float64))
            elif kind == "s2":
                tif(path, optical(path.name, 256, 13))
            else:
                tif(path, np.repeat(np.resize(np.array(codes, np.uint8), 256)[None, :, None], 256, axis=2))
    return root


def so2sat(root: Path, counts: dict[str, int]) -> Path:
    """Files by split; row i has class i modulo 17."""
    import h5py

    root.mkdir(parents=True, exist_ok=True)
    for name, count in counts.items():
        with h5py.File(root / name, "w") as f:
            values = rng(name)
            f["sen1"] = values.exponential(0.05, (count, 32, 32, 8))
            f["sen2"] = values.uniform(0.005, 0.4, (count, 32, 32, 10))
            f["label"] = np.eye(17)[np.arange(count) % 17]
    return root


def sen1floods11(root: Path, chips: list[str]) -> Path:
    """Hand-labeled chips: a corner of S1 without data, a quarter of labels without data, a quarter water."""
    corner = (-6.0, 38.0)
    for chip in chips:
        s1 = radar(f"{chip}_S1Hand", 512, 2)
        s1[:, :100, :100] = np.nan
        label = np.zeros((1, 512, 512), np.int16)
        label[:, :256, :256], label[:, 256:, 256:] = -1, 1
        kwargs = {"crs": "EPSG:4326", "meters": 8.98e-5, "corner": corner}
        tif(root / "S1Hand" / f"{chip}_S1Hand.tif", s1, nodata=float("nan"), **kwargs)
        s2 = optical(f"{chip}_S2Hand", 512, 13).astype(np.int16)
        tif(root / "S2Hand" / f"{chip}_S2Hand.tif", s2, nodata=0, **kwargs)
        tif(root / "LabelHand" / f"{chip}_LabelHand.tif", label, **kwargs)
    return root


def eurosat(root: Path, names: list[str], sar: Path | None = None) -> Path:
    """CLASS_N patches, B8A last; their radar patches under `sar`."""
    for name in names:
        folder = name.rpartition("_")[0]
        tif(root / folder / f"{name}.tif", optical(name, 64, 13))
        if sar is not None:
            tif(sar / folder / f"{name}.tif", radar(name, 64, 2))
    return root


def ssl4eo(root: Path, seasons: dict[str, list[tuple[str, str]]]) -> Path:
    """Place to (Sentinel-2 day, Sentinel-1 day) of each season."""
    for place, days in seasons.items():
        for s2_day, s1_day in days:
            s2 = root / "s2a" / place / f"{s2_day}T054639_{s2_day}T054831_T43RCP"
            for band in L2A:
                meters = RESOLUTION.get(band, 10)
                plain = f"B{band[2:]}" if band.startswith("B0") else band
                values = optical(f"{place}{s2_day}{band}", 2640 // meters)
                tif(s2 / f"{plain}.tif", values, meters=meters)
            s1 = root / "s1" / place / f"S1A_IW_GRDH_1SDV_{s1_day}T010800_{s1_day}T010825_032904_03CFBA_D457"
            for band in ("VV", "VH"):
                tif(s1 / f"{band}.tif", radar(f"{place}{s1_day}{band}", 264))
    return root


def share(name: str, size: int) -> np.ndarray:
    """Numbers from 0 to 1, as OSCD's Sentinel-1 stacks hold decibels."""
    return rng(name + "share").uniform(0.1, 0.9, (size, size)).astype(np.float32)


def oscd(root: Path, cities: dict[str, bool | None], size: int = 32) -> Path:
    """City to whether it has labels (None: it has no Sentinel-1); square images, of which the lower half changes."""
    for i, (city, labeled) in enumerate(cities.items()):
        place = {"corner": (500000 + 10000 * i, 5000000)}
        images = root / "OSCD - Images" / city
        for number in (1, 2):
            for band in L1C:
                tif(images / f"imgs_{number}" / f"S2_{band}.tif", optical(f"{city}{number}{band}", size), **place)
            if labeled is not None:
                stack = root / "sentinel1" / f"sentinel1_{city}_130_t{number}.tif"
                tif(stack, share(f"{city}{number}", size)[None], **place)
        (images / "dates.txt").write_text("date_1: 20160120\ndate_2: 20180328\n")
        if labeled or labeled is None:
            changed = np.ones((1, size, size), np.uint8)
            changed[:, size // 2 :] = 2
            tif(root / "OSCD - Train Labels" / city / "cm" / f"{city}-cm.tif", changed, crs=None)
    return root


def bigearthnet_patches(root: Path, places: list[str]) -> Path:
    """A patch of 120 x 120 pixels in each place (tile of the MGRS grid): arable land above, forest below."""
    for place in places:
        folder = root / f"S2A_MSIL2A_20170613T101031_N9999_R022_T{place}_39_66"
        tif(folder / "S1.tif", radar(place, 120, 2), crs=None)
        tif(folder / "S2.tif", optical(place, 120, 4), crs=None)
        codes = np.full((1, 120, 120), 211, np.uint16)
        codes[:, 60:] = 312
        tif(folder / "CLC.tif", codes, crs=None)
    return root

"""Co-registered scenes, one file per modality and scene, cut into tiles without neighbors across splits.

A small YAML says what is what (see terramesh.yaml and sen1floods11.yaml beside this file):

    name: my_area                     # of the prepared set
    modalities:
      s1: {sensor: sentinel1_rtc, file: "{scene}/S1.tif", unit: dB}       # or unit: linear, converted
      s2: {sensor: sentinel2_l2a, file: "{scene}/S2.tif", unit: reflectance_1e4, nodata: 0, add: -1000}
      dem: {sensor: custom, file: "{scene}/dem.npy", unit: m, level: DEM, bands: [height], scale: 0.1, offset: -500}
    labels: {file: "{scene}/labels.tif", classes: {1: water, 2: land}}    # optional; other values are unlabeled
    split: {by: block, block: 3, seed: 0}                                 # or by: scene, or train: [...], test: [...]

`{scene}` stands for the scene's name. Bands are matched by name (from `bands:` in file order, or from the GeoTIFF's
band descriptions) and brought into the sensor's order. Splitting by block leaves out the tiles that touch another
split's: neighbors are never in different splits.
"""

import argparse
import dataclasses
import glob
import math
import os
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from data.raster import center
from data.source import SPLITS, Description, LeftOut, evenly, fingerprint, scene_labels
from fusionx_jax import modalities as modalities_lib
from fusionx_jax.contract import IGNORE_LABEL, Task, check_unit
from fusionx_jax.errors import InputError

_UNITS = {"dB": ("dB", "linear"), "reflectance_1e4": ("reflectance_1e4", "reflectance")}
_COVER = 0.05  # a class labels a tile from this share of its labeled pixels on
_DEFAULT_FRACTIONS = {"train": 0.6, "val": 0.2, "test": 0.2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--raw", required=True, metavar="DIR", help="folder that holds the scenes")
    parser.add_argument("--spec", metavar="FILE", help="YAML that says which file is what (default RAW/scenes.yaml)")
    parser.add_argument("--tile_size", type=int, default=64, help="tile side in pixels (default 64)")
    parser.add_argument("--num_tiles", type=int, default=None, help="keep at most this many tiles, evenly spread")
    parser.add_argument(
        "--skip_incomplete", action="store_true", help="leave out scenes that lack a file, instead of stopping"
    )


def make_source(args: argparse.Namespace) -> "PairedScenes":
    """Reads the YAML, finds the scenes and lists their usable tiles.

    Raises:
      InputError: any of the many ways in which a folder of files can be wrong; the file is named.
    """
    if not os.path.isdir(args.raw):
        raise InputError(f"There is no folder {args.raw}; --raw must name the folder that holds the scenes.")
    spec = read_spec(args.spec or os.path.join(args.raw, "scenes.yaml"))
    if args.tile_size < 8:
        raise InputError(f"--tile_size is {args.tile_size}; tiles of at least 8 pixels are needed.")
    scenes = find_scenes(spec, args.raw, args.skip_incomplete)
    usable: list[tuple[str, int, int]] = []
    for scene in tqdm(scenes, desc="checking scenes", unit="scene", disable=not sys.stderr.isatty()):
        usable += usable_tiles(spec, args.raw, scene, args.tile_size)
    if not usable:
        raise InputError(
            f"None of the {len(scenes)} scenes in {args.raw} gives a tile of {args.tile_size} pixels with data in "
            "every modality; use a smaller --tile_size or check the no-data values."
        )
    if args.num_tiles is not None:
        if args.num_tiles < 2:
            raise InputError(f"--num_tiles is {args.num_tiles}; at least 2 are needed.")
        usable = [usable[i] for i in evenly(len(usable), args.num_tiles)]
    by_split = assign_splits(spec.split, usable, args.tile_size)
    dropped = len(usable) - sum(len(t) for t in by_split.values())
    return PairedScenes(spec, os.path.abspath(args.raw), args.tile_size, by_split, len(scenes), dropped)


@dataclasses.dataclass(frozen=True)
class RasterSpec:
    """One modality's files: the sensor, where they are, what their numbers are."""

    sensor: modalities_lib.Modality
    pattern: str
    unit: str
    bands: tuple[str, ...] | None
    nodata: float | None
    add: float


@dataclasses.dataclass(frozen=True)
class Spec:
    """The YAML, checked."""

    path: str
    name: str
    rasters: Mapping[str, RasterSpec]
    label_pattern: str | None
    label_values: tuple[int, ...]
    classes: tuple[str, ...]
    split: Mapping[str, Any]
    gsd_m: float
    license: str
    citation: str


def read_spec(path: str) -> Spec:
    """Checks a YAML description.

    Raises:
      InputError: it is missing, not YAML, or a key is missing, unknown or wrong.
    """
    import yaml

    try:
        with open(path, encoding="utf-8") as f:
            raw = yaml.safe_load(f)
    except FileNotFoundError as error:
        raise InputError(
            f"There is no file {path}; describe the scenes there (example: data/paired_scenes/terramesh.yaml) or give "
            "--spec."
        ) from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("modalities"), dict) or not raw["modalities"]:
        raise InputError(f"{path} must have a `modalities:` section that names a file for each modality.")
    known = {"name", "modalities", "labels", "split", "gsd_m", "license", "citation"}
    unknown = sorted(set(raw) - known)
    if unknown:
        raise InputError(f"{path} has the unknown key {unknown[0]!r}; it may have {', '.join(sorted(known))}.")
    name = str(raw.get("name", "paired_scenes"))
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise InputError(f"{path}: name is {name!r}; use lower-case letters, digits and underscores.")
    rasters = {m: _raster_spec(path, m, s) for m, s in raw["modalities"].items()}
    labels = raw.get("labels") or {}
    classes = labels.get("classes") if isinstance(labels, dict) else None
    if labels and not (isinstance(classes, dict) and classes and "{scene}" in str(labels.get("file", ""))):
        raise InputError(
            f"{path}: `labels:` needs `file:` with {{scene}} in it, and `classes:`, a mapping from raster value to "
            "class name."
        )
    values = tuple(_number(path, "a raster value under `classes:`", v, int) for v in classes or {})
    names = [str(c) for c in (classes or {}).values()]
    if len(set(names)) < len(names):
        raise InputError(f"{path}: two raster values have one class name among {', '.join(names)}; names must differ.")
    split = raw.get("split") or {"by": "scene"}
    fractions = split.get("fractions", {}) if isinstance(split, dict) else None
    if not isinstance(fractions, dict) or set(fractions) - set(SPLITS) or (fractions and "train" not in fractions):
        raise InputError(
            f"{path}: `split:` is {split!r}; write e.g. {{by: block, block: 3, seed: 0}}, with `fractions:` by "
            f"{', '.join(SPLITS)} if they are not to be 0.6, 0.2 and 0.2."
        )
    for key in ("seed", "block"):
        _number(path, f"`split: {key}`", split.get(key, 1), int)
    for name, value in fractions.items():
        if _number(path, f"the fraction of {name}", value, float) < 0:
            raise InputError(f"{path}: the fraction of {name} is {value}; fractions must not be negative.")
    return Spec(
        path=path,
        name=name,
        rasters=rasters,
        label_pattern=labels.get("file"),
        label_values=values,
        classes=tuple(str(c) for c in labels.get("classes", {}).values()),
        split=split,
        gsd_m=_number(path, "`gsd_m`", raw.get("gsd_m", 10.0), float),
        license=str(raw.get("license", "not stated")),
        citation=str(raw.get("citation", "not stated")),
    )


def _number(path: str, what: str, value: Any, kind: type) -> Any:
    try:
        return kind(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: {what} is {value!r}; it must be a number.") from error


def _raster_spec(path: str, name: str, raw: Any) -> RasterSpec:
    where = f"{path}: modality {name}"
    if not isinstance(raw, dict) or "file" not in raw or "sensor" not in raw:
        raise InputError(f"{where} needs `sensor:` and `file:`.")
    if "{scene}" not in str(raw["file"]):
        raise InputError(
            f"{where}: file is {raw['file']!r}; it must contain {{scene}}, which stands for a scene's name."
        )
    bands = tuple(_band(b) for b in raw["bands"]) if raw.get("bands") else None
    if raw["sensor"] == "custom":
        lacking = [k for k in ("unit", "level", "bands", "scale", "offset") if k not in raw]
        if lacking:
            raise InputError(f"{where} is custom and lacks {', '.join(lacking)} (physical = wire * scale + offset).")
        scale, offset = (_number(where, f"`{k}`", raw[k], float) for k in ("scale", "offset"))
        sensor = modalities_lib.Modality(
            name,
            tuple(modalities_lib.Band(b, float("nan"), float("nan")) for b in bands),
            str(raw["unit"]),
            str(raw["level"]),
            scale,
            offset,
            (offset, offset + scale * (modalities_lib.NODATA - 1)),
        )
        unit = sensor.unit
    else:
        if raw["sensor"] not in modalities_lib.KNOWN:
            raise InputError(
                f"{where}: sensor is {raw['sensor']!r}; it may be {', '.join(modalities_lib.KNOWN)} or custom."
            )
        sensor = modalities_lib.KNOWN[raw["sensor"]]
        unit = raw.get("unit")
        allowed = _UNITS[sensor.unit]
        if unit not in allowed:
            raise InputError(f"{where}: unit is {unit!r}; state which of {', '.join(allowed)} the files hold.")
        if bands:
            try:
                # Fewer bands than the sensor has are a smaller modality; the sensor's order is kept.
                sensor = modalities_lib.subset(sensor, [b for b in sensor.band_names if b in bands] or list(bands))
                modalities_lib.subset(sensor, bands)
            except KeyError as error:
                raise InputError(f"{where}: {error.args[0]}.") from error
    nodata = raw.get("nodata")
    return RasterSpec(
        dataclasses.replace(sensor, name=name),
        raw["file"],
        unit,
        bands,
        None if nodata is None else _number(where, "`nodata` (a number or nan)", nodata, float),
        _number(where, "`add`", raw.get("add", 0), float),
    )


def _band(name: Any) -> str:
    """Band names as the product specification writes them: B1 becomes B01."""
    text = str(name)
    match = re.fullmatch(r"B(\d)", text)
    return f"B0{match[1]}" if match else text


def find_scenes(spec: Spec, raw: str, skip_incomplete: bool) -> list[str]:
    """Scene names, sorted; each has a file for every modality and, if labels are described, a label file.

    Raises:
      InputError: no scene is found, or one lacks a partner.
    """
    patterns = {m: r.pattern for m, r in spec.rasters.items()}
    if spec.label_pattern:
        patterns["labels"] = spec.label_pattern
    found = {}
    for what, pattern in patterns.items():
        expression = re.compile("(?P<scene>[^/]+)".join(re.escape(p) for p in pattern.split("{scene}", 1)).replace(
            re.escape("{scene}"), "(?P=scene)"
        ))  # fmt: skip
        files = glob.glob(os.path.join(glob.escape(raw), pattern.replace("{scene}", "*")))
        names = (expression.fullmatch(os.path.relpath(f, raw).replace(os.sep, "/")) for f in files)
        found[what] = {m["scene"] for m in names if m}
    everything = sorted(set().union(*found.values()))
    if not everything:
        raise InputError(
            f"No scene in {raw} matches {', '.join(patterns.values())} (from {spec.path}); check --raw and "
            "the patterns."
        )
    incomplete = {s: [w for w in patterns if s not in found[w]] for s in everything}
    incomplete = {s: lacks for s, lacks in incomplete.items() if lacks}
    if incomplete and not skip_incomplete:
        scene, lacks = next(iter(incomplete.items()))
        files = " and no ".join(patterns[what].replace("{scene}", scene) for what in lacks)
        raise InputError(
            f"{len(incomplete)} of {len(everything)} scenes in {raw} lack a file; the first is {scene}, which has no "
            f"{files}. Add it, or pass --skip_incomplete to leave such scenes out."
        )
    if incomplete:
        print(f"Left out {len(incomplete)} incomplete scene(s): {', '.join(sorted(incomplete))}.", file=sys.stderr)
    complete = [s for s in everything if s not in incomplete]
    if not complete:
        raise InputError(f"No scene in {raw} has all of {', '.join(patterns.values())}.")
    return complete


class Raster:
    """A GeoTIFF, PNG or NPY file, read by window as [h, w, bands]."""

    def __init__(self, path: str):
        self.path = path
        self._array = self._file = None
        self.descriptions: tuple[str | None, ...] = ()
        self.nodata = self.crs = self.transform = None
        if path.endswith(".npy"):
            try:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise InputError(f"{path} cannot be read as NPY ({error}); it is truncated or damaged.") from error
            if array.ndim == 2:
                array = array[..., None]
            if array.ndim != 3:
                raise InputError(f"{path} has {array.ndim} axes; expected [height, width, bands].")
            # Bands are few, sides are long: the short axis in front means [bands, height, width].
            if array.shape[0] < min(array.shape[1:]):
                array = np.moveaxis(array, 0, -1)
            self._array = array
            self.height, self.width, self.count = array.shape
            return
        import rasterio

        try:
            with warnings.catch_warnings():  # PNG files have no place on the Earth, and need none here
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                self._file = rasterio.open(path)
        except rasterio.errors.RasterioIOError as error:
            raise InputError(f"{path} cannot be opened ({error}); it is truncated or not an image.") from error
        self.height, self.width, self.count = self._file.height, self._file.width, self._file.count
        self.descriptions = self._file.descriptions
        self.nodata, self.crs, self.transform = self._file.nodata, self._file.crs, self._file.transform

    def __enter__(self):
        return self

    def __exit__(self, *unused) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, row: int, column: int, size: int) -> np.ndarray:
        """A square window as [size, size, bands] in the file's own type."""
        if self._array is not None:
            return np.array(self._array[row : row + size, column : column + size])
        import rasterio
        from rasterio.windows import Window

        try:
            return np.moveaxis(self._file.read(window=Window(column, row, size, size)), 0, -1)
        except rasterio.errors.RasterioIOError as error:
            raise InputError(
                f"{self.path} cannot be read at row {row}, column {column} ({error}); it is truncated or damaged: "
                "copy it again."
            ) from error


def _open(spec: Spec, raw: str, scene: str) -> dict[str, Raster]:
    """Opens a scene's files and checks that they cover one grid."""
    rasters = {}
    for name, raster in spec.rasters.items():
        rasters[name] = Raster(os.path.join(raw, raster.pattern.replace("{scene}", scene)))
    if spec.label_pattern:
        rasters["labels"] = Raster(os.path.join(raw, spec.label_pattern.replace("{scene}", scene)))
    first = next(iter(rasters.values()))
    for r in rasters.values():
        if (r.height, r.width) != (first.height, first.width):
            raise InputError(
                f"The files of scene {scene} differ in size: {first.path} has {first.height} x {first.width} pixels, "
                f"{r.path} has {r.height} x {r.width}; bring them to one grid."
            )
        if r.crs and first.crs and (r.crs != first.crs or not r.transform.almost_equals(first.transform, 1e-4)):
            raise InputError(
                f"The files of scene {scene} lie on different grids: {first.path} and {r.path} differ in coordinate "
                "system or origin; reproject them to one grid."
            )
    return rasters


def band_positions(raster: Raster, spec: RasterSpec) -> list[int]:
    """Where each of the sensor's bands stands in the file, by name.

    Raises:
      InputError: names are unknown, contradict each other, or a band is missing.
    """
    written = tuple(_band(d) for d in raster.descriptions if d)
    listed = spec.bands
    if listed is not None and len(listed) != raster.count:
        raise InputError(
            f"{raster.path} has {raster.count} band(s), but the spec lists {len(listed)}: {', '.join(listed)}."
        )
    named = len(written) == raster.count and set(written) & set(spec.sensor.band_names)
    if listed is not None and named and written != listed:
        raise InputError(
            f"{raster.path} describes its bands as {', '.join(written)}, but the spec says {', '.join(listed)}; "
            "correct `bands:`, or leave it out to use the file's names."
        )
    names = listed or (written if named else None)
    if names is None:
        raise InputError(
            f"{raster.path} does not name its bands; list them in file order under `bands:` in the spec "
            f"({spec.sensor.name} has {', '.join(spec.sensor.band_names)})."
        )
    missing = [b for b in spec.sensor.band_names if b not in names]
    if missing:
        raise InputError(
            f"{raster.path} lacks the band {', '.join(missing)} (it has {', '.join(names)}); list only the bands there "
            "are under `bands:` in the spec, or give the file that has them."
        )
    return [names.index(b) for b in spec.sensor.band_names]


def physical(values: np.ndarray, raster: Raster, spec: RasterSpec, order: list[int]) -> np.ndarray:
    """File values [h, w, bands] to the sensor's unit, NaN where there is no data.

    Raises:
      InputError: NaN pixels in a file that does not declare NaN as its no-data value.
    """
    nodata = spec.nodata if spec.nodata is not None else raster.nodata
    picked = values[..., order].astype(np.float64)
    not_a_number = np.isnan(picked).any(-1)
    if not_a_number.any() and (nodata is None or not math.isnan(nodata)):
        raise InputError(
            f"{raster.path} has NaN pixels, but its no-data value is {nodata}; set `nodata: nan` for "
            f"{spec.sensor.name} in the spec if they mean missing data, or repair the file."
        )
    empty = not_a_number
    if nodata is not None and not math.isnan(nodata):
        # Zero is also a dark pixel's value in one band; any other code means that the pixel is not there.
        coded = picked == nodata
        empty = empty | (coded.all(-1) if nodata == 0 else coded.any(-1))
    if spec.unit == "linear":
        with np.errstate(divide="ignore", invalid="ignore"):
            picked = np.where(picked > 0, 10 * np.log10(picked), np.nan)
    elif spec.unit == "reflectance":
        picked = picked * 1e4
    picked = picked + spec.add
    picked[empty] = np.nan
    return picked


def usable_tiles(spec: Spec, raw: str, scene: str, size: int) -> list[tuple[str, int, int]]:
    """Tiles (scene, row, column) of the grid with data in every modality and, with labels, a labeled pixel.

    Raises:
      InputError: a file is damaged, in another unit, or does not fit its partners.
    """
    rasters = _open(spec, raw, scene)
    first = next(iter(rasters.values()))
    orders = {m: band_positions(rasters[m], spec.rasters[m]) for m in spec.rasters}
    out = []
    samples: dict[str, list[np.ndarray]] = {m: [] for m in spec.rasters}
    for row in range(0, first.height - size + 1, size):
        for column in range(0, first.width - size + 1, size):
            good = True
            for name, r in spec.rasters.items():
                values = physical(rasters[name].read(row, column, size), rasters[name], r, orders[name])
                good &= bool(np.isfinite(values).all(-1).any())
                samples[name].append(values[::4, ::4].reshape(-1, values.shape[-1]))
            if spec.label_pattern:
                coded = _label_codes(rasters["labels"].read(row, column, size), spec)
                good &= bool((coded != IGNORE_LABEL).any())
            if good:
                out.append((scene, row, column))
    for name, r in spec.rasters.items():
        if samples[name]:
            check_unit(np.concatenate(samples[name]), r.sensor, rasters[name].path)
    for r in rasters.values():
        r.__exit__()
    return out


def _label_codes(values: np.ndarray, spec: Spec) -> np.ndarray:
    """Raster values [h, w, 1] to class numbers, 255 where the value names no class."""
    out = np.full(values.shape[:2], IGNORE_LABEL, np.uint8)
    for number, value in enumerate(spec.label_values):
        out[values[..., 0] == value] = number
    return out


def assign_splits(
    split: Mapping[str, Any], usable: list[tuple[str, int, int]], size: int
) -> dict[str, tuple[tuple[str, int, int], ...]]:
    """Tiles by split. By scene: whole scenes. By block: squares of tiles, and no tile beside one of another split.

    Raises:
      InputError: the rule is unknown, or a split comes out empty.
    """
    scenes = sorted({t[0] for t in usable})
    explicit = {s: [str(x) for x in split[s]] for s in SPLITS if s in split}
    fractions = dict(split.get("fractions") or _DEFAULT_FRACTIONS)
    rng = np.random.default_rng(int(split.get("seed", 0)))
    if explicit:
        of = {scene: s for s, names in explicit.items() for scene in names}
        unknown = sorted(set(of) - set(scenes))
        if unknown:
            raise InputError(
                f"The spec's split names the scene {unknown[0]}, which is not there ({', '.join(scenes)})."
            )
        chosen = {t: of.get(t[0]) for t in usable}
    elif split.get("by") == "scene":
        if len(scenes) < 3:
            raise InputError(
                f"Splitting by scene needs at least 3 scenes, and there are {len(scenes)}; use `split: {{by: block}}`."
            )
        order = [scenes[i] for i in rng.permutation(len(scenes))]
        of = dict(zip(order, _shares(len(order), fractions)))
        chosen = {t: of[t[0]] for t in usable}
    elif split.get("by") == "block":
        chosen = _by_block(usable, size, int(split.get("block", 4)), fractions, rng)
    else:
        raise InputError(f"The spec's split is by {split.get('by')!r}; it may be by scene, by block, or list scenes.")
    out = {s: tuple(t for t in usable if chosen[t] == s) for s in SPLITS}
    empty = [s for s in ("train", "test") if not out[s]]
    if empty:
        raise InputError(
            f"The split {empty[0]!r} comes out empty from {len(usable)} tiles of {len(scenes)} scene(s); use smaller "
            "tiles, smaller blocks, or other fractions in the spec's `split:`."
        )
    return out


def _shares(count: int, fractions: Mapping[str, float]) -> list[str]:
    """Split names for `count` things in random order: at least one each as far as they go, then by fraction."""
    names = [s for s in ("test", "train", "val") if fractions.get(s, 0) > 0]
    held = dict.fromkeys(names, 0)
    total = sum(fractions[s] for s in names)
    out = []
    for i in range(count):
        s = max(names, key=lambda n: (held[n] == 0, fractions[n] / total * (i + 1) - held[n]))
        held[s] += 1
        out.append(s)
    return out


def _by_block(usable, size, block, fractions, rng):
    if block < 1:
        raise InputError(f"The spec's split has block {block}; it is a number of tiles, at least 1.")
    blocks = sorted({(s, r // (size * block), c // (size * block)) for s, r, c in usable})
    order = [blocks[i] for i in rng.permutation(len(blocks))]
    of = dict(zip(order, _shares(len(order), fractions)))
    chosen = {t: of[(t[0], t[1] // (size * block), t[2] // (size * block))] for t in usable}
    # A tile beside another split's leaves, the test split keeping its tiles first, then validation.
    rank = {"test": 0, "val": 1, "train": 2, None: 3}
    out = dict(chosen)
    for scene, row, column in usable:
        own = chosen[(scene, row, column)]
        for dr in (-size, 0, size):
            for dc in (-size, 0, size):
                other = chosen.get((scene, row + dr, column + dc))
                if other is not None and other != own and rank[other] < rank[own]:
                    out[(scene, row, column)] = None
    return out


@dataclasses.dataclass(frozen=True)
class PairedScenes:
    """Tiles of a folder of scenes. `tiles[split]` lists (scene, row, column)."""

    spec: Spec
    raw: str
    tile_size: int
    tiles: Mapping[str, tuple[tuple[str, int, int], ...]]
    num_scenes: int
    dropped: int

    def describe(self) -> Description:
        tasks = {}
        if self.spec.classes:
            tasks = {
                "multi": Task("label_multi", "multi", self.spec.classes),
                "single": Task("label_single", "single", self.spec.classes),
                "pixel": Task("label_pixel", "pixel", self.spec.classes),
            }
        how = self.spec.split.get("by", "the spec's lists of scenes")
        why = "beside another split's" if how == "block" else "of scenes that no list names"
        guard = f"; {self.dropped} tiles {why} left out" if self.dropped else ""
        total = sum(len(t) for t in self.tiles.values())
        return Description(
            name=self.spec.name,
            simulated=False,
            modalities={m: r.sensor for m, r in self.spec.rasters.items()},
            gsd_m=self.spec.gsd_m,
            tile_size=self.tile_size,
            tasks=tasks,
            split_origin=f"by {how}, seed {self.spec.split.get('seed', 0)}{guard}",
            license=self.spec.license,
            citation=self.spec.citation,
            source_version=(
                f"{self.num_scenes} scenes of {os.path.basename(self.raw)} described by "
                f"{os.path.basename(self.spec.path)}, {total} tiles of {self.tile_size} px, split by {how} "
                f"({fingerprint(dataclasses.replace(self.spec, path=''), sorted(self.tiles.items()))})"
            ),
            has_location=True,
            has_group=True,
        )

    def splits(self) -> Mapping[str, int]:
        return {s: len(t) for s, t in self.tiles.items()}

    def left_out(self) -> Sequence[LeftOut]:
        return ()

    def listed(self) -> int:
        return sum(len(t) for t in self.tiles.values())

    def example(self, split: str, index: int) -> dict[str, Any]:
        scene, row, column = self.tiles[split][index]
        rasters = _open(self.spec, self.raw, scene)
        try:
            out: dict[str, Any] = {"id": f"{scene}_r{row}_c{column}", "group": scene}
            for name, r in self.spec.rasters.items():
                window = rasters[name].read(row, column, self.tile_size)
                out[name] = physical(window, rasters[name], r, band_positions(rasters[name], r))
            if self.spec.label_pattern:
                pixels = _label_codes(rasters["labels"].read(row, column, self.tile_size), self.spec)
                multi, single = scene_labels(pixels, len(self.spec.classes), _COVER)
                out |= {"label_pixel": pixels, "label_multi": multi, "label_single": single}
            first = next(iter(rasters.values()))
            out["location"] = _center(first, row, column, self.tile_size)
            return out
        finally:
            for r in rasters.values():
                r.__exit__()


def _center(raster: Raster, row: int, column: int, size: int) -> np.ndarray:
    """Longitude and latitude of a tile's center (degrees, WGS 84); NaN for files without a place."""
    if not raster.crs:
        return np.full(2, np.nan, np.float32)
    t, across, down = raster.transform, column + size / 2, row + size / 2
    return center(raster.crs, t.a * across + t.b * down + t.c, t.d * across + t.e * down + t.f)

"""Finding scenes, opening their rasters, and converting windows to physical values and class numbers."""

import contextlib
import glob
import math
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from data.paired_scenes.spec import RasterSpec, Spec, band_name
from data.paired_scenes.splits import Tile
from data.raster import center
from fusionx_jax.contract import IGNORE_LABEL, check_unit
from fusionx_jax.errors import InputError
from fusionx_jax.types import Untyped

_LABELS = "labels"  # key of the label raster beside the modalities'


def find_scenes(spec: Spec, raw: str, skip_incomplete: bool) -> list[str]:
    """Scene names, sorted; each has a file for every modality and, if labels are described, a label file.

    Raises:
      InputError: no scene is found, or one lacks a file.
    """
    patterns = _patterns(spec)
    found = {what: _scenes_of(raw, pattern) for what, pattern in patterns.items()}
    every = sorted(set().union(*found.values()))
    if not every:
        raise InputError(
            f"No scene in {raw} matches {', '.join(patterns.values())} (from {spec.path}); check --raw and "
            "the patterns."
        )
    missing = {s: [patterns[w].replace("{scene}", s) for w in patterns if s not in found[w]] for s in every}
    incomplete = {s: files for s, files in missing.items() if files}
    if incomplete and not skip_incomplete:
        scene, files = next(iter(incomplete.items()))
        raise InputError(
            f"{len(incomplete)} of {len(every)} scenes in {raw} lack a file; the first is {scene}, which has no "
            f"{' and no '.join(files)}. Add it, or pass --skip_incomplete to leave such scenes out."
        )
    if incomplete:
        print(f"Left out {len(incomplete)} incomplete scene(s): {', '.join(incomplete)}.", file=sys.stderr)
    complete = [s for s in every if s not in incomplete]
    if not complete:
        raise InputError(f"No scene in {raw} has all of {', '.join(patterns.values())}.")
    return complete


def _patterns(spec: Spec) -> dict[str, str]:
    labels = {_LABELS: spec.labels.pattern} if spec.labels else {}
    return {m: r.pattern for m, r in spec.rasters.items()} | labels


def _scenes_of(raw: str, pattern: str) -> set[str]:
    """Names that stand for `{scene}` in the files below `raw` that match the pattern."""
    before, after = pattern.split("{scene}", 1)
    # A later {scene} must repeat the first.
    after = re.escape(after).replace(re.escape("{scene}"), "(?P=scene)")
    expression = re.compile(f"{re.escape(before)}(?P<scene>[^/]+){after}")
    paths = glob.glob(os.path.join(glob.escape(raw), pattern.replace("{scene}", "*")))
    matches = (expression.fullmatch(os.path.relpath(p, raw).replace(os.sep, "/")) for p in paths)
    return {m["scene"] for m in matches if m}


class Raster:
    """A GeoTIFF, PNG or NPY file, read by window as [h, w, bands]."""

    def __init__(self, path: str):
        self.path = path
        self.descriptions: tuple[str | None, ...] = ()
        self.nodata: float | None = None
        self.crs: Untyped = None
        self.transform: Untyped = None
        self._array: np.ndarray | None = None
        self._file: Untyped = None
        if path.endswith(".npy"):
            self._array = _load_npy(path)
            self.height, self.width, self.count = self._array.shape
            return
        import rasterio

        try:
            with warnings.catch_warnings():  # PNG files have no georeference, and need none here
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                self._file = rasterio.open(path)
        except rasterio.errors.RasterioIOError as error:
            raise InputError(f"{path} cannot be opened ({error}); it is truncated or not an image.") from error
        self.height, self.width, self.count = self._file.height, self._file.width, self._file.count
        self.descriptions = self._file.descriptions
        self.nodata, self.crs, self.transform = self._file.nodata, self._file.crs, self._file.transform

    def center(self, row: int, column: int, size: int) -> np.ndarray:
        """Longitude and latitude of a tile's center (degrees, WGS 84); NaN for files without a coordinate system."""
        if not self.crs:
            return np.full(2, np.nan, np.float32)
        return center(self.crs, *(self.transform * (column + size / 2, row + size / 2)))

    def close(self) -> None:
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


def _load_npy(path: str) -> np.ndarray:
    """Maps an NPY file as [height, width, bands]."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as NPY ({error}); it is truncated or damaged.") from error
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3:
        raise InputError(f"{path} has {array.ndim} axes; expected [height, width, bands].")
    # Bands are few, sides are long: a short first axis means [bands, height, width].
    return np.moveaxis(array, 0, -1) if array.shape[0] < min(array.shape[1:]) else array


@contextlib.contextmanager
def open_scene(spec: Spec, raw: str, scene: str) -> Iterator["Scene"]:
    """Opens a scene's files and checks that they lie on one grid.

    Raises:
      InputError: a file cannot be opened, its bands do not match the spec, or it lies on another grid.
    """
    rasters: dict[str, Raster] = {}
    try:
        for what, pattern in _patterns(spec).items():
            rasters[what] = Raster(os.path.join(raw, pattern.replace("{scene}", scene)))
        _check_one_grid(scene, list(rasters.values()))
        yield Scene(spec, scene, rasters)
    finally:
        for raster in rasters.values():
            raster.close()


def _check_one_grid(scene: str, rasters: Sequence[Raster]) -> None:
    first = rasters[0]
    for r in rasters:
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


class Scene:
    """An open scene: windows of its modalities in physical units and of its labels as class numbers."""

    def __init__(self, spec: Spec, name: str, rasters: Mapping[str, Raster]):
        self.name, self.rasters = name, rasters
        first = next(iter(rasters.values()))
        self.height, self.width = first.height, first.width
        self._spec = spec
        self._positions = {m: band_positions(rasters[m], r) for m, r in spec.rasters.items()}

    def window(self, modality: str, row: int, column: int, size: int) -> np.ndarray:
        """Physical values [size, size, bands], NaN where the file has no data."""
        raster = self.rasters[modality]
        values = raster.read(row, column, size)[..., self._positions[modality]]
        return physical(values, raster, self._spec.rasters[modality])

    def labels(self, row: int, column: int, size: int) -> np.ndarray:
        """Class numbers uint8 [size, size], 255 where the raster's value names no class."""
        values = self.rasters[_LABELS].read(row, column, size)[..., 0]
        out = np.full(values.shape, IGNORE_LABEL, np.uint8)
        for number, value in enumerate(self._spec.labels.values if self._spec.labels else ()):
            out[values == value] = number
        return out

    def center(self, row: int, column: int, size: int) -> np.ndarray:
        """Longitude and latitude of a tile's center (degrees, WGS 84)."""
        return next(iter(self.rasters.values())).center(row, column, size)


def band_positions(raster: Raster, spec: RasterSpec) -> list[int]:
    """Index of each of the sensor's bands in the file, by name.

    Raises:
      InputError: names are unknown, contradict each other, or a band is missing.
    """
    written = tuple(band_name(d) for d in raster.descriptions if d)
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


def physical(values: np.ndarray, raster: Raster, spec: RasterSpec) -> np.ndarray:
    """File values [h, w, bands], in the sensor's band order, to the sensor's unit; NaN where there is no data.

    Raises:
      InputError: NaN pixels in a file that does not declare NaN as its no-data value.
    """
    nodata = spec.nodata if spec.nodata is not None else raster.nodata
    pixels = values.astype(np.float64)
    not_a_number = np.isnan(pixels).any(-1)
    if not_a_number.any() and (nodata is None or not math.isnan(nodata)):
        raise InputError(
            f"{raster.path} has NaN pixels, but its no-data value is {nodata}; set `nodata: nan` for "
            f"{spec.sensor.name} in the spec if they mean missing data, or repair the file."
        )
    empty = not_a_number
    if nodata is not None and not math.isnan(nodata):
        # Zero is also a dark pixel's value in one band; any other code means that the pixel has no data.
        coded = pixels == nodata
        empty = empty | (coded.all(-1) if nodata == 0 else coded.any(-1))
    if spec.unit == "linear":
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = np.where(pixels > 0, 10 * np.log10(pixels), np.nan)
    elif spec.unit == "reflectance":
        pixels = pixels * 1e4
    pixels = pixels + spec.add
    pixels[empty] = np.nan
    return pixels


def usable_tiles(spec: Spec, raw: str, name: str, size: int) -> list[Tile]:
    """Tiles of `size` pixels with data in every modality and, with labels, a labeled pixel.

    Raises:
      InputError: a file is damaged, in another unit, or does not match the others of its scene.
    """
    tiles = []
    samples: dict[str, list[np.ndarray]] = {m: [] for m in spec.rasters}
    with open_scene(spec, raw, name) as scene:
        for row in range(0, scene.height - size + 1, size):
            for column in range(0, scene.width - size + 1, size):
                usable = True
                for modality in spec.rasters:
                    values = scene.window(modality, row, column, size)
                    usable &= bool(np.isfinite(values).all(-1).any())
                    samples[modality].append(values[::4, ::4].reshape(-1, values.shape[-1]))
                if spec.labels:
                    usable &= bool((scene.labels(row, column, size) != IGNORE_LABEL).any())
                if usable:
                    tiles.append(Tile(name, row, column))
        for modality, r in spec.rasters.items():
            if samples[modality]:
                check_unit(np.concatenate(samples[modality]), r.sensor, scene.rasters[modality].path)
    return tiles

"""Open scenes: their files on one grid, read by window as physical values and class numbers."""

import collections
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data.paired_scenes.files import Paths
from data.paired_scenes.spec import LabelSpec, RasterSpec, Spec
from data.paired_scenes.splits import Tile
from data.raster import grid as grids
from data.raster import names as band_names
from data.raster.file import Grid, RasterFile
from data.raster.squares import center
from data.source import LITTLE_DATA, LeftOut
from fusionx_jax.contract import IGNORE_LABEL, check_unit
from fusionx_jax.errors import InputError

_LEAST_OVERLAP = 0.1  # share of the scene's grid that each of its files must cover
_SAMPLING = 4  # every fourth row and column serve the check of units


class _Layer(NamedTuple):
    """A file of a modality: which of its bands are which of the sensor's."""

    file: RasterFile
    indexes: list[int]  # in the file
    bands: list[int]  # in the sensor


class Scene:
    """An open scene on one grid.

    Attributes:
      name: the scene's name.
      height, width: of its grid, in pixels.
      grid: None if no file has a coordinate system.
      remarks: what is applied or resampled while reading.
    """

    def __init__(self, spec: Spec, name: str, layers: Mapping[str, Sequence[_Layer]], labels: RasterFile | None):
        self.name = name
        self._spec, self._layers, self._labels = spec, layers, labels
        files = {f"modality {m}": layer.file for m, found in layers.items() for layer in found}
        self._grids = _grids_of(spec, name, layers, labels)
        first = next(iter(files.values()))
        self.grid = _target(spec, self._grids, layers)
        self.height: int = self.grid.height if self.grid else first.height
        self.width: int = self.grid.width if self.grid else first.width
        self.remarks = self._check_grids(labels)

    @property
    def has_labels(self) -> bool:
        return self._labels is not None

    def window(self, modality: str, row: int, column: int, size: int) -> np.ndarray:
        """Physical values [size, size, bands] in the sensor's bands and unit, NaN where there is no data."""
        spec = self._spec.rasters[modality]
        out = np.full((size, size, len(spec.sensor.bands)), np.nan)
        for layer in self._layers[modality]:
            out[..., layer.bands] = self._read(
                layer.file, row, column, size, layer.indexes, spec.resampling, lambda x: physical(x, spec),
                as_power=spec.sensor.unit == "dB",
            )  # fmt: skip
        return out

    def labels(self, row: int, column: int, size: int) -> np.ndarray:
        """Class numbers uint8 [size, size], 255 where the raster's value names no class."""
        return self.label_values(row, column, size)[1]

    def label_values(self, row: int, column: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The raster's values, NaN where there are none, and class numbers, both [size, size]."""
        if self._labels is None or self._spec.labels is None:
            return np.full((size, size), np.nan), np.full((size, size), IGNORE_LABEL, np.uint8)
        bands = list(range(self._labels.count))
        values = _label_values(self._read(self._labels, row, column, size, bands, "nearest", lambda x: x))
        return values, class_numbers(values, self._spec.labels)

    def center(self, row: int, column: int, size: int) -> np.ndarray:
        """Longitude and latitude of a tile's center (degrees, WGS 84); NaN without a coordinate system."""
        if self.grid is None:
            return np.full(2, np.nan, np.float32)
        return center(self.grid.crs, *(self.grid.transform * (column + size / 2, row + size / 2)))

    def path(self, modality: str) -> str:
        """The first file of a modality."""
        return self._layers[modality][0].file.path

    def describe(self, modality: str) -> str:
        """The first file of a modality, with what is applied to its numbers, for errors."""
        remarks = "; ".join(self._layers[modality][0].file.remarks)
        return f"{self.path(modality)} ({remarks})" if remarks else self.path(modality)

    def _read(
        self, file: RasterFile, row: int, column: int, size: int, indexes: list[int], resampling: str,
        convert: Callable[[np.ndarray], np.ndarray], as_power: bool = False,
    ) -> np.ndarray:  # fmt: skip
        grid = self._grids[file.path]
        if self.grid is None or grid is None or grids.is_same(grid, self.grid):
            return convert(file.read(row, column, size, size, indexes))
        return grids.read(file, grid, self.grid, row, column, size, indexes, resampling, convert, as_power)

    def _check_grids(self, labels: RasterFile | None) -> list[str]:
        """Remarks on files that are resampled.

        Raises:
          InputError: sizes differ without coordinate systems, or a file covers too little of the scene.
        """
        remarks = []
        by_file = [(m, layer.file) for m, found in self._layers.items() for layer in found]
        for what, file in [*by_file, *([("labels", labels)] if labels else [])]:
            remarks += [f"{what}: {remark}" for remark in file.remarks]
            grid = self._grids[file.path]
            if grid is None or self.grid is None:
                if (file.height, file.width) != (self.height, self.width):
                    raise InputError(
                        f"The files of scene {self.name} differ in size, and without coordinate systems they cannot be "
                        f"brought to one grid: {file.path} has {file.height} x {file.width} pixels, expected "
                        f"{self.height} x {self.width}."
                    )
                continue
            if grids.is_same(grid, self.grid):
                continue
            share = grids.overlap(grid, self.grid)
            if share < _LEAST_OVERLAP:
                raise InputError(
                    f"{file.path} covers {100 * share:.0f} % of the grid of scene {self.name} (at least "
                    f"{100 * _LEAST_OVERLAP:.0f} % are needed); check that its files show one place."
                )
            how = "nearest" if what == "labels" else grids.kernel(grid, self.grid, self._spec.rasters[what].resampling)
            power = " of linear power" if what != "labels" and self._spec.rasters[what].sensor.unit == "dB" else ""
            remarks.append(
                f"{what}: resampled ({how}{power}) from {grids.pixel_size_m(grid):.2g} m to the scene's grid of "
                f"{grids.pixel_size_m(self.grid):.2g} m"
            )
        return list(dict.fromkeys(remarks))


@contextlib.contextmanager
def open_scene(spec: Spec, paths: Paths, name: str) -> Iterator[Scene]:
    """Opens the files of a scene.

    Raises:
      InputError: a file cannot be opened, its bands do not match the spec, or it does not lie with the others.
    """
    with contextlib.ExitStack() as stack:
        layers: dict[str, list[_Layer]] = {}
        for modality, raster in spec.rasters.items():
            layers[modality] = []
            for bands, pattern in raster.files:
                count = len(bands) if bands else None
                file = stack.enter_context(RasterFile(paths[pattern], raster.nodata, raster.sensor.nodata_codes, count))
                if file.has_palette:
                    raise InputError(f"{file.path} is a picture with a color table, not a measurement of {modality}.")
                layers[modality].append(_Layer(file, *_match_bands(file, raster, bands)))
        labels = None
        if spec.labels and spec.labels.pattern in paths:
            labels = stack.enter_context(RasterFile(paths[spec.labels.pattern]))
            _check_labels(labels, spec.labels)
        yield Scene(spec, name, layers, labels)


def _check_labels(file: RasterFile, labels: LabelSpec) -> None:
    """Refuses label rasters of another kind than the classes of the spec: class numbers, or colors."""
    if labels.colored and (file.count, file.dtype) != (3, np.uint8):
        raise InputError(
            f"{file.path} has {file.count} band(s) of {file.dtype}, but the spec names the classes by color, which "
            "takes three bands of uint8; name them by the raster's values."
        )
    if not labels.colored and file.count != 1:
        raise InputError(
            f"{file.path} has {file.count} bands; labels are one band of class numbers. If it is a picture, name the "
            'classes by color in the spec: `classes: {"#ff0000": built, …}`.'
        )


def _label_values(bands: np.ndarray) -> np.ndarray:
    """Label bands [h, w, 1 or 3] as one number for each pixel, see `LabelSpec.values`."""
    return bands[..., 0] if bands.shape[-1] == 1 else bands @ np.array([1 << 16, 1 << 8, 1.0])


def _grids_of(
    spec: Spec, scene: str, layers: Mapping[str, Sequence[_Layer]], labels: RasterFile | None
) -> dict[str, Grid | None]:
    """The grid of each file by its path; `grid_of` gives a file that has none that of a named modality.

    Raises:
      InputError: some files have a coordinate system and others neither have one nor `grid_of`.
    """
    out = {layer.file.path: layer.file.grid for found in layers.values() for layer in found}
    borrowers = [(layer.file, spec.rasters[m].grid_of) for m, found in layers.items() for layer in found]
    if labels is not None and spec.labels is not None:
        out[labels.path] = labels.grid
        borrowers.append((labels, spec.labels.grid_of))
    placed = next((path for path, grid in out.items() if grid is not None), None)
    for file, lender in borrowers:
        if out[file.path] is not None or placed is None:
            continue
        if lender is None:
            raise InputError(
                f"{file.path} has no coordinate system, and {placed} of the same scene {scene} has one; if its pixels "
                "have the grid of another modality, say so with `grid_of: MODALITY` in the spec; else georeference it."
            )
        found = [g for g in (out[layer.file.path] for layer in layers[lender]) if g is not None]
        fitting = [g for g in found if (file.height, file.width) == (g.height, g.width)]
        if not fitting:
            sizes = " or ".join(dict.fromkeys(f"{g.height} x {g.width} pixels" for g in found))
            raise InputError(
                f"{file.path} has {file.height} x {file.width} pixels and `grid_of: {lender}`, but {lender} of scene "
                f"{scene} has {sizes or 'no coordinate system'}."
            )
        out[file.path] = fitting[0]
    return out


def _target(spec: Spec, grids_of: Mapping[str, Grid | None], layers: Mapping[str, Sequence[_Layer]]) -> Grid | None:
    """The grid of a scene: that of the modality that the spec names, or the first one with the finest pixels."""
    chosen = layers[spec.grid] if spec.grid else [layer for found in layers.values() for layer in found]
    candidates = [g for g in (grids_of[layer.file.path] for layer in chosen) if g is not None]
    # Rounded: grids of one product in two coordinate systems differ by less than a thousandth.
    return min(candidates, key=lambda g: float(f"{grids.pixel_size_m(g):.2g}"), default=None)


def _match_bands(file: RasterFile, raster: RasterSpec, listed: tuple[str, ...] | None) -> tuple[list[int], list[int]]:
    """Indexes in the file and in the sensor of the bands that both have.

    Args:
      listed: the bands that the spec lists for the file, in file order.

    Raises:
      InputError: names are unknown, contradict each other, or a band is missing.
    """
    known = raster.sensor.band_names
    named = [band_names.find(n, raster.all_bands) if n else None for n in file.names]
    if listed is not None and len(listed) != file.count:
        raise InputError(f"{file.path} has {file.count} bands, but the spec lists {len(listed)}: {', '.join(listed)}.")
    if listed is not None and any(named) and named != list(listed):
        described = ", ".join(n or "(none)" for n in file.names)
        raise InputError(
            f"{file.path} describes its bands as {described}, but the spec says {', '.join(listed)}; correct `bands:`, "
            "or leave it out to use the file's names."
        )
    if listed is None and not any(named):
        described = f" ({', '.join(n for n in file.names if n)})" if any(file.names) else ""
        raise InputError(
            f"{file.path} does not name its bands as {raster.sensor.name} does{described}; list them in file order "
            f"under `bands:` in the spec ({', '.join(known)})."
        )
    present = list(listed) if listed is not None else named
    doubled = sorted({n for n in present if n and present.count(n) > 1})
    if doubled:
        raise InputError(f"{file.path} has two bands named {doubled[0]}; correct the file's band descriptions.")
    wanted = [b for b in known if listed is None or b in listed]
    missing = [b for b in wanted if b not in present]
    if missing:
        raise InputError(
            f"{file.path} lacks the band {', '.join(missing)} (it has {', '.join(n or '(unnamed)' for n in present)}); "
            "list only the bands there are under `bands:` in the spec, or give the file that has them."
        )
    return [present.index(b) for b in wanted], [known.index(b) for b in wanted]


def physical(values: np.ndarray, spec: RasterSpec) -> np.ndarray:
    """Numbers of the files [h, w, bands] in the sensor's unit; power of zero or less becomes NaN."""
    values = values * spec.scale
    if spec.unit == "linear":
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.where(values > 0, 10 * np.log10(values), np.nan)
    elif spec.unit == "reflectance":
        values = values * 1e4
    return values + spec.add


def class_numbers(values: np.ndarray, labels: LabelSpec) -> np.ndarray:
    """Raster values [h, w] (NaN: no data) as class numbers uint8, 255 where a value names no class."""
    out = np.full(values.shape, IGNORE_LABEL, np.uint8)
    for number, value in zip(labels.numbers, labels.values):
        out[values == value] = number
    return out


class Checked(NamedTuple):
    """Tiles of a scene with data in every modality and, with labels, a labeled pixel; its grid; remarks.

    Attributes:
      sparse: tiles with too little data, and why.
      unnamed: label pixels by value, of the values that name no class.
    """

    tiles: list[Tile]
    sparse: list[LeftOut]
    unnamed: collections.Counter[float]
    grid: Grid | None
    remarks: list[str]


def check_scene(spec: Spec, paths: Paths, name: str, size: int, most_missing: float) -> Checked:
    """Reads every tile of `size` pixels; those of which more than `most_missing` lack a modality are not used.

    Raises:
      InputError: a file is damaged, in another unit, or does not match the others of its scene.
    """
    tiles, sparse = [], []
    unnamed: collections.Counter[float] = collections.Counter()
    samples: dict[str, list[np.ndarray]] = {m: [] for m in spec.rasters}
    with open_scene(spec, paths, name) as scene:
        for row in range(0, scene.height - size + 1, size):
            for column in range(0, scene.width - size + 1, size):
                tile, usable = Tile(name, row, column), True
                for modality in spec.rasters:
                    values = scene.window(modality, row, column, size)
                    missing = 1 - float(np.isfinite(values).all(-1).mean())
                    if usable and missing > most_missing:
                        usable = False
                        if missing < 1:  # without any data it is no part of the scene
                            detail = f"{scene.path(modality)} lacks {100 * missing:.0f} % of the tile's pixels"
                            sparse.append(LeftOut(tile.id, LITTLE_DATA, detail))
                    samples[modality].append(values[::_SAMPLING, ::_SAMPLING].reshape(-1, values.shape[-1]))
                if scene.has_labels:
                    values, numbers = scene.label_values(row, column, size)
                    usable &= bool((numbers != IGNORE_LABEL).any())
                    lost, counts = np.unique(
                        values[(numbers == IGNORE_LABEL) & np.isfinite(values)], return_counts=True
                    )
                    unnamed.update(dict(zip(lost.tolist(), counts.tolist())))
                if usable:
                    tiles.append(tile)
        for modality, r in spec.rasters.items():
            if samples[modality]:
                check_unit(np.concatenate(samples[modality]), r.sensor, scene.describe(modality))
        return Checked(tiles, sparse, unnamed, scene.grid, scene.remarks)

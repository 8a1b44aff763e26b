"""Reading the band files of one tile onto one square grid."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from data.raster import grid, names
from data.raster.file import RasterFile
from data.source import BadTile
from fusionx_jax.errors import InputError
from fusionx_jax.modalities import Modality
from fusionx_jax.types import Untyped


class Bands(NamedTuple):
    """Physical values [size, size, bands] with NaN where the file has no data, the tile's center (lon, lat), and what
    the files declare that was applied."""

    values: np.ndarray
    location: np.ndarray
    remarks: tuple[str, ...] = ()


class _Place(NamedTuple):
    """The area of a file: coordinate system, left, bottom, right and top, and pixel size."""

    crs: Untyped
    bounds: tuple[float, float, float, float]
    pixel: float


def read_bands(
    files: Sequence[str],
    size: int,
    resampling: str,
    *,
    sensor: Modality | None = None,
    indexes: Sequence[int] | None = None,
) -> Bands:
    """Reads single-band files, or the bands `indexes` (from 1) of one file, onto a grid of `size` x `size` pixels.

    Bands of another resolution are brought to the grid by the named resampling (backscatter in dB as linear power); all
    files must cover the same area.

    Args:
      sensor: what the bands are, in its order; its no-data codes are known, and names that files give are compared.

    Raises:
      BadTile: a file is missing, truncated, holds no measurements or another band, or does not cover the same area as
        the first.
    """
    layers, remarks = [], list[str]()
    first: _Place | None = None
    for number, path in enumerate(files):
        try:
            with RasterFile(path, known_codes=sensor.nodata_codes if sensor else ()) as file:
                if file.width != file.height:
                    raise BadTile("wrong size", f"{path} has {file.height} x {file.width} pixels; tiles are square")
                bands = [i - 1 for i in indexes] if indexes is not None else [0]
                if max(bands) >= file.count:
                    raise BadTile("missing band", f"{path} has {file.count} band(s), expected {max(bands) + 1}")
                if sensor:
                    expected = sensor.band_names if indexes is not None else sensor.band_names[number : number + 1]
                    _check_names(file, bands, expected, sensor)
                place = _place(file)
                if first is None:
                    first = place
                coarser = max(first.pixel, place.pixel)  # bands of 10 and 60 m may end a fraction of a pixel apart
                if place.crs != first.crs or not np.allclose(place.bounds, first.bounds, rtol=0, atol=coarser):
                    raise BadTile("other place", f"{path} does not cover the same area as the first band")
                values = file.read(0, 0, file.height, file.width, bands)
                remarks += [r for r in file.remarks if r not in remarks]
        except InputError as error:
            raise BadTile("unreadable file", str(error)) from error
        layers.append(resize(values, size, resampling, as_power=sensor is not None and sensor.unit == "dB"))
    assert first is not None  # `files` is not empty
    return Bands(np.concatenate(layers, axis=-1), _middle(first), tuple(remarks))


def resize(
    values: Float[np.ndarray, "height width bands"], size: int, resampling: str, as_power: bool = False
) -> Float[np.ndarray, "size size bands"]:
    """Values on a grid of `size` x `size` pixels of the same area; NaN is no data.

    Args:
      resampling: one of `grid.RESAMPLINGS`; more than 1.5 pixels to one are averaged instead, unless it is "nearest".
      as_power: resample the values, which are in dB, as linear power.
    """
    height, width = values.shape[:2]
    if (height, width) == (size, size):
        return values
    from rasterio.crs import CRS
    from rasterio.transform import Affine

    # Any coordinate system in meters serves: both grids are in the same one.
    crs = CRS.from_epsg(3857)
    source = grid.Grid(crs, Affine.scale(size / width, size / height), height, width)
    target = grid.Grid(crs, Affine.identity(), size, size)
    return grid.resample(values, source, target, resampling, as_power)


def _check_names(file: RasterFile, bands: Sequence[int], expected: Sequence[str], sensor: Modality) -> None:
    for band, name in zip(bands, expected):
        written = file.names[band] if file.names else None
        found = names.find(written, sensor.band_names) if written else None
        if found is not None and found != name:
            raise BadTile("wrong band", f"{file.path} calls band {band + 1} {written!r}, expected {name}")


def _place(file: RasterFile) -> _Place:
    a, _, left, _, e, top, *_ = file.transform
    right, bottom = left + a * file.width, top + e * file.height
    return _Place(file.grid.crs if file.grid else None, (left, bottom, right, top), abs(a))


def _middle(place: _Place) -> np.ndarray:
    """Longitude and latitude of a square's center; NaN without a coordinate system."""
    if not place.crs:
        return np.full(2, np.nan, np.float32)
    left, bottom, right, top = place.bounds
    return center(place.crs, (left + right) / 2, (bottom + top) / 2)


def center(crs: Untyped, x: float, y: float) -> np.ndarray:
    """Longitude and latitude (degrees, WGS 84) of a point."""
    from rasterio.warp import transform

    longitude, latitude = transform(crs, "EPSG:4326", [x], [y])
    return np.array([longitude[0], latitude[0]], np.float32)


def require_one_place(first: Bands, second: Bands, what: str) -> None:
    """Checks that the centers of a pair are at most a fiftieth of a degree apart.

    Raises:
      BadTile: they are farther apart; `what` names both in the message.
    """
    if abs(first.location - second.location).max() > 0.02:
        raise BadTile("other place", f"{what} are at different locations")


def require_data(values: np.ndarray, what: str, most_missing: float) -> None:
    """Checks that at most the share `most_missing` of a tile's pixels lacks data in some band.

    Raises:
      BadTile: more pixels lack data; the message gives the share.
    """
    missing = float(np.isnan(values).any(-1).mean())
    if missing > most_missing:
        raise BadTile(
            "no data",
            f"{what} lacks {100 * missing:.0f} % of its pixels (at most {100 * most_missing:g} % may be missing)",
        )

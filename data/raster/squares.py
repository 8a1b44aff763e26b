"""Reading the band files of one tile onto one grid."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.source import BadTile
from fusionx_jax.types import Untyped

RESAMPLINGS = ("nearest", "bilinear", "cubic")


class Bands(NamedTuple):
    """Physical values [size, size, bands] with NaN where the file has no data, and the tile's center (lon, lat)."""

    values: np.ndarray
    location: np.ndarray


def read_bands(
    files: Sequence[str],
    size: int,
    resampling: str,
    *,
    nodata: float | None = None,
    indexes: Sequence[int] | None = None,
) -> Bands:
    """Reads single-band files, or the bands `indexes` (from 1) of one file, onto a grid of `size` x `size` pixels.

    Bands of another resolution are brought to the grid by the named resampling; all files must cover the same area.

    Args:
      nodata: value that means no data besides what the files declare.

    Raises:
      BadTile: a file is missing, truncated, or does not cover the same area as the first.
    """
    import rasterio
    from rasterio.enums import Resampling

    layers, first = [], None
    for path in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                file = rasterio.open(path)
            with file:
                if file.width != file.height:
                    raise BadTile("wrong size", f"{path} has {file.height} x {file.width} pixels; tiles are square")
                if indexes is not None and max(indexes) > file.count:
                    raise BadTile("missing band", f"{path} has {file.count} band(s), expected {max(indexes)}")
                if first is None:
                    first = (file.crs, file.bounds, file.res[0])
                coarser = max(first[2], file.res[0])  # bands of 10 and 60 m may end a fraction of a pixel apart
                if file.crs != first[0] or not np.allclose(file.bounds, first[1], rtol=0, atol=coarser):
                    raise BadTile("other place", f"{path} does not cover the same area as the first band")
                wanted = list(indexes) if indexes is not None else [1]
                read = file.read(
                    wanted, out_shape=(len(wanted), size, size), resampling=Resampling[resampling], masked=True
                )
        except rasterio.errors.RasterioError as error:
            raise BadTile("unreadable file", f"{path} cannot be read ({' '.join(str(error).split())})") from error
        values = read.astype(np.float64).filled(np.nan)
        if nodata is not None:
            values = np.where(read.data == nodata, np.nan, values)
        layers.append(values)
    assert first is not None  # `files` is not empty
    return Bands(np.moveaxis(np.concatenate(layers), 0, -1), _middle(*first[:2]))


def _middle(crs: Untyped, bounds: Untyped) -> np.ndarray:
    """Longitude and latitude of a square's center; NaN without a coordinate system."""
    if not crs:
        return np.full(2, np.nan, np.float32)
    return center(crs, (bounds.left + bounds.right) / 2, (bounds.bottom + bounds.top) / 2)


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

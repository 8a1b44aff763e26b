"""Reading a raster onto the pixel grid of another one, in windows.

GDAL's warper (rasterio.warp.reproject) computes the pixels. Values are resampled after no-data pixels are known, and
backscatter in dB as linear power, since the mean of decibels is not the mean of power.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from data.raster.file import Grid, RasterFile, same_place

_MARGIN = 4  # source pixels around a window, enough for cubic kernels
_EDGE_POINTS = 9  # points on each side of a window that are transformed to the source, since its sides may curve
_FINER = 1.5  # a source whose pixels are smaller by this factor is averaged
RESAMPLINGS = ("nearest", "bilinear", "cubic")


def is_same(a: Grid, b: Grid) -> bool:
    """Whether pixels of equal row and column lie at the same place, to a tenth of a pixel."""
    return same_place(a, b) and (a.height, a.width) == (b.height, b.width)


def pixel_size_m(grid: Grid) -> float:
    """Side of a pixel in meters, of geographic coordinates at the grid's center."""
    a, b, _, d, e, _ = tuple(grid.transform)[:6]
    if not grid.crs.is_geographic:
        return math.sqrt(abs(a * e - b * d)) * float(grid.crs.linear_units_factor[1])
    latitude = (grid.transform * (grid.width / 2, grid.height / 2))[1]
    # A degree of latitude is 111.32 km on the WGS 84 sphere; one of longitude is shorter by the cosine.
    return 111_320.0 * math.sqrt(abs(a * e - b * d) * math.cos(math.radians(latitude)))


def overlap(source: Grid, target: Grid, points: int = 33) -> float:
    """The share of the target's area that lies in the source, from a lattice of points."""
    rows, columns = np.meshgrid(
        (np.arange(points) + 0.5) * target.height / points, (np.arange(points) + 0.5) * target.width / points
    )
    row, column = _to_source(source, target, rows.ravel(), columns.ravel())
    return float(((row >= 0) & (row <= source.height) & (column >= 0) & (column <= source.width)).mean())


def read(
    file: RasterFile,
    source: Grid,
    target: Grid,
    row: int,
    column: int,
    size: int,
    indexes: list[int],
    resampling: str,
    convert: Callable[[np.ndarray], np.ndarray],
    as_power: bool = False,
) -> np.ndarray:
    """A square window of the target grid as float64 [size, size, bands], NaN where the source has no data.

    Args:
      source: the file's grid.
      resampling: one of RESAMPLINGS; a source with finer pixels is averaged instead, unless it is "nearest".
      convert: from the file's numbers [h, w, bands] to the values that are resampled.
      as_power: resample the converted values, which are in dB, as linear power.
    """
    from rasterio.transform import Affine

    top, left, height, width = _source_window(source, target, row, column, size)
    if height <= 0 or width <= 0:
        return np.full((size, size, len(indexes)), np.nan)
    values = convert(file.read(top, left, height, width, indexes))
    window = Grid(source.crs, source.transform * Affine.translation(left, top), height, width)
    onto = Grid(target.crs, target.transform * Affine.translation(column, row), size, size)
    return resample(values, window, onto, resampling, as_power)


def resample(
    values: Float[np.ndarray, "height width bands"], source: Grid, target: Grid, resampling: str, as_power: bool = False
) -> Float[np.ndarray, "rows columns bands"]:
    """Values of one grid on another one; NaN is no data. Arguments as for `read`."""
    from rasterio.enums import Resampling
    from rasterio.warp import reproject

    values = np.moveaxis(values, -1, 0)
    if as_power:
        values = 10 ** (values / 10)
    out = np.full((len(values), target.height, target.width), np.nan)
    reproject(
        np.ascontiguousarray(values), out,
        src_transform=source.transform, src_crs=source.crs, src_nodata=np.nan,
        dst_transform=target.transform, dst_crs=target.crs, dst_nodata=np.nan,
        resampling=Resampling[kernel(source, target, resampling)],
    )  # fmt: skip
    if as_power:
        out = 10 * np.log10(out)
    return np.moveaxis(out, 0, -1)


def kernel(source: Grid, target: Grid, resampling: str) -> str:
    """The resampling that `read` uses: the average where the source's pixels are finer, unless it is "nearest"."""
    is_finer = pixel_size_m(target) > _FINER * pixel_size_m(source)
    return "average" if is_finer and resampling != "nearest" else resampling


def _source_window(source: Grid, target: Grid, row: int, column: int, size: int) -> tuple[int, int, int, int]:
    """First row and column, height and width of the source's pixels under a window; empty outside of the source."""
    along = np.linspace(0, size, _EDGE_POINTS)
    rows, columns = np.meshgrid(row + along, column + along)
    found = _to_source(source, target, rows.ravel(), columns.ravel())
    if not np.isfinite(found).all():
        return 0, 0, 0, 0
    margin = _MARGIN * max(1.0, pixel_size_m(target) / pixel_size_m(source))
    top, left = (max(0, math.floor(v.min() - margin)) for v in found)
    bottom = min(source.height, math.ceil(found[0].max() + margin))
    right = min(source.width, math.ceil(found[1].max() + margin))
    return top, left, bottom - top, right - left


def _to_source(source: Grid, target: Grid, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the source at those of the target; infinite where the coordinate system ends."""
    from rasterio.warp import transform

    x, y = target.transform * (columns, rows)
    if source.crs != target.crs:
        x, y = (np.array(v) for v in transform(target.crs, source.crs, list(x), list(y)))
    column, row = ~source.transform * (np.asarray(x), np.asarray(y))
    return row, column

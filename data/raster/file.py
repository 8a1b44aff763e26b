"""One raster file, read by window: stored numbers, with what the file declares about them applied.

No-data values, masks (internal, external, alpha), scale and offset tags: GDAL raster data model
(gdal.org/user/raster_data_model.html). rasterio reads everything but NPY.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fusionx_jax.errors import InputError
from fusionx_jax.types import Untyped

_LARGEST_LATITUDE = 91.0  # degrees; global rasters end half a pixel beyond the pole


class Grid(NamedTuple):
    """Where the pixels of a file lie: coordinate system, affine transform of (column, row), and size."""

    crs: Untyped  # rasterio.crs.CRS
    transform: Untyped  # affine.Affine
    height: int
    width: int


class RasterFile:
    """A raster open for reading; a context manager.

    Attributes:
      path: the file.
      height, width: size in pixels.
      count: bands, without an alpha band.
      dtype: type of the stored numbers.
      names: descriptions of the bands; None where the file has none.
      grid: where the pixels lie; None without a coordinate system.
      remarks: sentences on what the file declares and the reader applies or cannot apply.
    """

    def __init__(
        self,
        path: str,
        nodata: Sequence[float] = (),
        known_codes: Sequence[float] = (),
        expected_count: int | None = None,
    ):
        """Opens a file.

        Args:
          nodata: values of pixels without data; they replace the value that the file declares and `known_codes`.
          known_codes: numbers that mean no data in files of the sensor's product with unsigned integers.
          expected_count: bands, if known; tells the axes of an NPY array apart.

        Raises:
          InputError: the file cannot be opened, has several subdatasets, or holds complex numbers.
        """
        self.path = path
        self.remarks: list[str] = []
        self.names: tuple[str | None, ...] = ()
        self.grid: Grid | None = None
        self.transform: Untyped = None
        self.has_palette = False
        self._file: Untyped = None
        self._array: np.ndarray | None = None
        self._has_mask = False
        self._numbers: list[int] = []  # GDAL's numbers of the bands, from 1
        self._alpha: int | None = None
        self._scales = self._offsets = np.zeros(0)
        try:
            declared = self._map(expected_count) if path.lower().endswith(".npy") else self._open()
            if self.dtype.kind not in "uifb":
                words = "complex numbers (single-look complex data)"
                kind = words if self.dtype.kind == "c" else f"the type {self.dtype}"
                raise InputError(f"{path} holds {kind}; convert it to real numbers, such as backscatter in dB, first.")
        except InputError:
            self.close()
            raise
        self._codes = self._nodata_codes(nodata, known_codes, declared)

    def __enter__(self) -> "RasterFile":
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, row: int, column: int, height: int, width: int, indexes: Sequence[int] | None = None) -> np.ndarray:
        """A window as float64 [height, width, bands], scale and offset tags applied, NaN where there is no data.

        Args:
          indexes: bands to read, from 0; all by default.

        Raises:
          InputError: the file is truncated or damaged.
        """
        bands = list(range(self.count) if indexes is None else indexes)
        stored, missing = self.read_stored(row, column, height, width, bands)
        values = stored.astype(np.float64)
        if self._scales.size:
            values = values * self._scales[bands] + self._offsets[bands]
        values[missing | ~np.isfinite(values)] = np.nan
        return values

    def read_stored(
        self, row: int, column: int, height: int, width: int, indexes: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """A window in the file's own type, and which numbers are no data, both [height, width, bands].

        Raises:
          InputError: the file is truncated or damaged.
        """
        bands = list(indexes)
        hidden = None
        if self._array is not None:
            stored = np.array(self._array[row : row + height, column : column + width, bands])
        else:
            from rasterio.windows import Window

            window = Window(column, row, width, height)
            with self._read_errors(row, column):
                stored = np.moveaxis(self._file.read([self._numbers[b] for b in bands], window=window), 0, -1)
                if self._alpha is not None:
                    hidden = self._file.read(self._alpha, window=window) == 0
                elif self._has_mask:
                    hidden = self._file.read_masks(self._numbers[0], window=window) == 0
        missing = np.zeros(stored.shape, bool)
        if hidden is not None:
            missing |= hidden[..., None]
        codes = [self._codes[b] for b in bands]
        # Zero is also the value of a dark pixel in one band: it means no data where all bands are zero.
        joint_zero = all(0 in c for c in codes)
        if joint_zero:
            missing |= (stored == 0).all(-1, keepdims=True)
        for i, band_codes in enumerate(codes):
            for code in band_codes:
                if not (joint_zero and code == 0):
                    missing[..., i] |= np.isnan(stored[..., i]) if code != code else stored[..., i] == code
        return stored, missing

    def _map(self, expected_count: int | None) -> list[float | None]:
        """Maps an NPY file, which declares no no-data values."""
        self._array = _load_npy(self.path, expected_count)
        self.height, self.width, self.count = self._array.shape
        self.dtype = self._array.dtype
        return [None] * self.count

    def _open(self) -> list[float | None]:
        """Opens a file with rasterio; returns the no-data value that each band declares."""
        import rasterio
        from rasterio.enums import ColorInterp, MaskFlags

        try:
            with warnings.catch_warnings():  # files without georeference are told apart by their grid
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                f = self._file = rasterio.open(self.path)
        except rasterio.errors.RasterioIOError as error:
            raise InputError(
                f"{self.path} cannot be opened ({' '.join(str(error).split())}); it is truncated or not a raster."
            ) from error
        if f.count == 0:
            parts = ", ".join(name.rsplit(":", 1)[-1] for name in f.subdatasets[:4]) or "none"
            raise InputError(
                f"{self.path} has no bands of its own but {len(f.subdatasets)} subdatasets ({parts}); extract the one "
                "to use into a file (gdal_translate)."
            )
        alpha = [i for i, c in enumerate(f.colorinterp, 1) if c == ColorInterp.alpha and not f.descriptions[i - 1]]
        self._alpha = alpha[0] if alpha else None
        data = self._numbers = [i for i in range(1, f.count + 1) if i not in alpha]
        self.height, self.width, self.count = f.height, f.width, len(data)
        self.dtype = np.dtype(f.dtypes[0]) if not f.dtypes[0].startswith("complex") else np.dtype(complex)
        self.names = tuple(f.descriptions[i - 1] or None for i in data)
        self.transform = f.transform
        if f.crs and not (f.crs.is_geographic or f.crs.is_projected):
            self.remarks.append("the file's coordinate system is a local one, which says nothing of its place")
        elif f.crs:
            self.grid = Grid(f.crs, f.transform, f.height, f.width)
            self._check_grid(self.grid)
        self.has_palette = ColorInterp.palette in f.colorinterp
        flags = f.mask_flag_enums[0]
        self._has_mask = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
        if self._has_mask:
            self.remarks.append("the file's mask is applied")
        if self._alpha is not None:
            self.remarks.append("the alpha band is applied as a mask")
        scales, offsets = (np.array([values[i - 1] for i in data]) for values in (f.scales, f.offsets))
        if not (np.isfinite(scales).all() and np.isfinite(offsets).all() and scales.all()):
            raise InputError(
                f"{self.path} has the scale tag {scales[0]:g} and the offset tag {offsets[0]:g}, which leave no "
                "measurement; remove or correct them (gdal_edit.py -scale, -offset)."
            )
        if (scales != 1).any() or (offsets != 0).any():
            self._scales, self._offsets = scales, offsets
            one = "" if len(set(zip(scales, offsets))) == 1 else " of the first band"
            self.remarks.append(f"the tags' scale {scales[0]:g} and offset {offsets[0]:g}{one} are applied")
        return [f.nodatavals[i - 1] for i in data]

    def _check_grid(self, grid: Grid) -> None:
        """Refuses pixels without extent, and degrees of latitude that do not exist."""
        a, b, _, d, e, _ = tuple(grid.transform)[:6]
        corners = [grid.transform * (c, r) for c in (0, grid.width) for r in (0, grid.height)]
        if not np.isfinite([*corners]).all() or not a * e - b * d:
            raise InputError(
                f"{self.path} has pixels without extent ({a:g}, {b:g}, {d:g}, {e:g}); georeference it anew."
            )
        latitudes = [y for _, y in corners]
        if grid.crs.is_geographic and max(map(abs, latitudes)) > _LARGEST_LATITUDE:
            raise InputError(
                f"{self.path} is in degrees ({grid.crs.to_string()[:60]}), but lies at latitude {latitudes[0]:g}; its "
                "coordinate system or its transform is wrong: georeference it anew."
            )

    def _nodata_codes(
        self, given: Sequence[float], known: Sequence[float], declared: Sequence[float | None]
    ) -> list[list[float]]:
        """Values of each band that mean no data, as the band's type holds them."""
        out = []
        for value in declared:
            always = known if self.dtype.kind == "u" else ()
            codes = list(given) or [*([] if value is None else [value]), *always]
            out.append([c for c in map(self._as_stored, codes) if c is not None])
        return out

    def _as_stored(self, code: float) -> float | None:
        """A no-data value in the file's type; None, with a remark, if the type cannot hold it."""
        if self.dtype.kind == "f":
            with np.errstate(over="ignore"):
                return float(self.dtype.type(code))
        limits = np.iinfo(self.dtype) if self.dtype.kind != "b" else np.iinfo(np.uint8)
        if code == code and float(code).is_integer() and limits.min <= code <= limits.max:
            return code
        remark = f"the no-data value {code:g} does not occur, since {self.dtype} cannot hold it"
        if remark not in self.remarks:
            self.remarks.append(remark)
        return None

    @contextlib.contextmanager
    def _read_errors(self, row: int, column: int) -> Iterator[None]:
        import rasterio

        try:
            yield
        except rasterio.errors.RasterioIOError as error:
            reason = error.__cause__ or error
            raise InputError(
                f"{self.path} cannot be read at row {row}, column {column} ({' '.join(str(reason).split())}); it is "
                "truncated or damaged: copy it again."
            ) from error


def _load_npy(path: str, expected_count: int | None) -> np.ndarray:
    """Maps an NPY file as [height, width, bands]."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"There is no file {os.path.abspath(path)}.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as NPY ({error}); it is truncated or damaged.") from error
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or not array.size:
        raise InputError(f"{path} has the shape {array.shape}; expected [height, width, bands].")
    first, last = array.shape[0], array.shape[-1]
    # Without a count, bands are few and sides are long: a short first axis means [bands, height, width].
    bands_first = first < min(array.shape[1:])
    if expected_count in (first, last) and first != last:
        bands_first = first == expected_count
    return np.moveaxis(array, 0, -1) if bands_first else array


def same_place(a: Grid, b: Grid) -> bool:
    """Whether two grids have one coordinate system, however it is spelled, and pixels within a tenth of one another."""
    size = max(abs(a.transform.a), abs(a.transform.b))
    return bool(a.crs == b.crs and np.allclose(tuple(a.transform)[:6], tuple(b.transform)[:6], rtol=0, atol=size / 10))

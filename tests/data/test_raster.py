import numpy as np
import pytest

from data.raster import names, squares
from data.raster.file import RasterFile
from data.raster.grid import RESAMPLINGS
from data.source import BadTile
from fusionx_jax import modalities
from fusionx_jax.errors import InputError

rasterio = pytest.importorskip("rasterio")


def _tif(path, values, mask=None, scales=None, offsets=None, **options):
    bands, height, width = values.shape
    options = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(500000, 5000000, 10, 10), **options}
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=bands, dtype=values.dtype, **options
    ) as f:
        f.write(values)
        if scales:
            f.scales, f.offsets = scales, offsets
        if mask is not None:
            f.write_mask(mask)
    return str(path)


def _read(path, **options):
    with RasterFile(path, **options) as f:
        return f.read(0, 0, f.height, f.width), f.remarks


@pytest.mark.parametrize("internal", [True, False])
def test_masks_are_applied(tmp_path, internal):
    mask = np.full((8, 8), 255, np.uint8)
    mask[2, 3] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal):
        path = _tif(tmp_path / "a.tif", np.full((2, 8, 8), 7, np.uint16), mask=mask)
    values, remarks = _read(path)
    assert np.isnan(values[2, 3]).all()
    assert np.isnan(values).sum() == 2
    assert remarks == ["the file's mask is applied"]


def test_an_alpha_band_is_a_mask_and_no_band(tmp_path):
    stored = np.full((3, 8, 8), 7, np.uint16)
    stored[1] = 65535  # GDAL takes the first extra band for alpha
    stored[1, 1, 1] = 0
    values, _ = _read(_tif(tmp_path / "a.tif", stored, photometric="MINISBLACK", alpha="YES"))
    assert values.shape == (8, 8, 2)
    assert np.isnan(values[1, 1]).all()
    assert np.isnan(values).sum() == 2


@pytest.mark.parametrize(
    ("dtype", "declared", "code"),
    [
        ("float32", -1.7976931348623157e308, -np.inf),  # a float64 that float32 cannot hold
        ("float32", 0.1, np.float32(0.1)),
        ("float32", np.nan, np.nan),
        ("int16", -32768, -32768),
        ("float64", -9999, -9999),
    ],
)
def test_no_data_is_compared_in_the_type_of_the_file(tmp_path, dtype, declared, code):
    stored = np.ones((1, 4, 4), dtype)
    stored[0, 0, 0] = code
    path = str(tmp_path / "a.tif")
    values, _ = _read(_tif(path, stored), nodata=[declared])
    assert np.isnan(values[0, 0, 0])
    assert np.isfinite(values).sum() == 15


def test_a_no_data_value_that_cannot_occur_is_said(tmp_path):
    values, remarks = _read(_tif(tmp_path / "a.tif", np.zeros((1, 4, 4), np.uint8)), nodata=[-9999])
    assert np.isfinite(values).all()
    assert remarks == ["the no-data value -9999 does not occur, since uint8 cannot hold it"]


def test_known_codes_of_a_sensor_and_zero_in_all_bands(tmp_path):
    stored = np.full((3, 4, 4), 500, np.uint16)
    stored[:, 0, 0] = 0  # no data
    stored[1, 1, 1] = 0  # dark
    stored[1, 2, 2] = 65535  # saturated
    path = _tif(tmp_path / "a.tif", stored)
    values, _ = _read(path, known_codes=modalities.SENTINEL2_L2A.nodata_codes)
    assert np.isnan(values[0, 0]).all()
    assert values[1, 1, 1] == 0
    assert np.isnan(values[2, 2]).tolist() == [False, True, False]
    assert np.isfinite(_read(path)[0]).all()


def test_scale_and_offset_tags_are_applied_and_said(tmp_path):
    path = _tif(tmp_path / "a.tif", np.full((2, 4, 4), 300, np.int16), scales=(0.1, 0.2), offsets=(-50, 1), nodata=-1)
    values, remarks = _read(path)
    assert values[0, 0].tolist() == pytest.approx([-20, 61])
    assert remarks == ["the tags' scale 0.1 and offset -50 of the first band are applied"]


def test_what_holds_no_measurement_is_refused(tmp_path):
    path = _tif(tmp_path / "slc.tif", np.ones((1, 4, 4), np.complex64))
    with pytest.raises(InputError, match="complex numbers"):
        RasterFile(path)
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    with pytest.raises(InputError, match="text.npy holds the type <U1"):
        RasterFile(str(tmp_path / "text.npy"))
    (tmp_path / "page.tif").write_text("<html>")
    with pytest.raises(InputError, match="page.tif cannot be opened"):
        RasterFile(str(tmp_path / "page.tif"))


@pytest.mark.parametrize(
    ("shape", "count", "expected"),
    [
        ((2, 64, 64), None, (64, 64, 2)),
        ((10, 64, 2), 2, (10, 64, 2)),
        ((12, 10, 64), 12, (10, 64, 12)),
        ((64, 64), 1, (64, 64, 1)),
    ],
)
def test_axes_of_arrays_are_told_apart(tmp_path, shape, count, expected):
    with open(tmp_path / "a.NPY", "wb") as f:
        np.save(f, np.ones(shape))
    with RasterFile(str(tmp_path / "a.NPY"), expected_count=count) as f:
        assert (f.height, f.width, f.count) == expected


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("B8A", "B8A"), ("B08A", "B8A"), ("b8a", "B8A"), ("Band 8A", "B8A"), ("8A", "B8A"), ("B8", "B08"), ("b08", "B08"),
        ("B1", "B01"), ("Band 12", "B12"), ("B08 reflectance", "B08"), ("B8A/B08", None), ("NDVI", None), ("SCL", None),
        ("", None), ("B13", None),
    ],
)  # fmt: skip
def test_optical_bands_are_found_by_their_spellings(written, name):
    assert names.find(written, modalities.SENTINEL2_L1C.band_names) == name


@pytest.mark.parametrize(
    ("written", "name"),
    [("vv", "VV"), ("Sigma0_VV_db", "VV"), ("Gamma0 VH", "VH"), ("VV/VH", None), ("VVH", None), ("angle", None)],
)
def test_polarizations_are_found_by_their_spellings(written, name):
    assert names.find(written, modalities.SENTINEL1_GRD.band_names) == name


def _squares(path, sensor=modalities.SENTINEL1_GRD, **options):
    return squares.read_bands([str(path)], 8, "bilinear", sensor=sensor, indexes=(1, 2), **options)


def test_ready_cut_patches_apply_masks_and_tags_and_say_so(tmp_path):
    stored = np.full((2, 8, 8), -1200, np.int16)
    mask = np.full((8, 8), 255, np.uint8)
    mask[1, 2] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = _tif(tmp_path / "a.tif", stored, mask=mask, scales=(0.01, 0.01), offsets=(0, 0))
    bands = _squares(path)
    assert np.isnan(bands.values[1, 2]).all()
    assert np.isnan(bands.values).sum() == 2
    assert np.nanmin(bands.values) == np.nanmax(bands.values) == pytest.approx(-12)
    assert bands.remarks == ("the file's mask is applied", "the tags' scale 0.01 and offset 0 are applied")


def test_ready_cut_patches_of_other_bands_or_without_measurements_are_left_out(tmp_path):
    path = _tif(tmp_path / "a.tif", np.full((2, 8, 8), -12, np.float32))
    with rasterio.open(path, "r+") as f:
        f.descriptions = ("Sigma0_VH_db", "Sigma0_VV_db")
    with pytest.raises(BadTile, match="calls band 1 'Sigma0_VH_db', expected VV"):
        _squares(path)
    path = _tif(tmp_path / "slc.tif", np.ones((2, 8, 8), np.complex64))
    with pytest.raises(BadTile, match="complex numbers"):
        _squares(path)


@pytest.mark.parametrize("resampling", RESAMPLINGS)
def test_resized_bands_keep_constants_and_missing_pixels(resampling):
    values = np.full((6, 6, 2), 5.0)
    values[:3, :3, 1] = np.nan
    out = squares.resize(values, 12, resampling)
    assert out.shape == (12, 12, 2)
    assert np.allclose(out[..., 0], 5)
    assert np.isnan(out[:5, :5, 1]).all()
    assert np.allclose(out[9:, 9:, 1], 5)


def test_finer_decibels_are_averaged_as_power():
    values = np.tile([[0.0, -10.0], [-20.0, -30.0]], (4, 4))[..., None]
    out = squares.resize(values, 4, "bilinear", as_power=True)
    assert np.allclose(out, 10 * np.log10((1 + 0.1 + 0.01 + 0.001) / 4))


def test_tags_and_grids_that_mean_nothing_are_refused_or_said(tmp_path):
    values = np.ones((1, 4, 4), np.float32)
    with pytest.raises(InputError, match="has the scale tag nan"):
        _read(_tif(tmp_path / "a.tif", values, scales=(np.nan,), offsets=(0.0,)))
    with pytest.raises(InputError, match="is in degrees .* but lies at latitude"):
        _read(_tif(tmp_path / "b.tif", values, crs="EPSG:4326"))
    with RasterFile(_tif(tmp_path / "c.tif", values, crs='LOCAL_CS["here"]')) as f:
        assert f.grid is None
        assert f.remarks == ["the file's coordinate system is a local one, which says nothing of its place"]

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionx_jax import modalities as m


@given(st.floats(-79.9, 50.9))
def test_sar_wire_resolution_is_at_most_two_thousandths_of_a_decibel(value):
    wire = m.SENTINEL1_GRD.encode(np.array([value]))
    assert abs(m.SENTINEL1_GRD.decode(wire)[0] - value) <= 0.001 + 1e-5
    assert m.SENTINEL1_GRD.scale <= 0.002


@given(st.integers(-1000, 64534))
def test_every_integer_reflectance_survives_the_wire_exactly(value):
    wire = m.SENTINEL2_L2A.encode(np.array([value]))
    assert m.SENTINEL2_L2A.decode(wire)[0] == value


def test_missing_pixels_become_the_no_data_code_and_come_back_as_nan():
    wire = m.SENTINEL1_RTC.encode(np.array([np.nan, -np.inf, -10.0]))
    assert list(wire[:2]) == [m.NODATA, m.NODATA]
    assert np.isnan(m.SENTINEL1_RTC.decode(wire)[:2]).all()


def test_l2a_has_twelve_bands_without_cirrus_and_l1c_thirteen():
    assert len(m.SENTINEL2_L2A.bands) == 12
    assert "B10" not in m.SENTINEL2_L2A.band_names
    assert len(m.SENTINEL2_L1C.bands) == 13
    assert [b.resolution_m for b in m.SENTINEL2_L1C.bands].count(10) == 4


def test_subset_keeps_the_asked_order_and_names_a_missing_band():
    assert m.subset(m.SENTINEL2_L2A, ["B08", "B04"]).band_names == ("B08", "B04")
    with pytest.raises(KeyError, match="no band B10"):
        m.subset(m.SENTINEL2_L2A, ["B10"])


def test_compose_draws_bands_by_name_and_missing_pixels_grey():
    tile = np.zeros((2, 2, 12))
    tile[..., m.SENTINEL2_L2A.band_names.index("B04")] = 2600.0
    tile[0, 0] = np.nan
    rgb = m.compose(tile, m.SENTINEL2_L2A.band_names, m.SENTINEL2_L2A.composites)
    assert rgb[1, 1].tolist() == [1.0, 0.0, 0.0]
    assert rgb[0, 0].tolist() == [0.5, 0.5, 0.5]

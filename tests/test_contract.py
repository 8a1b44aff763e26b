import dataclasses
import json

import numpy as np
import pytest

from fusionx_jax import contract as c
from fusionx_jax import modalities as m


def test_contract_survives_json(simulated):
    contract = c.load(simulated)
    assert c.from_dict(json.loads(contract.to_json()), "x") == contract


def test_folder_without_contract_is_not_a_prepared_set(tmp_path):
    with pytest.raises(c.InputError, match="not a finished prepared set"):
        c.load(tmp_path)
    with pytest.raises(c.InputError, match="There is no folder"):
        c.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("license"),
        lambda d: d.update(extra=1),
        lambda d: d.update(format_version=99),
        lambda d: d["modalities"]["s1"]["mean"].append(0.0),
        lambda d: d["modalities"]["s1"].update(std=[0.0, 1.0]),
        lambda d: d.update(modalities=3),
    ],
)
def test_hand_edited_contract_is_refused_by_name(simulated, tmp_path, damage):
    raw = c.load(simulated).to_dict()
    damage(raw)
    (tmp_path / c.FILE_NAME).write_text(json.dumps(raw))
    with pytest.raises(c.InputError, match=r"contract\.json"):
        c.load(tmp_path)


def test_incompatible_unit_level_and_bands_name_both_sides(simulated):
    have = c.load(simulated)
    want = dict(have.modalities)

    def check(**changes):
        changed = {**want, "s1": dataclasses.replace(want["s1"], **changes)}
        c.check_compatible(have, changed, have_name="the data", want_name="the weights")

    check()
    with pytest.raises(c.InputError, match=r"the data is level 'RTC', but the weights expects 'GRD'"):
        check(level="GRD")
    with pytest.raises(c.InputError, match=r"unit 'dB'.*'linear'"):
        check(unit="linear")
    with pytest.raises(c.InputError, match=r"lacks the band HH"):
        check(bands=("VV", "HH"))
    with pytest.raises(c.InputError, match="nothing matches"):
        c.check_compatible(have, {"lidar": want["s1"]}, have_name="a", want_name="b")


def test_unit_check_tells_linear_power_amplitude_and_unit_reflectance_apart():
    rng = np.random.default_rng(0)
    decibel = rng.normal(-12, 4, 1000)
    c.check_unit(decibel, m.SENTINEL1_GRD, "file")
    with pytest.raises(c.InputError, match="linear power"):
        c.check_unit(10 ** (decibel / 10), m.SENTINEL1_GRD, "file")
    with pytest.raises(c.InputError, match="amplitude"):
        c.check_unit(rng.uniform(10, 900, 1000), m.SENTINEL1_GRD, "file")
    with pytest.raises(c.InputError, match=r"reflectance in 0\.\.1"):
        c.check_unit(rng.uniform(0, 0.6, 1000), m.SENTINEL2_L2A, "file")
    with pytest.raises(c.InputError, match="no-data values"):
        c.check_unit(np.append(decibel, -9999.0), m.SENTINEL1_GRD, "file")


def test_unit_check_accepts_real_samples(samples):
    rasterio = pytest.importorskip("rasterio")
    for path in sorted((samples / "terramesh_scenes").glob("*/S1RTC.tif")):
        with rasterio.open(path) as f:
            c.check_unit(f.read(), m.SENTINEL1_RTC, str(path))
    for path in sorted((samples / "terramesh_scenes").glob("*/S2L2A.tif")):
        with rasterio.open(path) as f:
            c.check_unit(f.read().astype(float), m.SENTINEL2_L2A, str(path))

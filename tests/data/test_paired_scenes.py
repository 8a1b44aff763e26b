import argparse
import shutil

import numpy as np
import pytest
import yaml

from data.paired_scenes.scenes import physical
from data.paired_scenes.spec import read_spec
from data.paired_scenes.splits import Tile, assign_splits
from fusionx_jax import contract
from fusionx_jax.errors import InputError
from fusionx_jax.prepared import store
from tests.data.command import run_prepare
from tests.helpers import ROOT, assert_clear

rasterio = pytest.importorskip("rasterio")

S2 = ["B02", "B03", "B04", "B08"]


def _tif(path, values, names=None, nodata=None, crs="EPSG:32633", origin=(500000, 5000000)):
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=bands, dtype=values.dtype, nodata=nodata, crs=crs,
        transform=rasterio.transform.from_origin(*origin, 10, 10),
    ) as f:  # fmt: skip
        f.write(values)
        if names:
            f.descriptions = names


@pytest.fixture
def scenes(tmp_path):
    """Four made-up scenes of 64 x 64: SAR in dB, four optical bands in another order than the sensor's, labels."""
    raw = tmp_path / "raw"
    rng = np.random.default_rng(0)
    for i in range(4):
        folder = raw / f"scene{i}"
        _tif(folder / "S1.tif", rng.normal(-12, 4, (2, 64, 64)).astype(np.float32), ("VV", "VH"))
        _tif(folder / "S2.tif", rng.integers(100, 4000, (4, 64, 64)).astype(np.uint16), ("B8", "B4", "B3", "B2"))
        labels = np.ones((1, 64, 64), np.uint8) + (rng.random((1, 64, 64)) < 0.3)
        _tif(folder / "L.tif", labels.astype(np.uint8))
    spec = {
        "name": "made_up",
        "modalities": {
            "s1": {"sensor": "sentinel1_grd", "file": "{scene}/S1.tif", "unit": "dB"},
            "s2": {
                "sensor": "sentinel2_l2a",
                "file": "{scene}/S2.tif",
                "unit": "reflectance_1e4",
                "bands": ["B8", "B4", "B3", "B2"],
            },
        },
        "labels": {"file": "{scene}/L.tif", "classes": {1: "land", 2: "water"}},
        "split": {"by": "scene"},
    }
    (raw / "scenes.yaml").write_text(yaml.safe_dump(spec))
    return raw


def _spec(scenes, **changes):
    spec = yaml.safe_load((scenes / "scenes.yaml").read_text())
    for path, value in changes.items():
        node = spec
        *parents, last = path.split("__")
        for p in parents:
            node = node[p]
        node[last] = value
    (scenes / "scenes.yaml").write_text(yaml.safe_dump(spec))


def _prepare(scenes, out, *options):
    return run_prepare("paired_scenes", f"--raw={scenes}", f"--out={out}", "--tile_size=16", *options)


def test_scenes_become_tiles_with_bands_by_name(scenes, tmp_path):
    done = _prepare(scenes, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    directory = done.stdout.splitlines()[-1]
    c = contract.load(directory)
    assert sum(c.splits.values()) == 4 * 16
    assert c.modalities["s2"].bands == tuple(S2)
    prepared = store.PreparedSet(directory)
    got = prepared.read("test", [0], ["s1", "s2", "label_pixel", "id", "group", "location"])
    scene, row, column = got["id"][0].replace("_r", " ").replace("_c", " ").split()
    assert got["group"][0] == scene
    window = np.s_[int(row) : int(row) + 16, int(column) : int(column) + 16]
    with rasterio.open(scenes / scene / "S2.tif") as f:
        expected = np.moveaxis(f.read(), 0, -1)[window][..., ::-1]
    assert (got["s2"][0].astype(int) - 1000 == expected).all()
    with rasterio.open(scenes / scene / "S1.tif") as f:
        decibel = np.moveaxis(f.read(), 0, -1)[window]
    assert np.abs(got["s1"][0] * 0.002 - 80 - decibel).max() <= 0.0011
    with rasterio.open(scenes / scene / "L.tif") as f:
        assert (got["label_pixel"][0] == f.read(1)[window] - 1).all()
    assert 14 < got["location"][0][0] < 16  # UTM 33 north, easting 500 km: 15 degrees east


@pytest.mark.parametrize(
    ("rule", "size"), [({"by": "block", "block": 2, "seed": 0}, 16), ({"by": "block", "block": 3, "seed": 5}, 8)]
)
def test_neighboring_tiles_are_never_in_different_splits(rule, size):
    tiles = [Tile(s, r, c) for s in ("a", "b") for r in range(0, 160, size) for c in range(0, 200 - size, size)]
    out = assign_splits(rule, tiles, size)
    split_of = {t: s for s, members in out.items() for t in members}
    assert {"train", "val", "test"} == set(split_of.values())
    for (scene, row, column), split in split_of.items():
        for dr in (-size, 0, size):
            for dc in (-size, 0, size):
                assert split_of.get(Tile(scene, row + dr, column + dc), split) == split


def test_whole_scenes_stay_in_one_split():
    tiles = [Tile(f"s{i}", r, 0) for i in range(10) for r in range(0, 64, 16)]
    out = assign_splits({"by": "scene", "seed": 1}, tiles, 16)
    scenes_of = [{t[0] for t in members} for members in out.values()]
    assert sum(len(s) for s in scenes_of) == 10
    assert len(set().union(*scenes_of)) == 10
    assert [len(s) for s in scenes_of] == [6, 2, 2]


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_png_npy_and_custom_modalities_are_read(scenes, tmp_path):
    rng = np.random.default_rng(1)
    for i in range(4):
        np.save(scenes / f"scene{i}" / "dem.npy", rng.uniform(0, 900, (64, 64)).astype(np.float32))
        rgb = rng.integers(1, 3000, (3, 64, 64)).astype(np.uint16)
        with rasterio.open(
            scenes / f"scene{i}" / "rgb.png", "w", driver="PNG", height=64, width=64, count=3, dtype="uint16"
        ) as f:
            f.write(rgb)
    _spec(
        scenes,
        modalities__dem={
            "sensor": "custom", "file": "{scene}/dem.npy", "unit": "m", "level": "DEM", "bands": ["height"], "scale": 0.05,
            "offset": -100,
        },
        modalities__s2={
            "sensor": "sentinel2_l2a", "file": "{scene}/rgb.png", "unit": "reflectance_1e4", "bands": ["B04", "B03", "B02"],
        },
    )  # fmt: skip
    done = _prepare(scenes, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    c = contract.load(done.stdout.splitlines()[-1])
    assert set(c.modalities) == {"s1", "s2", "dem"}
    assert c.modalities["dem"].unit == "m"
    assert 400 < c.modalities["dem"].mean[0] < 500


def test_linear_power_is_converted_when_declared(scenes, tmp_path):
    for i in range(4):
        path = scenes / f"scene{i}" / "S1.tif"
        with rasterio.open(path) as f:
            decibel = f.read()
        _tif(path, (10 ** (decibel / 10)).astype(np.float32), ("VV", "VH"))
    assert_clear(_prepare(scenes, tmp_path / "a"), 2, "linear power", "S1.tif")
    _spec(scenes, modalities__s1__unit="linear")
    done = _prepare(scenes, tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert -13 < contract.load(done.stdout.splitlines()[-1]).modalities["s1"].mean[0] < -11


def _truncate(scenes):
    path = scenes / "scene1" / "S2.tif"
    path.write_bytes(path.read_bytes()[:9000])


def _nan(scenes):
    values = np.full((2, 64, 64), -10, np.float32)
    values[0, 3, 3] = np.nan
    _tif(scenes / "scene2" / "S1.tif", values, ("VV", "VH"))


def _resize(scenes):
    _tif(scenes / "scene2" / "S1.tif", np.full((2, 48, 64), -10, np.float32), ("VV", "VH"))


def _shift(scenes):
    _tif(scenes / "scene2" / "S1.tif", np.full((2, 64, 64), -10, np.float32), ("VV", "VH"), origin=(600000, 5000000))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda s: (s / "scene3" / "S1.tif").unlink(), ("lack a file", "scene3/S1.tif")),
        (_truncate, ("scene1/S2.tif", "truncated")),
        (_nan, ("NaN pixels", "scene2/S1.tif", "nodata: nan")),
        (_resize, ("differ in size", "48 x 64")),
        (_shift, ("different grids",)),
        (lambda s: _tif(s / "scene0" / "S2.tif", np.ones((3, 64, 64), np.uint16)), ("has 3 band(s), but the spec lists 4",)),
        (lambda s: _spec(s, modalities__s2__bands=["B2", "B3", "B4", "B8"]), ("describes its bands as B08, B04, B03, B02",)),
        (lambda s: _spec(s, modalities__s2__bands=["B8", "B4", "B3", "B99"]), ("no band B99",)),
        (lambda s: _spec(s, modalities__s1__unit="amplitude"), ("unit is 'amplitude'", "dB, linear")),
        (lambda s: _spec(s, modalities__s1__sensor="radarsat"), ("sensor is 'radarsat'",)),
        (lambda s: _spec(s, modalities__s1__file="S1.tif"), ("must contain {scene}",)),
        (lambda s: _spec(s, split={"by": "luck"}), ("by 'luck'",)),
        (lambda s: _spec(s, split={"by": "block", "block": 9, "fractions": {"train": 1.0}}), ("is empty: there are",)),
        (lambda s: _spec(s, split={"train": ["scene0"], "test": ["scene9"]}), ("scene9",)),
        (lambda s: _spec(s, color="blue"), ("unknown key 'color'",)),
        (lambda s: (s / "scenes.yaml").write_text("a: [1"), ("not valid YAML",)),
        (lambda s: (s / "scenes.yaml").unlink(), ("There is no file", "scenes.yaml")),
        (lambda s: [shutil.rmtree(s / f"scene{i}") for i in range(4)], ("No scene in",)),
    ],
)  # fmt: skip
def test_wrong_input_is_one_sentence_and_leaves_no_set(scenes, tmp_path, damage, words):
    damage(scenes)
    done = _prepare(scenes, tmp_path / "out")
    assert_clear(done, 2, *words)
    assert not list((tmp_path / "out").rglob("contract.json"))


def test_incomplete_scenes_can_be_left_out(scenes, tmp_path):
    (scenes / "scene3" / "S1.tif").unlink()
    done = _prepare(scenes, tmp_path / "out", "--skip_incomplete")
    assert done.returncode == 0, done.stderr
    assert "scene3" in done.stderr


def test_declared_no_data_becomes_missing_pixels(scenes, tmp_path):
    _nan(scenes)
    _spec(scenes, modalities__s1__nodata=float("nan"))
    done = _prepare(scenes, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    c = contract.load(done.stdout.splitlines()[-1])
    assert c.modalities["s1"].nodata_fraction == pytest.approx(1 / (64 * 16 * 16))


@pytest.mark.parametrize(
    ("name", "folder", "size", "count"),
    [("terramesh", "terramesh_scenes", 32, 245), ("sen1floods11", "sen1floods11", 64, 64)],
)
def test_real_samples_are_prepared(samples, tmp_path, name, folder, size, count):
    done = run_prepare(
        "paired_scenes", f"--raw={samples / folder}", f"--out={tmp_path}", f"--tile_size={size}",
        f"--spec={ROOT}/data/paired_scenes/{name}.yaml",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    c = contract.load(done.stdout.splitlines()[-1])
    left_out = int(c.split_origin.split(";")[1].split()[0])
    assert sum(c.splits.values()) + left_out == count
    assert min(c.splits.values()) > 0
    assert -25 < c.modalities["s1"].mean[1] < c.modalities["s1"].mean[0] < -3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels__classes": {"water": 1}}, "a raster value under `classes:` is 'water'"),
        ({"labels__classes": {1: "land", 2: "land"}}, "names must differ"),
        ({"labels": "labels.tif"}, "`labels:` needs `file:`"),
        ({"labels__file": "labels.tif"}, "`labels:` needs `file:` with {scene}"),
        ({"split": "block"}, "`split:` is 'block'"),
        ({"split": {"by": "block", "fractions": {"training": 1}}}, "`split:` is"),
        ({"split": {"by": "block", "block": "three"}}, "`split: block` is 'three'"),
        ({"modalities__s2__nodata": "none"}, "`nodata` (a number or nan) is 'none'"),
        ({"modalities__s2__add": "minus"}, "`add` is 'minus'"),
    ],
)
def test_an_invalid_spec_is_one_sentence(scenes, change, message):
    _spec(scenes, **change)
    with pytest.raises(InputError) as caught:
        read_spec(str(scenes / "scenes.yaml"))
    assert message in str(caught.value)


def test_another_spec_of_the_same_scenes_is_another_set(scenes, tmp_path):
    assert _prepare(scenes, tmp_path / "out").returncode == 0
    _spec(scenes, modalities__s2__add=-50)
    assert_clear(_prepare(scenes, tmp_path / "out"), 2, "already holds another set")


def test_a_pixel_without_data_in_one_band_is_without_data(scenes):
    spec = read_spec(str(scenes / "scenes.yaml")).rasters["s1"]
    raster = argparse.Namespace(path="x.tif", nodata=-9999.0)
    values = np.full((2, 2, 2), -12.0)
    values[0, 0, 1] = -9999
    out = physical(values, raster, spec)
    assert np.isnan(out[0, 0]).all()
    assert np.isfinite(out).sum() == 6

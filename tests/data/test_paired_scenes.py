import argparse
import shutil

import numpy as np
import pytest
import yaml

from data.paired_scenes import builder
from data.paired_scenes.files import find_scenes
from data.paired_scenes.footprints import Place, place_scenes
from data.paired_scenes.scenes import open_scene
from data.paired_scenes.spec import SplitSpec, read_spec
from data.paired_scenes.splits import Tile, assign_splits
from data.raster.file import Grid, RasterFile
from data.raster.grid import pixel_size_m
from fusionx_jax import contract
from fusionx_jax.errors import InputError
from fusionx_jax.prepared import store
from tests.data.command import run_prepare
from tests.helpers import ROOT, assert_clear

rasterio = pytest.importorskip("rasterio")

S2 = ["B02", "B03", "B04", "B08"]


def _tif(path, values, names=None, nodata=None, crs="EPSG:32633", origin=(500000, 5000000), size=10):
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=bands, dtype=values.dtype, nodata=nodata, crs=crs,
        transform=rasterio.transform.from_origin(*origin, size, size),
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
        folder, origin = raw / f"scene{i}", (500000 + 1000 * i, 5000000)
        _tif(folder / "S1.tif", rng.normal(-12, 4, (2, 64, 64)).astype(np.float32), ("VV", "VH"), origin=origin)
        optical = rng.integers(100, 4000, (4, 64, 64)).astype(np.uint16)
        _tif(folder / "S2.tif", optical, ("B8", "B4", "B3", "B2"), origin=origin)
        labels = np.ones((1, 64, 64), np.uint8) + (rng.random((1, 64, 64)) < 0.3)
        _tif(folder / "L.tif", labels.astype(np.uint8), origin=origin)
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
    ("rule", "size"), [(SplitSpec("block", block=2), 16), (SplitSpec("block", block=3, seed=5), 8)]
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


@pytest.mark.parametrize("aligned", [True, False])
def test_scenes_that_overlap_never_leak_between_blocks(aligned):
    """Three scenes of one place, each moved by half a tile: no tile of a split touches one of another."""
    places = {f"s{i}": Place("s0", 8 * i, 24 * i) if aligned else Place("s0", None, None) for i in range(3)}
    places |= {f"t{i}": Place(f"t{i}", 0, 0) for i in range(3)}
    tiles = [Tile(s, r, c) for s in places for r in range(0, 160, 16) for c in range(0, 160, 16)]
    out = assign_splits(SplitSpec("block", block=2), tiles, 16, places)
    ground = [
        (split, places[t.scene].group, (places[t.scene].row or 0) + t.row, (places[t.scene].column or 0) + t.column)
        for split, members in out.items()
        for t in members
    ]
    assert {split for split, *_ in ground} == {"train", "val", "test"}
    for i, (split, group, row, column) in enumerate(ground):
        for other_split, other_group, other_row, other_column in ground[i + 1 :]:
            if group == other_group and abs(row - other_row) <= 16 and abs(column - other_column) <= 16:
                assert split == other_split


def _grid(easting, northing=5000000, crs="EPSG:32633", side=100):
    return Grid(
        rasterio.crs.CRS.from_string(crs), rasterio.transform.from_origin(easting, northing, 10, 10), side, side
    )


def test_overlapping_footprints_are_found_across_zones_and_named_groups_joined():
    from rasterio.warp import transform

    (x,), (y,) = transform("EPSG:32633", "EPSG:32632", [500500], [4999500])
    scenes = {
        "a": _grid(500000), "b": _grid(500500), "zone": _grid(x, y, "EPSG:32632"), "far": _grid(520000),
        "beside": _grid(521000), "none": None,
    }  # fmt: skip
    places, remarks = place_scenes(scenes, {"town": ["far", "beside"]})
    assert {s: p.group for s, p in places.items()} == {
        "a": "a", "b": "a", "zone": "a", "far": "town", "beside": "town", "none": "none",
    }  # fmt: skip
    assert places["zone"].row is None
    assert (places["beside"].row, places["beside"].column) == (0, 100)
    assert remarks == ["the scenes a, b, zone overlap and stay in one split where they do"]
    _, remarks = place_scenes({s: _grid(0) for s in "abc"}, {})
    assert "same footprint" in remarks[0]
    places, _ = place_scenes({s: _grid(0) for s in "abc"}, {}, whole_scenes=False)
    assert set(places.values()) == {Place("a", 0, 0)}


def test_whole_scenes_stay_in_one_split():
    tiles = [Tile(f"s{i}", r, 0) for i in range(10) for r in range(0, 64, 16)]
    out = assign_splits(SplitSpec("scene", seed=1), tiles, 16)
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
            "offset": -100, "grid_of": "s1",
        },
        modalities__s2={
            "sensor": "sentinel2_l2a", "file": "{scene}/rgb.png", "unit": "reflectance_1e4", "bands": ["B04", "B03", "B02"],
            "grid_of": "s1",
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
            decibel, origin = f.read(), (f.transform.c, f.transform.f)
        _tif(path, (10 ** (decibel / 10)).astype(np.float32), ("VV", "VH"), origin=origin)
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
    _tif(scenes / "scene2" / "S1.tif", values, ("VV", "VH"), origin=(502000, 5000000))


def _without_crs(scenes):
    _tif(scenes / "scene2" / "S1.tif", np.full((2, 64, 64), -10, np.float32), ("VV", "VH"), crs=None)


def _shift(scenes):
    _tif(scenes / "scene2" / "S1.tif", np.full((2, 64, 64), -10, np.float32), ("VV", "VH"), origin=(600000, 5000000))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda s: (s / "scene3" / "S1.tif").unlink(), ("lack a file", "scene3/S1.tif")),
        (_truncate, ("scene1/S2.tif", "truncated")),
        (_shift, ("scene2/S2.tif covers 0 % of the grid of scene scene2",)),
        (_without_crs, ("scene2/S1.tif has no coordinate system", "grid_of")),
        (lambda s: _tif(s / "scene0" / "S2.tif", np.ones((3, 64, 64), np.uint16)), ("has 3 bands, but the spec lists 4",)),
        (lambda s: _spec(s, modalities__s2__bands=["B2", "B3", "B4", "B8"]), ("describes its bands as B8, B4, B3, B2",)),
        (lambda s: _spec(s, modalities__s2__bands=["B8", "B4", "B3", "B99"]), ("`modalities.s2.bands` names B99",)),
        (lambda s: _spec(s, modalities__s1__unit="amplitude"), ("line 10", "`modalities.s1.unit` is 'amplitude'", "dB, linear")),
        (lambda s: _spec(s, modalities__s1__sensor="radarsat"), ("`modalities.s1.sensor` is 'radarsat'",)),
        (lambda s: _spec(s, modalities__s1__file="S1.tif"), ("must contain {scene}",)),
        (lambda s: _spec(s, split={"by": "luck"}), ("`split.by` is 'luck'",)),
        (lambda s: _spec(s, split={"by": "block", "block": 9, "fractions": {"train": 1.0}}), ("is empty: there are",)),
        (lambda s: _spec(s, split={"train": ["scene0"], "test": ["scene9"]}), ("scene9",)),
        (lambda s: _spec(s, color="blue"), ("unknown key 'color'",)),
        (lambda s: (s / "scenes.yaml").write_text("a: [1"), ("not valid YAML",)),
        (lambda s: (s / "scenes.yaml").unlink(), ("There is no file", "scenes.yaml")),
        (lambda s: [shutil.rmtree(s / f"scene{i}") for i in range(4)], ("No file in", "matches {scene}/S1.tif")),
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


def test_nan_is_a_missing_pixel(scenes, tmp_path):
    _nan(scenes)
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
        ({"labels__classes": {"water": 1}}, "is a class of the raster value 'water'"),
        ({"labels__change": True}, "`labels.change` needs `dates:`"),
        ({"labels__cover": 2}, "`labels.cover` is 2; it is a share"),
        ({"dates": ["a"]}, "`dates` is a; it must list two or more different texts"),
        ({"dates": ["a", "b"]}, "is given, but no pattern has {date}"),
        ({"modalities__s1__file": "{scene}/S{date}.tif"}, "lacks `dates:`"),
        ({"groups": "north"}, "`groups` is 'north'; it must list scenes by group, or be a pattern"),
        ({"labels": "labels.tif"}, "`labels` is a text; it must be a mapping"),
        ({"labels__file": "labels.tif"}, "`labels.file` is 'labels.tif'; it must contain {scene}"),
        ({"split": "block"}, "`split` is a text"),
        ({"split": {"by": "block", "fractions": {"training": 1}}}, "`split.fractions` has the unknown key 'training'"),
        ({"split": {"by": "block", "block": "three"}}, "`split.block` is 'three'"),
        ({"modalities__s2__nodata": "none"}, "`modalities.s2.nodata` is 'none'"),
        ({"modalities__s2__add": "minus"}, "`modalities.s2.add` is 'minus'"),
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


def test_a_known_point_lands_on_its_pixel_from_another_grid(tmp_path):
    """S1 in geographic coordinates at a third of the pixel size, S2 in UTM: a bright target at known coordinates."""
    from rasterio.warp import transform, transform_bounds

    raw = tmp_path / "raw"
    target = (500000 + 321.0, 5000000 - 187.0)  # easting, northing; column 32.1, row 18.7
    for i in range(3):
        _tif(raw / f"s{i}_S2.tif", np.full((2, 64, 64), 1000, np.uint16), ("B03", "B02"))
        west, south, east, north = transform_bounds("EPSG:32633", "EPSG:4326", 499900, 4999260, 500740, 5000100)
        step = (north - south) / 252  # about 3.3 m
        columns = round((east - west) / step)
        decibel = np.full((2, 252, columns), -20.0, np.float32)
        (x,), (y,) = transform("EPSG:32633", "EPSG:4326", [target[0]], [target[1]])
        row, column = int((north - y) / step), int((x - west) / step)
        decibel[:, row - 1 : row + 2, column - 1 : column + 2] = 0.0
        with rasterio.open(
            raw / f"s{i}_S1.tif", "w", driver="GTiff", height=252, width=columns, count=2, dtype="float32",
            crs="EPSG:4326", transform=rasterio.transform.from_origin(west, north, step, step),
        ) as f:  # fmt: skip
            f.write(decibel)
            f.descriptions = ("Sigma0_VV_db", "vh")
    (raw / "scenes.yaml").write_text(
        """grid: s2
modalities:
  s1: {sensor: sentinel1_grd, file: "{scene}_S1.tif", unit: dB}
  s2: {sensor: sentinel2_l2a, file: "{scene}_S2.tif", unit: reflectance_1e4, bands: [B03, B02]}
"""
    )
    spec = read_spec(str(raw / "scenes.yaml"))
    with open_scene(spec, find_scenes(spec, str(raw), False).scenes["s0"], "s0") as scene:
        assert scene.grid.crs.to_epsg() == 32633
        assert any("s1: resampled" in remark and "linear power" in remark for remark in scene.remarks)
        decibel = scene.window("s1", 8, 24, 16)[..., 0]
        assert (scene.window("s2", 8, 24, 16) == 1000).all()
    power = 10 ** (decibel / 10) - 0.01
    rows, columns = np.mgrid[8:24, 24:40] + 0.5
    assert (power * rows).sum() / power.sum() == pytest.approx(18.7, abs=0.3)
    assert (power * columns).sum() / power.sum() == pytest.approx(32.1, abs=0.3)
    # The mean of power: nine source pixels of 1 (about 3.3 m x 2.3 m), 0.01 elsewhere, in pixels of 10 m x 10 m.
    with RasterFile(str(raw / "s0_S1.tif")) as file:
        assert power.sum() == pytest.approx(9 * pixel_size_m(file.grid) ** 2 / 100, rel=0.02)


def test_bands_may_be_files_and_numbers_scaled(tmp_path):
    for i in range(3):
        for band, side in (("B02", 64), ("B11", 32)):
            _tif(
                tmp_path / f"s{i}" / f"x_{band}.TIF", np.full((1, side, side), 2000 + side, np.uint16), size=640 / side
            )
        _tif(tmp_path / f"s{i}" / "radar.tif", np.full((1, 64, 64), 0.5, np.float32))
    (tmp_path / "scenes.yaml").write_text(
        """modalities:
  s1: {sensor: sentinel1_grd, file: "{scene}/radar.tif", unit: dB, bands: [VV], scale: 30, add: -25}
  s2: {sensor: sentinel2_l1c, unit: reflectance_1e4, bands: {B11: "{scene}/*_B11.tif", B02: "{scene}/*_B02.tif"}}
"""
    )
    spec = read_spec(str(tmp_path / "scenes.yaml"))
    with open_scene(spec, find_scenes(spec, str(tmp_path), False).scenes["s0"], "s0") as scene:
        assert (scene.height, scene.width) == (64, 64)
        np.testing.assert_allclose(scene.window("s1", 16, 16, 16), -10)
        assert spec.rasters["s2"].sensor.band_names == ("B02", "B11")
        np.testing.assert_allclose(scene.window("s2", 16, 16, 16)[3, 3], [2064, 2032])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a\nname: b\n", "line 2: `name` is given twice, first in line 1"),
        ("labels: {file: '{scene}', classes: {1.5: a}}", "raster values are whole numbers"),
        ("modalities: {s1: {sensor: sentinel1_grd, file: '../{scene}', unit: dB}}", "inside the folder of the scenes"),
        ("split: {by: scene, block: 2}", "`split.block` applies to `by: block` alone"),
        ("split: {train: [a], test: [a]}", "names the scene a again"),
        ("a: &x 1\nb: *x", "aliases are not read"),
        ("", "is empty"),
    ],
)
def test_yaml_is_read_strictly(tmp_path, text, words):
    if "modalities" not in text and text and "&" not in text:
        text += "\nmodalities: {s1: {sensor: sentinel1_grd, file: '{scene}', unit: dB}}"
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        read_spec(str(tmp_path / "s.yaml"))
    assert words in str(caught.value)


def test_yaml_scalars_keep_their_text_and_encodings_are_known(tmp_path):
    text = (
        "split: {train: [012, 1e5, 2020-01-01], test: [no]}\n"
        "modalities: {s1: {sensor: sentinel1_grd, file: '{scene}.tif', unit: dB, nodata: [nan, -9999]}}\n"
    )
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "s.yaml").write_bytes(text.replace("\n", "\r\n").encode(encoding))
        spec = read_spec(str(tmp_path / "s.yaml"))
        assert spec.split.scenes == {"train": ("012", "1e5", "2020-01-01"), "test": ("no",)}
        assert spec.rasters["s1"].nodata[1] == -9999
    (tmp_path / "s.yaml").write_bytes(b"name: a\nlicense: Th\xfcr\n")
    with pytest.raises(InputError, match="line 2: the byte 0xfc is not UTF-8"):
        read_spec(str(tmp_path / "s.yaml"))


def test_an_ambiguous_file_belongs_to_the_longer_pattern(tmp_path):
    for name in ("a.tif", "a_VV.TIF", "b.tif", "b_VV.tif"):
        (tmp_path / name).touch()
    (tmp_path / "s.yaml").write_text(
        """modalities:
  s1: {sensor: sentinel1_grd, file: "{scene}_VV.tif", unit: dB, bands: [VV]}
  s2: {sensor: sentinel2_l2a, file: "{scene}.tif", unit: reflectance_1e4}
"""
    )
    found = find_scenes(read_spec(str(tmp_path / "s.yaml")), str(tmp_path), False).scenes
    assert set(found) == {"a", "b"}
    assert found["a"]["{scene}_VV.tif"].endswith("a_VV.TIF")
    (tmp_path / "a_vv.tif").touch()
    (tmp_path / "a_VV.tif").touch()
    with pytest.raises(InputError, match="Two files of scene a match"):
        find_scenes(read_spec(str(tmp_path / "s.yaml")), str(tmp_path), False)


def test_labels_may_be_pictures_whose_colors_are_named(scenes, tmp_path):
    rng = np.random.default_rng(1)
    numbers = rng.integers(0, 3, (64, 64))
    colors = np.array([[255, 0, 0], [0, 0, 255], [7, 8, 9]], np.uint8)  # the last one is no class
    for i in range(4):
        _tif(scenes / f"scene{i}" / "L.tif", np.moveaxis(colors[numbers], -1, 0), origin=(500000 + 1000 * i, 5000000))
    assert_clear(_prepare(scenes, tmp_path / "out"), 2, "scene0/L.tif has 3 bands", "name the classes by color")
    _spec(scenes, labels__classes={"#0000ff": "water", "#FF0000": "land"})
    done = _prepare(scenes, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (
        f"labels: {4 * (numbers == 2).sum()} pixels have values that name no class (most often #070809)" in done.stderr
    )
    prepared = store.PreparedSet(done.stdout.splitlines()[-1])
    got = prepared.read("train", [0], ["id", "label_pixel"])
    row, column = (int(part[1:]) for part in got["id"][0].split("_")[-2:])
    expected = np.where(numbers == 2, 255, 1 - numbers)[row : row + 16, column : column + 16]
    assert (got["label_pixel"][0] == expected).all()
    _spec(scenes, labels__classes={"#FF0000": "land", "2": "water"})
    assert_clear(_prepare(scenes, tmp_path / "out2"), 2, "is a class of the raster value '#FF0000'")


def test_files_are_told_apart_by_time_or_by_content(scenes, tmp_path):
    def version(*options):
        parser = argparse.ArgumentParser()
        builder.add_arguments(parser)
        args = parser.parse_args([f"--raw={scenes}", "--tile_size=16", *options])
        return builder.make_source(args).describe().source_version

    by_time, by_content = version(), version("--fingerprint=content")
    path = scenes / "scene1" / "S2.tif"
    path.touch()
    assert version() != by_time
    assert version("--fingerprint=content") == by_content
    with rasterio.open(path, "r+") as f:
        f.write(f.read() + 1)
    assert version("--fingerprint=content") != by_content


def test_every_example_spec_is_valid():
    for path in (ROOT / "data" / "paired_scenes").glob("*.yaml"):
        assert read_spec(str(path)).rasters


def test_a_product_folder_is_read_by_its_bands(tmp_path):
    """A made-up Sentinel-2 product folder (.SAFE) of 40 x 40 pixels of 10 m, with JPEG 2000 files at two resolutions."""
    spec = read_spec(str(ROOT / "data" / "paired_scenes" / "sentinel2_safe.yaml"))
    granule = "S2B_MSIL2A_20230101T100000_N0509_R022_T33UUP.SAFE/GRANULE/L2A_T33UUP_A030000/IMG_DATA"
    rng = np.random.default_rng(0)
    stored = {}
    for number, band in enumerate(spec.rasters["s2"].sensor.band_names):
        meters = 20 if band in ("B05", "B06", "B07", "B8A", "B11", "B12") else 10
        side = 400 // meters
        stored[band] = (1500 + 100 * number + rng.integers(0, 50, (1, side, side))).astype(np.uint16)
        path = tmp_path / "a" / granule / f"R{meters}m" / f"T33UUP_20230101T100000_{band}_{meters}m.jp2"
        path.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(
            path, "w", driver="JP2OpenJPEG", quality=100, reversible=True, height=side, width=side, count=1,
            dtype="uint16", crs="EPSG:32633", transform=rasterio.transform.from_origin(500000, 5000000, meters, meters),
        ) as f:  # fmt: skip
            f.write(stored[band])
    _tif(tmp_path / "a" / "s1.tif", np.full((2, 40, 40), 0.1, np.float32), ("VV", "VH"))
    found = find_scenes(spec, str(tmp_path), skip_incomplete=False).scenes
    with open_scene(spec, found["a"], "a") as scene:
        optical = scene.window("s2", 4, 4, 16)
        assert np.allclose(scene.window("s1", 4, 4, 16), -10)
    for number, band in enumerate(spec.rasters["s2"].sensor.band_names):
        if stored[band].shape == (1, 40, 40):
            assert np.array_equal(optical[..., number], stored[band][0, 4:20, 4:20] - 1000.0)
        else:  # between the least and the largest of the neighborhood
            assert 500 + 100 * number <= optical[..., number].min() <= optical[..., number].max() < 550 + 100 * number


def test_two_dates_become_acquisitions_and_labels_of_change(scenes, tmp_path):
    for i in range(4):
        folder = scenes / f"scene{i}"
        for name in ("S1", "S2"):
            shutil.copy(folder / f"{name}.tif", folder / f"{name}_after.tif")
            (folder / f"{name}.tif").rename(folder / f"{name}_before.tif")
        with rasterio.open(folder / "S2_after.tif", "r+") as f:
            values = f.read()
            values[:, :16, :16] += 1000
            f.write(values)
        with rasterio.open(folder / "L.tif", "r+") as f:
            changed = np.ones((64, 64), np.uint8)
            changed[:5, :5] = 2
            changed[20, 20] = 2  # below the cover that labels a tile
            f.write(changed, 1)
    (scenes / "scene3" / "L.tif").unlink()
    _spec(
        scenes, dates=["before", "after"], modalities__s1__file="{scene}/S1_{date}.tif",
        modalities__s2__file="{scene}/S2_{date}.tif", labels__classes={1: "no_change", 2: "change"}, labels__change=True,
        labels__cover=0.02, labels__optional=True,
    )  # fmt: skip
    done = _prepare(scenes, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    prepared = store.PreparedSet(done.stdout.splitlines()[-1])
    tasks = prepared.contract.tasks
    assert {n: (t.kind, t.classes, t.acquisitions) for n, t in tasks.items()} == {
        "change": ("multi", ("change",), 2),
        "change_pixel": ("pixel", ("no_change", "change"), 2),
    }
    labels = {}
    for split, size in prepared.contract.splits.items():
        got = prepared.read(split, np.arange(size), ["id", "s2", "s2@2", "s1", "s1@2", "label_change", "label_pixel"])
        labels |= dict(zip(got["id"].tolist(), got["label_change"][:, 0].tolist()))
        for name, before, after in zip(got["id"], got["s2"].astype(int), got["s2@2"].astype(int)):
            assert (after - before == (1000 if name.endswith("_r0_c0") else 0)).all()
        assert (got["s1"] == got["s1@2"]).all()
    assert {n for n, v in labels.items() if v == 1} == {f"scene{i}_r0_c0" for i in range(3)}
    assert {n for n, v in labels.items() if v == 255} == {n for n in labels if n.startswith("scene3")}


def test_several_raster_values_may_name_one_class(scenes, tmp_path):
    _spec(scenes, labels__classes={1: "ground", 2: "ground", 3: "water"})
    done = _prepare(scenes, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    prepared = store.PreparedSet(done.stdout.splitlines()[-1])
    assert prepared.contract.tasks["pixel"].classes == ("ground", "water")
    assert (prepared.read("train", [0], ["label_pixel"])["label_pixel"] == 0).all()


def test_groups_are_a_part_of_scene_names(tmp_path):
    (tmp_path / "s.yaml").write_text(
        "modalities: {s1: {sensor: sentinel1_grd, file: '{scene}.tif', unit: dB}}\ngroups: '*_T{group}_*'\n"
    )
    spec = read_spec(str(tmp_path / "s.yaml"))
    names = ["S2A_20170613T101031_R022_T33UUP_39_66", "S2B_2017_T33UUP_1_1", "S2A_2017_T34VER_41_60", "other"]
    assert spec.members(names) == {"33UUP": names[:2], "34VER": names[2:3]}


def test_real_oscd_is_read_by_its_spec(real):
    spec = read_spec(str(ROOT / "data" / "oscd" / "oscd.yaml"))
    scenes, incomplete = find_scenes(spec, str(real / "oscd"), skip_incomplete=True)
    assert (len(scenes), incomplete) == (22, ["beirut", "cupertino"])
    with open_scene(spec, scenes["hongkong"], "hongkong") as scene:
        assert (scene.height, scene.width) == (695, 540)
        labels = scene.labels(0, 0, 540)
        assert set(np.unique(labels)) == {0, 1}
        assert 0.001 < labels.mean() < 0.2
        for name in ("s1", "s1@2"):
            decibels = scene.window(name, 300, 300, 64)
            assert -25.001 < np.nanmin(decibels) < np.nanmax(decibels) < 5.001
        # Both dates show the same ground, though their grids differ: they fit best where they are.
        before = scene.window("s2", 200, 200, 256)[..., 2].ravel()
        fits = {
            (r, c): np.corrcoef(before, scene.window("s2@2", 200 + r, 200 + c, 256)[..., 2].ravel())[0, 1]
            for r in (-2, 0, 2)
            for c in (-2, 0, 2)
        }
        assert max(fits, key=fits.get) == (0, 0)


def test_real_bigearthnet_patches_are_read_by_their_spec(real, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    names = sorted(p.name for p in (real / "bigearthnet120").iterdir() if p.is_dir())[::8]
    for name in names:
        (few / name).symlink_to(real / "bigearthnet120" / name)
    spec = ROOT / "data" / "paired_scenes" / "bigearthnet_patches.yaml"
    done = _prepare(few, tmp_path / "out", f"--spec={spec}", "--tile_size=40")
    assert done.returncode == 0, done.stderr
    prepared = store.PreparedSet(done.stdout.splitlines()[-1])
    assert sum(prepared.contract.splits.values()) == 9 * len(names)
    assert len(prepared.contract.tasks["multi"].classes) == 19
    got = prepared.read("train", [0], ["id", "group"])
    assert f"_T{got['group'][0]}_" in got["id"][0]

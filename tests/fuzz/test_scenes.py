"""`data.prepare paired_scenes`: descriptions and rasters as people and programs write them."""

import argparse
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.paired_scenes import builder
from data.paired_scenes.spec import read_spec
from data.source import BadTile
from tests.fuzz.doors import handled, inputs, only_writes
from tests.helpers import ROOT

rasterio = pytest.importorskip("rasterio")

SPECS = [p.read_text() for p in sorted((ROOT / "data" / "paired_scenes").glob("*.yaml"))]
PIECES = (
    "no", "yes", "null", "~", "1e400", "0x1F", "012", ".nan", "-.inf", "{", "}", "[", "]", ":", "- ", "\t", "#", "&a", "*a", "!!python/object:os.system",
    "nodata: [0, a]", "scale: 0", "add: 1,5", "unit: dB", "unit: linear", "{scene}", "../", "*", "bands: []", "classes: {}", "split: {by: block}",
    "grid_of: s9", "groups: {a: [b, b]}", "optional: maybe", "gsd_m: -1", "name: A b", "\ufeff", "漢", "'", '"', "\n", "\r\n", "  ", "fractions: {train: 0}",
)  # fmt: skip


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "raw").mkdir()
    return folder


@st.composite
def descriptions(draw):
    """An example's text with pieces put in, and lines removed, doubled or moved."""
    text = draw(st.sampled_from(SPECS))
    for _ in range(draw(st.integers(1, 4))):
        lines = text.split("\n")
        at = draw(st.integers(0, len(lines) - 1))
        kind = draw(st.sampled_from(["put", "put", "replace", "remove", "double", "move", "cut"]))
        if kind == "put":
            column = draw(st.integers(0, len(lines[at])))
            lines[at] = lines[at][:column] + draw(st.sampled_from(PIECES)) + lines[at][column:]
        elif kind == "replace":
            key, colon, _ = lines[at].partition(":")
            lines[at] = f"{key}{colon} {draw(st.sampled_from(PIECES))}"
        elif kind == "remove":
            del lines[at]
        elif kind == "double":
            lines.insert(at, lines[at])
        elif kind == "move":
            lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
        else:
            lines = lines[: at + 1]
        text = "\n".join(lines) or " "
    return text


@inputs(300)
@given(text=descriptions(), encoding=st.sampled_from(["utf-8"] * 6 + ["utf-16", "latin-1"]))
def test_a_changed_description(sandbox, text, encoding):
    path = sandbox / "spec.yaml"
    path.write_bytes(text.encode(encoding, errors="replace"))
    handled(lambda: read_spec(str(path)))


FAULTS = ("count", "shape", "dtype", "range", "border", "crs", "origin", "pixel", "turn", "nodata", "names", "scales")


SOUND = {"s1": (2, "float32", -25, 0), "s2": (4, "uint16", 100, 4000), "labels": (1, "uint8", 1, 4)}
SHAPE = (96, 64)


@st.composite
def rasters(draw, kind, faulty):
    """Values, type, names, grid and tags of a file; those of a sound one, or with one or two of them changed."""
    count, dtype, low, high = SOUND[kind]
    height, width = SHAPE
    changed = draw(st.sets(st.sampled_from(FAULTS), min_size=1, max_size=2)) if faulty else set()

    def maybe(fault, choices, sound):
        return draw(st.sampled_from(choices)) if fault in changed else sound

    count = maybe("count", [1, 2, 3, 4, 13], count)
    height, width = maybe("shape", [(1, 1), (7, 64), (16, 16), (97, 63), (300, 20)], (height, width))
    dtype = maybe("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64", "complex64"], dtype)
    low, high = maybe(
        "range", [(-25, 0), (0, 1), (0, 255), (0, 65535), (-9999, -9998), (1e30, 1e31), (np.nan, np.nan)], (low, high)
    )
    rng = np.random.default_rng(0)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = (low + (high - low) * rng.random((count, height, width))).astype(dtype)
        fill = maybe("border", [0, 1, 255, 65535, -9999, np.inf], None)
        if fill is not None:
            values[:, : height // draw(st.integers(1, 8))] = np.array(fill).astype(dtype)
    return {
        "values": values,
        "crs": maybe("crs", [None, "EPSG:4326", "EPSG:3857", "EPSG:32701", "EPSG:3413", 'LOCAL_CS["here"]'], "EPSG:32633"),
        "origin": maybe("origin", [(500003, 5000004), (500300, 5000000), (900000, 0), (15, 45), (0, 0)], (500000, 5000000)),
        "pixel": maybe("pixel", [(20, -20), (10, 10), (-10, -10), (3, -3), (1e-4, -1e-4), (1e9, -1e9)], (10, -10)),
        "turn": maybe("turn", [1, 30, 90, 180], 0),
        "nodata": maybe("nodata", [0, 1, -9999, 255, np.nan], None),
        "names": maybe("names", [("VV", "VH"), ("VH", "VV"), ("B02", "B03", "B04", "B08"), ("b4", "b3", "b2", "b8"), ("red", "green")], None),
        "scales": maybe("scales", [0.0001, 0.0, -1.0, np.nan, 2.0], None),
    }  # fmt: skip


def write(path, raster, east):
    from rasterio.transform import Affine

    values = raster["values"]
    count, height, width = values.shape
    x, y = raster["origin"]
    transform = Affine.translation(x + east, y) * Affine.rotation(raster["turn"]) * Affine.scale(*raster["pixel"])
    nodata = raster["nodata"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if nodata is not None and not rasterio.dtypes.can_cast_dtype([nodata], values.dtype):
            nodata = None
        with rasterio.open(
            path, "w", driver="GTiff", count=count, height=height, width=width, dtype=values.dtype, crs=raster["crs"],
            transform=transform, nodata=nodata,
        ) as f:  # fmt: skip
            f.write(values)
            if raster["names"] and len(raster["names"]) == count:
                f.descriptions = raster["names"]
            if raster["scales"] is not None:
                f.scales = [raster["scales"]] * count


SCENES = """
modalities:
  s1: {{sensor: sentinel1_grd, file: "{{scene}}_s1.tif", unit: {unit}{s1}}}
  s2: {{sensor: sentinel2_l2a, file: "{{scene}}_s2.tif", unit: reflectance_1e4{s2}}}
{labels}
split: {split}
"""


@inputs(120)
@given(data=st.data())
def test_rasters_of_any_kind(sandbox, data):
    raw, out = sandbox / "raw", sandbox / "out"
    for path in raw.iterdir():
        path.unlink()
    files = [(scene, kind) for scene in "abcd" for kind in SOUND]
    faulty = data.draw(st.sets(st.sampled_from(files), max_size=2))
    missing = data.draw(st.sampled_from([None] * 8 + files))
    for scene, kind in files:
        if (scene, kind) != missing:
            raster = data.draw(rasters(kind, (scene, kind) in faulty))
            write(raw / f"{scene}_{kind}.tif", raster, east=10_000 * ord(scene))
    labels = data.draw(st.sampled_from(["", "labels: {file: '{scene}_labels.tif', classes: {1: a, 2: b}}", "labels: {file: '{scene}_labels.tif', classes: {'#ff0000': a}, grid_of: s2, optional: true}"]))  # fmt: skip
    (raw / "scenes.yaml").write_text(
        SCENES.format(
            unit=data.draw(st.sampled_from(["dB", "dB", "linear"])),
            s1=data.draw(
                st.sampled_from(
                    [", bands: [VV, VH]"] * 6 + ["", ", bands: [VH, VV], grid_of: s2", ", nodata: [0, -9999]"]
                )
            ),
            s2=data.draw(
                st.sampled_from(
                    [", bands: [B02, B03, B04, B08]"] * 6 + ["", ", bands: [B02, B03, B04, B08], add: -1000"]
                )
            ),
            labels=labels,
            split=data.draw(st.sampled_from(["{by: block, block: 1}", "{by: scene}"])),
        )
    )
    parser = argparse.ArgumentParser()
    builder.add_arguments(parser)
    args = parser.parse_args(
        [f"--raw={raw}", f"--tile_size={data.draw(st.sampled_from([8] * 3 + [16] * 3 + [7, 64]))}", "--skip_incomplete"]
    )

    def list_and_read():
        source = builder.make_source(args)
        description = source.describe()
        for split, count in source.splits().items():
            for index in range(min(2, count)):
                try:
                    example = source.example(split, index)
                except BadTile:
                    continue
                for name, modality in description.modalities.items():
                    assert example[name].shape == (args.tile_size, args.tile_size, len(modality.bands))

    with only_writes(sandbox, out):
        handled(list_and_read)


@inputs(60)
@given(content=st.binary(max_size=400), name=st.sampled_from(["a_s1.tif", "a_s2.tif", "a_s1.npy", "a_s1.png"]))
def test_files_that_are_no_rasters(sandbox, content, name):
    from data.raster.file import RasterFile

    head = {"tif": b"II*\x00", "npy": b"\x93NUMPY\x01\x00", "png": b"\x89PNG\r\n\x1a\n"}[name[-3:]]
    path = sandbox / name
    path.write_bytes(head + content)
    try:

        def read():
            with RasterFile(str(path)) as file:
                if file.height * file.width * file.count < 10**7:
                    file.read(0, 0, file.height, file.width)

        assert handled(read) or content
    finally:
        path.unlink()

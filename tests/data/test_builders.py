"""Every builder on made-up archives in the data set's true layout, and on the real samples where they are there."""

import argparse
import pickle
import sys
import tarfile
import types
import zipfile

import numpy as np
import pytest

from data import clc, igbp, prepare, registry, shard_writer, writer
from data.raster import squares
from data.simulated.builder import Simulated
from data.source import BadTile
from fusionx_jax import contract, files
from fusionx_jax.errors import InputError
from fusionx_jax.prepared import store
from tests.data import fakes
from tests.helpers import ROOT


def source(name, *options):
    builder = registry.DATA_SETS[name].builder()
    parser = argparse.ArgumentParser()
    builder.add_arguments(parser)
    return builder.make_source(parser.parse_args([str(o) for o in options]))


def every(made):
    """All examples of a source by id, checked against its own description."""
    out = {}
    for split, count in made.splits().items():
        for i in range(count):
            example = made.example(split, i)
            shard_writer.encode_example(example, made.describe())
            out[example["id"]] = example | {"split": split}
    return out


V1 = [
    ("S2A_MSIL2A_20170617T113321_4_55", "S1A_IW_GRDH_1SDV_20170617T064724_29UPU_4_55", ["Pastures", "Sea and ocean"]),
    ("S2B_MSIL2A_20170924T93020_69_24", "S1B_IW_GRDH_1SDV_20170924T051100_35VPK_69_24", ["Burnt areas", "Peatbogs"]),
    ("S2A_MSIL2A_20171221T112501_56_35", "S1A_IW_GRDH_1SDV_20171221T064238_29SND_56_35", ["Airports"]),
    ("S2A_MSIL2A_20170613T101031_1_1", "S1A_IW_GRDH_1SDV_20170613T165043_33UUP_1_1", ["Salines", "Estuaries"]),
    ("S2A_MSIL2A_20170613T101031_1_2", "", ["Pastures"]),
    ("", "S1A_IW_GRDH_1SDV_20170613T165043_33UUP_61_39", ["Pastures"]),
]


def test_bigearthnet_v1_pairs_by_metadata_and_counts_what_is_missing(tmp_path):
    raw = fakes.bigearthnet_v1(tmp_path, V1)
    made = source("bigearthnet_v1", f"--raw={raw}", "--resampling=nearest")
    examples = every(made)
    # The third patch has no class of the 19; two stand alone.
    assert set(examples) == {V1[0][0], V1[1][0], V1[3][0]}
    assert sorted(e.kind for e in made.left_out()) == ["unpaired", "unpaired"]
    first = examples[V1[0][0]]
    assert [clc.CLASSES_19[k] for k in np.flatnonzero(first["label_multi"])] == ["Pastures", "Marine waters"]
    expected = fakes.optical(f"{V1[0][0]}_B08", 120)[0]
    assert (first["s2"][..., fakes.L2A.index("B08")] == expected).all()
    coarse = np.kron(fakes.optical(f"{V1[0][0]}_B09", 20)[0], np.ones((6, 6)))
    assert (first["s2"][..., fakes.L2A.index("B09")] == coarse).all()
    assert np.allclose(first["s1"][..., 1], fakes.radar(f"{V1[0][1]}_VH", 120)[0])
    assert first["location"] == pytest.approx([16.35, 47.84], abs=0.02)
    names = {e["group"]: e["split"] for e in examples.values()}
    assert len(names) == len({(e["group"], e["split"]) for e in examples.values()})  # a scene stands in one split


def test_bigearthnet_v1_takes_official_lists_of_one_or_two_columns(tmp_path):
    raw = fakes.bigearthnet_v1(tmp_path / "raw", V1)
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.csv").write_bytes(f"{V1[0][0]},{V1[0][1]}\r\n{V1[4][0]},S1_gone\r\nS2A_gone,S1_gone2\r\n".encode())
    (lists / "val.csv").write_bytes(f"{V1[1][0]},{V1[1][1]}\r\n".encode())
    (lists / "test.csv").write_bytes(f"{V1[3][0]},{V1[3][1]}\r\n".encode())
    made = source("bigearthnet_v1", f"--raw={raw}", f"--splits={lists}")
    assert {k: e["split"] for k, e in every(made).items()} == {V1[0][0]: "train", V1[1][0]: "val", V1[3][0]: "test"}
    assert made.describe().split_origin == "official lists"
    assert {(e.id, e.kind) for e in made.left_out()} == {(V1[4][0], "unpaired"), ("S2A_gone", "missing patch")}
    (lists / "test.csv").write_text(V1[0][0])
    with pytest.raises(InputError, match="is in both train and test"):
        source("bigearthnet_v1", f"--raw={raw}", f"--splits={lists}")
    (lists / "val.csv").unlink()
    with pytest.raises(InputError, match="has no val.csv or"):
        source("bigearthnet_v1", f"--raw={raw}", f"--splits={lists}")


def test_bigearthnet_v1_leaves_out_listed_snow_and_takes_43_classes(tmp_path):
    raw = fakes.bigearthnet_v1(tmp_path / "raw", V1)
    (tmp_path / "patches_with_seasonal_snow.csv").write_bytes(f"{V1[0][0]}\r\n".encode())
    made = source("bigearthnet_v1", f"--raw={raw}", "--classes=43", f"--exclude={tmp_path}")
    examples = every(made)
    assert set(examples) == {V1[1][0], V1[2][0], V1[3][0]}
    assert examples[V1[2][0]]["label_multi"][clc.CLASSES_43.index("Airports")] == 1


def test_the_19_classes_are_those_of_the_paper():
    assert len(clc.LEVEL_3) == len(clc.CLASSES_43) == 43
    assert len(clc.CLASSES_19) == 19
    assert [n for n, k in clc.LEVEL_3.values() if k is None] == [
        "Road and rail networks and associated land", "Port areas", "Airports", "Mineral extraction sites", "Dump sites",
        "Construction sites", "Green urban areas", "Sport and leisure facilities", "Bare rock", "Burnt areas",
        "Intertidal flats",
    ]  # fmt: skip
    merged = {k: [n for n, m in clc.LEVEL_3.values() if m == k] for k in range(19)}
    assert merged[3] == [
        "Vineyards", "Fruit trees and berry plantations", "Olive groves", "Annual crops associated with permanent crops",
    ]  # fmt: skip
    assert merged[11] == ["Natural grassland", "Sparsely vegetated areas"]
    assert merged[18] == ["Coastal lagoons", "Estuaries", "Sea and ocean"]
    assert all(merged.values())
    # Classes made of one name carry that name, but for one spelling.
    single = {clc.CLASSES_19[k]: v[0] for k, v in merged.items() if len(v) == 1}
    assert {a: b for a, b in single.items() if a != b} == {
        "Transitional woodland, shrub": "Transitional woodland/shrub"
    }


def _v2_rows():
    scene = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
    radar = "S1A_IW_GRDH_1SDV_20170613T165043_33UUP"
    splits = ("train", "train", "validation", "test")
    return [
        {
            "patch_id": f"{scene}_0{i}_05",
            "s1_name": f"{radar}_{i}_5",
            "labels": ["Arable land", "Mixed forest"],
            "split": split,
            "codes": [211, 313, 999, 332],
        }
        for i, split in enumerate(splits)
    ]


def test_bigearthnet_v2_takes_splits_labels_and_maps_from_the_archive(tmp_path):
    rows = _v2_rows()
    made = source("bigearthnet_v2", f"--raw={fakes.bigearthnet_v2(tmp_path, rows)}")
    examples = every(made)
    assert made.splits() == {"train": 2, "val": 1, "test": 1}
    one = examples[rows[2]["patch_id"]]
    assert one["split"] == "val"
    assert [clc.CLASSES_19[k] for k in np.flatnonzero(one["label_multi"])] == ["Arable land", "Mixed forest"]
    assert one["label_pixel"][0, :4].tolist() == [2, 10, 255, 255]
    assert np.allclose(one["s1"][..., 0], fakes.radar(f"{rows[2]['s1_name']}_VV", 120)[0])


def test_bigearthnet_v2_reads_the_same_from_its_database(tmp_path):
    raw = fakes.bigearthnet_v2(tmp_path / "raw", _v2_rows())
    database = fakes.bigearthnet_v2_database(tmp_path / "lmdb", raw)
    metadata = f"--metadata={raw / 'metadata.parquet'}"
    folders = every(source("bigearthnet_v2", f"--raw={raw}"))
    made = source("bigearthnet_v2", f"--raw={database}", metadata)
    stored = every(pickle.loads(pickle.dumps(made)))  # as a worker process gets it
    assert stored.keys() == folders.keys()
    for name, example in folders.items():
        for feature in ("s1", "s2", "label_pixel", "label_multi"):
            assert np.allclose(stored[name][feature], example[feature]), feature
    whole = (database / "data.mdb").read_bytes()
    for size in (5000, len(whole) // 3):
        half = tmp_path / f"half{size}"
        half.mkdir()
        (half / "data.mdb").write_bytes(whole[:size])
        with pytest.raises(InputError, match="cannot be read as LMDB"):
            source("bigearthnet_v2", f"--raw={half}", metadata)


def test_bigearthnet_v2_counts_missing_patches_and_names_wrong_metadata(tmp_path):
    rows = _v2_rows()
    raw = fakes.bigearthnet_v2(tmp_path / "raw", rows)
    absent = [*rows, {**rows[0], "patch_id": rows[0]["patch_id"][:-5] + "77_77"}]
    metadata = fakes.bigearthnet_v2(tmp_path / "other", absent) / "metadata.parquet"
    made = source("bigearthnet_v2", f"--raw={raw}", f"--metadata={metadata}")
    assert [e.kind for e in made.left_out()] == ["unpaired"]
    with pytest.raises(InputError, match=r"There is no .*metadata.parquet"):
        source("bigearthnet_v2", f"--raw={raw}", f"--metadata={tmp_path}/none/metadata.parquet")
    (tmp_path / "broken.parquet").write_bytes(metadata.read_bytes()[:500])
    with pytest.raises(InputError, match="cannot be read as BigEarthNet v2's metadata.parquet"):
        source("bigearthnet_v2", f"--raw={raw}", f"--metadata={tmp_path}/broken.parquet")
    with pytest.raises(InputError, match="does not look like BigEarthNet v1"):
        source("bigearthnet_v1", f"--raw={raw}")


def test_sen12ms_makes_labels_of_land_cover_and_cuts_tiles(tmp_path):
    members = [("ROIs1158_spring", s, p) for s in (1, 63) for p in (30, 7)] + [("ROIs2017_winter", 5, 1)]
    raw = fakes.sen12ms(tmp_path, members, igbp=[14, 14, 17, 0])
    (raw / "ROIs1158_spring/s1_63/ROIs1158_spring_s1_63_p7.tif").unlink()
    made = source("sen12ms", f"--raw={raw}", "--tile_size=128")
    examples = every(made)
    assert len(examples) == 4 * 4
    assert [e.kind for e in made.left_out()] == ["unpaired"]
    one = examples["ROIs2017_winter_s2_5_p1_r128_c0"]
    whole = fakes.optical("ROIs2017_winter_s2_5_p1.tif", 256, 13)
    assert (one["s2"] == np.moveaxis(whole[:, 128:, :128], 0, -1)).all()
    assert one["label_pixel"][:4, 0].tolist() == [5, 5, 9, 255]  # croplands, water, nothing
    assert one["label_single"] == igbp.SIMPLIFIED.index("croplands")
    assert np.flatnonzero(one["label_multi"]).tolist() == [5, 9]


def test_sen12ms_takes_official_lists_and_draws_a_validation_split(tmp_path):
    members = [("ROIs1158_spring", s, 1) for s in range(1, 8)]
    raw = fakes.sen12ms(tmp_path / "raw", members, igbp=[1])
    lists = tmp_path / "lists"
    lists.mkdir()
    names = [f"ROIs1158_spring_s2_{s}_p1.tif" for s in range(1, 8)]
    (lists / "train_list.txt").write_text("\n".join(names[:5]))
    (lists / "test_list.txt").write_bytes("\r\n".join([*names[5:], "ROIs1158_spring_s2_9_p9.tif"]).encode())
    made = source("sen12ms", f"--raw={raw}", f"--splits={lists}", "--tile_size=64")
    splits = made.splits()
    assert splits["test"] == 2 * 16
    assert splits["train"] + splits["val"] == 5 * 16
    assert splits["val"] > 0
    assert [e.kind for e in made.left_out()] == ["missing patch"]


def test_dfc2020_reads_contest_and_public_layouts(tmp_path):
    contest = [("ROIs0000_test", "0", "0", n) for n in range(12)] + [("ROIs0000_validation", "validation", "0", 3)]
    made = source("dfc2020", f"--raw={fakes.dfc2020(tmp_path / 'contest', contest, [1, 10, 0])}")
    examples = every(made)
    assert {k for k, e in examples.items() if e["split"] == "test"} == {"ROIs0000_validation_0_p3"}
    one = examples["ROIs0000_validation_0_p3"]
    assert one["label_pixel"][:3, 0].tolist() == [0, 9, 255]
    assert np.allclose(one["s1"], np.moveaxis(fakes.radar("ROIs0000_validation_s1_0_p3.tif", 256, 2), 0, -1))
    cities = [("ROIs0000_autumn", c, c, n) for c in ("Mumbai", "CapeTown", "BandarAnzali") for n in (1, 2)]
    public = fakes.dfc2020(tmp_path / "public", cities, [4])
    made = source("dfc2020", f"--raw={public}")
    split_of = {e["group"]: e["split"] for e in every(made).values()}
    assert sorted(split_of.values()) == ["test", "train", "val"]
    # A repack that carries MODIS codes instead of DFC's is noticed.
    wrong = fakes.dfc2020(tmp_path / "wrong", cities, [17])
    with pytest.raises(BadTile, match="IGBP"):
        source("dfc2020", f"--raw={wrong}").example("train", 0)


def test_ssl4eo_pairs_seasons_by_date(tmp_path):
    seasons = {f"000020{i}": [("20200604", "20200607"), ("20200813", "20200903")] for i in range(3)}
    seasons["0000207"] = [("20200604", "20201224")]
    raw = fakes.ssl4eo(tmp_path, seasons)
    made = source("ssl4eo_s12", f"--raw={raw}", "--resampling=nearest")
    examples = every(made)
    assert sorted(examples) == ["0000200", "0000201", "0000202"]
    assert [e.kind for e in made.left_out()] == ["unpaired"]
    one = examples["0000201"]
    assert np.allclose(one["s1@2"][..., 0], fakes.radar("000020120200903VV", 264)[0])
    assert (one["s2@2"][..., 1] == fakes.optical("000020120200813B02", 264)[0]).all()
    assert (one["s2"][..., 1] == fakes.optical("000020120200604B02", 264)[0]).all()
    assert one["acquired"] == {"s1": ["2020-06-07", "2020-09-03"], "s2": ["2020-06-04", "2020-08-13"]}
    assert made.describe().tasks == {}
    assert made.describe().acquisitions == {"s1": 4, "s2": 4}
    next((raw / "s2a" / "0000201").glob("20200604*/B2.tif")).write_bytes(b"damaged")
    one = every(made)["0000201"]
    assert (one["s2"][..., 1] == fakes.optical("000020120200813B02", 264)[0]).all()
    assert "s2@2" not in one
    assert "a season is left out: unreadable file" in one["remarks"]
    for folder in (raw / "s1" / "0000201").iterdir():
        (folder / "VV.tif").unlink()
    with pytest.raises(BadTile):
        [made.example(s, i) for s, n in made.splits().items() for i in range(n)]


def test_so2sat_takes_filtered_intensities_in_decibels(tmp_path):
    raw = fakes.so2sat(tmp_path, {"training.h5": 20, "validation.h5": 4, "testing.h5": 5})
    made = source("so2sat_lcz42", f"--raw={raw}")
    assert made.splits() == {"train": 20, "val": 4, "test": 5}
    one = made.example("train", 18)
    assert one["label_single"] == 1
    values = fakes.rng("training.h5")
    sen1, sen2 = values.exponential(0.05, (20, 32, 32, 8)), values.uniform(0.005, 0.4, (20, 32, 32, 10))
    assert np.allclose(one["s1"], 10 * np.log10(sen1[18][..., [5, 4]]))  # VV before VH
    assert np.allclose(one["s2"], sen2[18] * 1e4)
    (tmp_path / "testing.h5").write_bytes((tmp_path / "testing.h5").read_bytes()[:1000])
    with pytest.raises(InputError, match="cannot be read as HDF5"):
        source("so2sat_lcz42", f"--raw={raw}")
    (tmp_path / "testing.h5").unlink()
    with pytest.raises(InputError, match=r"has no testing.h5"):
        source("so2sat_lcz42", f"--raw={raw}")


def test_sen1floods11_cuts_chips_and_keeps_them_in_one_split(tmp_path):
    chips = ["Ghana_103272", "Sri-Lanka_101973", "USA_1", "Bolivia_9"]
    raw = fakes.sen1floods11(tmp_path / "v1.1/data/flood_events/HandLabeled", chips).parents[3]
    lists = tmp_path / "lists"
    lists.mkdir()
    for name, chip in zip(("train", "valid", "test", "bolivia"), chips):
        (lists / f"flood_{name}_data.csv").write_text(f"{chip}_S1Hand.tif,{chip}_LabelHand.tif\n")
    made = source("sen1floods11", f"--raw={raw}", f"--splits={lists}", "--tile_size=256")
    with pytest.raises(BadTile, match="no labeled pixel"):
        made.example("train", 0)
    one = made.example("train", 3)
    assert one["id"] == "Ghana_103272_r256_c256"
    assert one["label_multi"].tolist() == [0, 1]
    assert made.example("test", 1)["id"].startswith("USA_1")
    bolivia = source("sen1floods11", f"--raw={raw}", f"--splits={lists}", "--bolivia")
    assert bolivia.example("test", 63)["id"] == "Bolivia_9_r448_c448"
    small = source("sen1floods11", f"--raw={raw}", f"--splits={lists}", "--tile_size=64", "--most_missing=0.1")
    with pytest.raises(BadTile):
        small.example("train", 0)  # no radar there


def test_eurosat_puts_b8a_in_its_place_and_reads_a_zip(tmp_path):
    names = [f"{c}_{n}" for c in ("Forest", "SeaLake") for n in range(1, 6)]
    raw = fakes.eurosat(tmp_path / "EuroSAT_MS", names, tmp_path / "EuroSAT-SAR")
    made = source("eurosat", f"--raw={raw}", f"--sar={tmp_path / 'EuroSAT-SAR'}")
    one = every(made)["SeaLake_3"]
    file = fakes.optical("SeaLake_3", 64, 13)
    assert (one["s2"][..., fakes.L1C.index("B8A")] == file[12]).all()
    assert (one["s2"][..., fakes.L1C.index("B09")] == file[8]).all()
    assert one["label_single"] == 9
    with zipfile.ZipFile(tmp_path / "EuroSAT_MS.zip", "w") as z:
        for path in raw.rglob("*.tif"):
            z.write(path, f"EuroSAT_MS/{path.relative_to(raw)}")
    zipped = source("eurosat", f"--raw={tmp_path / 'EuroSAT_MS.zip'}", f"--sar={tmp_path / 'EuroSAT-SAR'}")
    assert zipped.splits() == made.splits()
    assert (zipped.example("train", 0)["s2"] == made.example("train", 0)["s2"]).all()
    for start in ("", "./"):  # as `tar -cf x.tar EuroSAT_MS` and `tar -cf x.tar .` write it
        with tarfile.open(tmp_path / "EuroSAT_MS.tar", "w") as t:
            for path in sorted(raw.rglob("*.tif")):
                t.add(path, f"{start}EuroSAT_MS/{path.relative_to(raw)}")
        packed = source("eurosat", f"--raw={tmp_path / 'EuroSAT_MS.tar'}", "--optical_only")
        assert (packed.example("train", 0)["s2"] == made.example("train", 0)["s2"]).all()
    for split, members in zip(("train", "val", "test"), (names[:6], names[6:8], names[8:])):
        (tmp_path / f"eurosat-{split}.txt").write_text("\n".join(f"{n}.jpg" for n in members))
    listed = source("eurosat", f"--raw={raw}", "--optical_only", f"--splits={tmp_path}")
    assert listed.splits() == {"train": 6, "val": 2, "test": 2}
    with pytest.raises(InputError, match="--sar=DIR"):
        source("eurosat", f"--raw={raw}")


def test_unusable_patches_are_left_out_and_listed_up_to_a_share(tmp_path, capsys):
    names = [f"{c}_{n}" for c in ("Forest", "SeaLake", "River") for n in range(1, 11)]
    raw = fakes.eurosat(tmp_path / "raw", names)
    damaged = raw / "Forest/Forest_3.tif"
    damaged.write_bytes(damaged.read_bytes()[:400])
    fakes.tif(raw / "River/River_4.tif", np.zeros((13, 64, 64), np.uint16), nodata=0)
    options = ["eurosat", f"--raw={raw}", f"--out={tmp_path / 'out'}", "--optical_only", "--num_workers=1"]
    assert prepare.main([*options, "--max_failures=0.01"]) == 2
    printed = capsys.readouterr().err
    assert "of 30 tiles left out" in printed
    assert "--max_failures=0.01" in printed
    with pytest.raises(InputError, match="not a finished prepared set"):
        contract.load(tmp_path / "out/eurosat_optical/1.0.0")
    assert prepare.main([*options, "--max_failures=0.1"]) == 0
    directory = capsys.readouterr().out.splitlines()[-1]
    made = contract.load(directory)
    assert sum(made.splits.values()) == 28
    assert "2 of 30 tiles left out (" in " ".join(made.notes)
    listed = (tmp_path / "out/eurosat_optical/1.0.0/left_out.csv").read_text()
    assert "Forest_3.tif" in listed
    assert "River_4" in listed
    prepared = store.PreparedSet(directory)
    assert prepared.read("train", np.arange(prepared.size("train")), ["id"])["id"].size == made.splits["train"]


def test_repaired_files_get_another_chance(tmp_path, capsys):
    names = [f"{c}_{n}" for c in ("Forest", "SeaLake") for n in range(1, 6)]
    raw = fakes.eurosat(tmp_path / "raw", names)
    whole = (raw / "Forest/Forest_3.tif").read_bytes()
    (raw / "Forest/Forest_3.tif").write_bytes(whole[:400])
    options = ["eurosat", f"--raw={raw}", f"--out={tmp_path / 'out'}", "--optical_only", "--num_workers=1"]
    assert prepare.main(options) == 2
    (raw / "Forest/Forest_3.tif").write_bytes(whole)
    assert prepare.main(options) == 0
    directory = capsys.readouterr().out.splitlines()[-1]
    assert sum(contract.load(directory).splits.values()) == 10
    assert not (tmp_path / "out/eurosat_optical/1.0.0/left_out.csv").exists()


def test_other_lists_or_options_are_another_set(tmp_path, capsys):
    names = [f"{c}_{n}" for c in ("Forest", "SeaLake") for n in range(1, 6)]
    raw = fakes.eurosat(tmp_path / "raw", names)
    options = ["eurosat", f"--raw={raw}", f"--out={tmp_path / 'out'}", "--optical_only", "--num_workers=1"]
    assert prepare.main(options) == 0
    for split, members in zip(("train", "val", "test"), (names[:6], names[6:8], names[8:])):
        (tmp_path / f"eurosat-{split}.txt").write_text("\n".join(f"{n}.jpg" for n in members))
    capsys.readouterr()
    for other in (f"--splits={tmp_path}", "--most_missing=0.1", "--num_tiles=8"):
        assert prepare.main([*options, other]) == 2
        assert "already holds another set" in capsys.readouterr().err


def test_two_preparations_of_one_set_do_not_meet(tmp_path):
    directory = tmp_path / "simulated/1.0.0"
    (directory / "preparing").mkdir(parents=True)
    lock = files.lock(directory / "preparing/lock")
    with pytest.raises(InputError, match="Another process is preparing"):
        writer.prepare(Simulated(20, 16, 0), str(tmp_path), num_workers=1)
    lock.close()
    assert writer.prepare(Simulated(20, 16, 0), str(tmp_path), num_workers=1) == str(directory)


def test_a_data_set_from_outside_is_in_the_help_and_can_be_prepared(tmp_path, monkeypatch, capsys):
    builder = types.ModuleType("outside_builder")
    builder.add_arguments = lambda parser: parser.add_argument("--seed", type=int, default=0, help="which outside")
    builder.make_source = lambda args: Simulated(20, 16, args.seed)
    monkeypatch.setitem(sys.modules, "outside_builder", builder)
    monkeypatch.setitem(
        registry.DATA_SETS._entries, "outside", registry.DataSet("tiles from elsewhere", "outside_builder")
    )
    with pytest.raises(SystemExit):
        prepare.main(["--help"])
    assert "outside         tiles from elsewhere" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        prepare.main(["outside", "--help"])
    assert "which outside" in capsys.readouterr().out
    assert prepare.main(["outside", f"--out={tmp_path}", "--seed=4", "--num_workers=1"]) == 0
    directory = capsys.readouterr().out.splitlines()[-1]
    assert store.PreparedSet(directory).read("test", [0], ["id"])["id"].tolist() == ["sim-4-0000008"]


def test_every_folder_with_a_builder_is_registered():
    folders = {path.parent.name for path in (ROOT / "data").glob("*/builder.py")}
    assert folders == set(registry.DATA_SETS)


def test_the_offset_of_newer_products_is_noticed_and_can_be_taken_off(tmp_path, capsys):
    names = [f"{c}_{n}" for c in ("Forest", "SeaLake", "River") for n in range(1, 5)]
    raw = fakes.eurosat(tmp_path / "raw", names)
    for path in raw.rglob("*.tif"):
        fakes.tif(path, fakes.optical(path.stem, 64, 13) + np.uint16(1000))
    options = ["eurosat", f"--raw={raw}", "--optical_only", "--num_workers=1"]
    assert prepare.main([*options, f"--out={tmp_path / 'a'}"]) == 0
    assert "pass --s2_offset=-1000" in capsys.readouterr().err
    assert prepare.main([*options, f"--out={tmp_path / 'b'}", "--s2_offset=-1000"]) == 0
    done = capsys.readouterr()
    assert "warning" not in done.err
    stored = store.PreparedSet(done.out.splitlines()[-1])
    assert stored.contract.modalities["s2"].mean[3] == pytest.approx(2010, abs=60)


def test_an_archive_member_that_points_outside_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as z:
        z.writestr("Forest/../../Forest_1.tif", b"x")
    with pytest.raises(InputError, match="points outside the archive"):
        source("eurosat", f"--raw={tmp_path / 'evil.zip'}", "--optical_only")
    (tmp_path / "half.zip").write_bytes((tmp_path / "evil.zip").read_bytes()[:60])
    with pytest.raises(InputError, match="truncated or damaged"):
        source("eurosat", f"--raw={tmp_path / 'half.zip'}", "--optical_only")
    (tmp_path / "x.tar.gz").write_bytes(b"x")
    with pytest.raises(InputError, match="extract it"):
        source("eurosat", f"--raw={tmp_path / 'x.tar.gz'}", "--optical_only")
    with pytest.raises(InputError, match="does not look like EuroSAT"):
        source("eurosat", f"--raw={tmp_path}", "--optical_only")


def test_real_bigearthnet_v1_extract(samples, tmp_path):
    made = source("bigearthnet_v1", f"--raw={samples / 'bigearthnet_v1'}", "--max_failures=0.6")
    examples = every(made)
    assert len(examples) == 3
    assert [e.kind for e in made.left_out()] == ["unpaired"] * 3
    one = examples["S2A_MSIL2A_20170617T113321_4_55"]
    assert [clc.CLASSES_19[k] for k in np.flatnonzero(one["label_multi"])] == ["Pastures"]
    assert -45 < one["s1"].min() < one["s1"].max() < 30
    assert np.isfinite(one["s2"]).all()


def test_real_bigearthnet_v2_files_of_three_places(samples):
    """One patch of each kind is there, so no pair: the files are read one by one."""
    root = samples / "bigearthnet_v2"
    radar = sorted(str(p) for p in root.rglob("*_VV.tif"))[0]
    vv_vh = squares.read_bands([radar, radar.replace("_VV", "_VH")], 120, "bilinear")
    assert -45 < np.nanmin(vv_vh.values) < np.nanmax(vv_vh.values) < 30
    folder = next(p.parent for p in root.rglob("*_B02.tif"))
    files = [str(folder / f"{folder.name}_{b}.tif") for b in fakes.L2A]
    optical = squares.read_bands(files, 120, "nearest")
    assert optical.values.shape == (120, 120, 12)
    assert np.isfinite(optical.location).all()
    codes = squares.read_bands([str(next(root.rglob("*_reference_map.tif")))], 120, "nearest").values
    assert set(np.unique(codes[np.isfinite(codes)])) <= {*clc.LEVEL_3, 999}


def test_real_ssl4eo_extract(samples):
    for level in ("l2a", "l1c"):
        made = source("ssl4eo_s12", f"--raw={samples / 'ssl4eo_s12'}", f"--s2={level}")
        one = made.example("train", 0)
        assert set(one["acquired"]) == {"s1", "s2"}
        assert one["s2"].shape == (264, 264, {"l2a": 12, "l1c": 13}[level])
        assert np.isfinite(one["location"]).all()


def test_oscd_has_both_dates_of_a_city_in_one_record(tmp_path):
    raw = fakes.oscd(tmp_path, {"abudhabi": True, "mumbai": True, "rennes": True, "rio": False, "beirut": None})
    made = source("oscd", f"--raw={raw}", "--tile_size=16", "--s2_bands=B08,B02")
    d = made.describe()
    assert (d.acquisitions, d.has_dates) == ({"s1": 2, "s2": 2}, True)
    assert d.modalities["s2"].band_names == ("B02", "B08")
    assert made.splits() == {"train": 8, "val": 0, "test": 8}
    examples = every(made)
    one = examples["abudhabi_r16_c0"]
    assert one["acquired"] == {"s1": ["orbit 130", "orbit 130"], "s2": ["2016-01-20", "2018-03-28"]}
    for number, feature in ((1, "s2"), (2, "s2@2")):
        expected = fakes.optical(f"abudhabi{number}B08", 32)[0][16:, :16]
        assert (one[feature][..., 1] == expected).all()
        decibels = 30 * fakes.share(f"abudhabi{number}", 32)[16:, :16] - 25
        assert np.allclose(one[feature.replace("s2", "s1")][..., 0], decibels, atol=1e-4)
    assert one["label_change"].tolist() == [1]
    assert examples["abudhabi_r0_c16"]["label_change"].tolist() == [0]
    assert examples["rio_r0_c0"]["label_change"].tolist() == [255]
    blocks = source("oscd", f"--raw={raw}", "--tile_size=8", "--split=block", "--block=1")
    assert min(blocks.splits().values()) > 0
    with pytest.raises(InputError, match="--s2_bands names B99; the bands are B01, B02"):
        source("oscd", f"--raw={raw}", "--s2_bands=B99")


def test_real_sen1floods11_chip(samples):
    made = source("sen1floods11", f"--raw={samples / 'sen1floods11'}")
    assert made.splits() == {"train": 64}
    labels = []
    for i in range(64):
        try:
            labels.append(made.example("train", i)["label_multi"])
        except BadTile:
            continue
    assert len(labels) > 30
    assert np.sum(labels, axis=0).min() > 0  # both classes occur


def test_real_eurosat_patches(samples):
    made = source("eurosat", f"--raw={samples / 'eurosat_ms'}", "--optical_only")
    for example in every(made).values():
        bands = dict(zip(fakes.L1C, example["s2"].reshape(-1, 13).mean(0)))
        assert bands["B10"] < 60  # the cirrus band is dark
        assert abs(bands["B8A"] - bands["B08"]) < 0.35 * bands["B08"] + 60

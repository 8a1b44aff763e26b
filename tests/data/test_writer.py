import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data import shard_writer, writer
from data.simulated.builder import Simulated
from fusionx_jax import contract
from fusionx_jax.errors import InputError, RunError
from fusionx_jax.prepared import store
from tests.helpers import ROOT, assert_clear, run_cli, small_disk


def test_tfds_reads_the_set_and_its_splits(simulated):
    builder = tfds.builder_from_directory(simulated)
    assert {k: v.num_examples for k, v in builder.info.splits.items()} == {"train": 140, "val": 20, "test": 40}
    example = builder.as_data_source(split="val")[0]
    assert example["s2"].shape == (32, 32, 12)
    assert example["s2"].dtype == np.uint16


def test_stored_tiles_are_the_source_s_encoded_once(simulated):
    source = Simulated(200, 32, 0)
    stored = store.PreparedSet(simulated).read("test", [7], ["s1", "s2", "label_multi", "id"])
    example = source.example("test", 7)
    for name, m in source.describe().modalities.items():
        assert (stored[name][0] == m.encode(example[name])).all()
    assert (stored["label_multi"][0] == example["label_multi"]).all()
    assert stored["id"][0] == example["id"]


def test_statistics_and_counts_equal_numpy_over_the_training_split(simulated):
    c = contract.load(simulated)
    source = Simulated(200, 32, 0)
    examples = [source.example("train", i) for i in range(140)]
    for name, m in c.modalities.items():
        known = source.describe().modalities[name]
        pixels = np.concatenate([known.decode(known.encode(e[name])).reshape(-1, len(m.bands)) for e in examples])
        assert np.allclose(m.mean, pixels.astype(np.float64).mean(0), rtol=1e-5)
        assert np.allclose(m.std, pixels.astype(np.float64).std(0), rtol=1e-4)
        assert m.nodata_fraction == 0
    expected = np.sum([e["label_multi"] for e in examples], axis=0)
    assert c.tasks["multi"].counts["train"] == tuple(expected)


class Gappy(Simulated):
    """A source with missing pixels, some in one band only."""

    def example(self, split, index):
        out = super().example(split, index)
        out["s2"] = out["s2"].astype(float)
        out["s2"][:4, :, 5] = np.nan
        out["s1"][0, 0] = np.nan
        return out


def test_pixels_that_miss_one_band_count_in_no_statistic(tmp_path):
    directory = writer.prepare(Gappy(20, 16, 0), str(tmp_path), num_workers=1)
    c = contract.load(directory)
    assert c.modalities["s2"].nodata_fraction == pytest.approx(0.25)
    assert c.modalities["s1"].nodata_fraction == pytest.approx(1 / 256)
    stored = store.PreparedSet(directory).read("train", [0], ["s2"])["s2"][0]
    assert (stored[:4] == 65535).all()
    assert (stored[4:] != 65535).all()
    whole = contract.load(writer.prepare(Simulated(20, 16, 0), str(tmp_path / "whole"), num_workers=1))
    examples = np.concatenate([Simulated(20, 16, 0).example("train", i)["s2"][4:].reshape(-1, 12) for i in range(14)])
    assert np.allclose(c.modalities["s2"].mean, examples.mean(0), rtol=1e-5)
    assert c.modalities["s2"].mean != whole.modalities["s2"].mean


class Uneven(Simulated):
    def example(self, split, index):
        out = super().example(split, index)
        if index == 3:
            out["s1"] = out["s1"][:8]
        return out


def test_a_tile_of_another_size_stops_the_preparation_by_name(tmp_path):
    with pytest.raises(InputError, match=r"sim-0-00000\d\d: the s1 tile has shape \(8, 16, 2\)"):
        writer.prepare(Uneven(20, 16, 0), str(tmp_path), num_workers=1)
    with pytest.raises(InputError, match="not a finished prepared set"):
        contract.load(tmp_path / "simulated" / "1.0.0")


def test_the_same_command_again_does_nothing_and_another_is_refused(tmp_path, monkeypatch):
    first = writer.prepare(Simulated(20, 16, 0), str(tmp_path), num_workers=1)

    def forbidden(*arguments):
        raise AssertionError("a finished set is prepared again")

    with monkeypatch.context() as patched:
        patched.setattr(writer, "plan_shards", forbidden)
        assert writer.prepare(Simulated(20, 16, 0), str(tmp_path)) == first
    with pytest.raises(InputError, match="already holds another set"):
        writer.prepare(Simulated(30, 16, 0), str(tmp_path))


def test_an_interrupted_preparation_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_writer, "_SHARD_BYTES", 40_000)
    whole = writer.prepare(Simulated(40, 16, 0), str(tmp_path / "whole"), num_workers=2)
    cut = writer.prepare(Simulated(40, 16, 0), str(tmp_path / "cut"), num_workers=1)
    # As a kill leaves it: no contract, a shard missing, another without its statistics, a temporary file.
    description = Simulated(40, 16, 0).describe()
    os.remove(os.path.join(cut, "contract.json"))
    folder = os.path.join(cut, "preparing")
    os.makedirs(folder)
    with open(os.path.join(folder, "source.json"), "w") as f:
        json.dump({"source_version": description.source_version}, f)
    shards = sorted(f for f in os.listdir(cut) if "array_record" in f)
    assert len(shards) > 4
    os.remove(os.path.join(cut, shards[1]))
    with open(os.path.join(cut, ".tmp-1-" + shards[1]), "w") as f:
        f.write("half")
    with pytest.raises(InputError, match="unfinished preparation"):
        writer.prepare(Simulated(50, 16, 0), str(tmp_path / "cut"))
    assert writer.prepare(Simulated(40, 16, 0), str(tmp_path / "cut"), num_workers=1) == cut
    assert sorted(os.listdir(cut)) == sorted(os.listdir(whole))
    for name in shards:
        with open(os.path.join(cut, name), "rb") as a, open(os.path.join(whole, name), "rb") as b:
            assert a.read() == b.read()


def test_too_little_disk_space_is_noticed_before_starting(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(RunError, match="needs about .* GB"):
        writer.prepare(Simulated(20, 16, 0), str(tmp_path))


def test_a_disk_that_fills_leaves_no_half_written_file_and_a_sentence(tmp_path):
    with small_disk(tmp_path / "disk", "900k"):
        script = (
            "import shutil, sys\n"
            "shutil.disk_usage = lambda p: shutil._ntuple_diskusage(1 << 40, 0, 1 << 40)\n"  # someone else fills it
            "from data import prepare\n"
            "sys.exit(prepare.main(sys.argv[1:]))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, "simulated", f"--out={tmp_path}/disk", "--num_tiles=200", "--tile_size=16"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert_clear(done, 1, "disk filled")
        left = os.listdir(tmp_path / "disk" / "simulated" / "1.0.0")
        assert not [f for f in left if f.startswith(".tmp-") or f == "contract.json"]


def test_an_empty_split_is_refused():
    class Empty(Simulated):
        def splits(self):
            return {"train": 5, "val": 0, "test": 0}

    with pytest.raises(InputError, match="split 'test' of simulated is empty"):
        writer.prepare(Empty(10, 16, 0), "unused")


def test_prepare_prints_the_directory_last_and_names_what_it_does_not_know(tmp_path):
    done = run_cli("data.prepare", "simulated", f"--out={tmp_path}", "--num_tiles=20", "--tile_size=16")
    assert done.returncode == 0, done.stderr
    directory = done.stdout.splitlines()[-1]
    assert contract.load(directory).splits == {"train": 14, "val": 2, "test": 4}
    unknown = run_cli("data.prepare", "atlantis", f"--out={tmp_path}")
    assert unknown.returncode == 2
    assert "paired_scenes" in unknown.stderr
    assert_clear(run_cli("data.prepare", "simulated", f"--out={tmp_path}", "--num_tiles=3"), 2, "--num_tiles is 3")


@pytest.mark.slow
def test_killed_at_random_moments_it_resumes_and_never_looks_complete(tmp_path):
    whole = writer.prepare(Simulated(1500, 32, 0), str(tmp_path / "whole"), num_workers=2)
    command = [
        sys.executable, "-m", "data.prepare", "simulated", f"--out={tmp_path}/cut", "--num_tiles=1500", "--tile_size=32",
    ]  # fmt: skip
    rng = random.Random(0)
    kills = 0
    while kills < 20:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(rng.uniform(0.5, 4))
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        with pytest.raises(InputError):
            contract.load(tmp_path / "cut" / "simulated" / "1.0.0")
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    cut = tmp_path / "cut" / "simulated" / "1.0.0"
    assert sorted(os.listdir(cut)) == sorted(os.listdir(whole))
    for name in os.listdir(whole):
        if "array_record" in name:
            with open(cut / name, "rb") as a, open(os.path.join(whole, name), "rb") as b:
                assert a.read() == b.read()


def test_two_sets_mixed_in_one_folder_are_noticed(tmp_path):
    first = writer.prepare(Simulated(40, 16, 0), str(tmp_path / "a"), num_workers=1)
    second = writer.prepare(Simulated(60, 16, 0), str(tmp_path / "b"), num_workers=1)
    shutil.copy(os.path.join(second, "contract.json"), first)
    with pytest.raises(InputError, match="the folder mixes two sets"):
        store.PreparedSet(first)
    for name in os.listdir(second):  # as copying one over the other leaves it, interrupted
        if not name.endswith(".json") and "train" in name:
            shutil.copy(os.path.join(second, name), first)
    shutil.copy(os.path.join(tmp_path, "a", "simulated", "1.0.0", "dataset_info.json"), second)
    with pytest.raises(InputError, match="the folder mixes two sets"):
        store.PreparedSet(second)


@pytest.mark.slow
def test_beam_writes_the_same_set_as_local_workers(tmp_path):
    """In an environment of its own: Beam wants an older protobuf than the rest."""
    here = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", str(here)], check=True)
    site = subprocess.run(
        [sys.executable, "-c", "import site; print(site.getsitepackages()[0])"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    inside = next((here / "lib").glob("python*/site-packages"))
    (inside / "outer.pth").write_text(f"{site}\n")  # what this environment has, behind what Beam brings
    installed = subprocess.run(
        [str(here / "bin/python"), "-m", "pip", "install", "--quiet", "apache-beam>=2.70"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if installed.returncode:
        pytest.skip(f"Apache Beam cannot be installed here: {installed.stderr.strip().splitlines()[-1]}")
    local = writer.prepare(Simulated(300, 32, 0), str(tmp_path / "local"), num_workers=2)
    command = [
        str(here / "bin/python"), "-m", "data.prepare", "simulated", f"--out={tmp_path}/beam", "--num_tiles=300",
        "--tile_size=32", "--beam=--runner=DirectRunner --direct_num_workers=2",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    beam = done.stdout.splitlines()[-1]
    assert contract.load(beam) == contract.load(local)
    for name in os.listdir(local):
        if "array_record" in name:
            with open(os.path.join(beam, name), "rb") as a, open(os.path.join(local, name), "rb") as b:
                assert a.read() == b.read()

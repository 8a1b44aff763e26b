import json

import numpy as np

from fusionx_jax import bench, tiles
from tests.helpers import assert_clear, run_cli


def test_input_bench_prints_one_object_with_its_ratios(tmp_path):
    done = run_cli(
        "fusionx_jax", "bench", "input", "--json", "--tiles=64", "--tile_size=16", "--batch_size=8", "--rounds=1",
        f"--tmp={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["pair_bytes"] == 16 * 16 * 14 * 2
    assert found["vs_tfrecord_shuffle"] == found["pairs_per_s"] / found["tfrecord_shuffle_pairs_per_s"]
    assert found["vs_memmap_gather"] == found["pairs_per_s"] / found["memmap_gather_pairs_per_s"]
    assert not list(tmp_path.iterdir())  # the tiles are gone


def test_the_other_forms_hold_the_same_tiles(tmp_path):
    from fusionx_jax import input_pipeline

    bench.write_random_set(str(tmp_path), 20, 16)
    prepared = tiles.PreparedSet(str(tmp_path))
    names = tuple(prepared.contract.modalities)
    input_pipeline.write_tfrecord(prepared, "train", names, str(tmp_path / "x"))
    batches = list(input_pipeline.tfrecord_batches(str(tmp_path / "x"), prepared, names, 10, 2))
    assert len(batches) == 4
    whole = prepared.read("train", np.arange(20), names)
    for name in names:
        shuffled = np.concatenate([b[name] for b in batches[:2]])
        assert sorted(t.tobytes() for t in shuffled) == sorted(t.tobytes() for t in whole[name])


def test_bad_input_is_one_sentence():
    assert_clear(run_cli("fusionx_jax", "bench", "input", "--tiles=10"), 2, "at least four batches")
    assert run_cli("fusionx_jax", "bench").returncode == 2

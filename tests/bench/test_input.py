import json

import numpy as np
import pytest

from fusionx_jax.bench import input as bench_input
from fusionx_jax.bench import probe as bench_probe
from fusionx_jax.evaluate.numerics import logistic
from fusionx_jax.prepared import store
from tests.helpers import assert_clear, run_here


def test_input_bench_prints_one_object_with_its_ratios(tmp_path):
    done = run_here(
        "bench", "input", "--json", "--tiles=64", "--tile_size=16", "--batch_size=8", "--rounds=1",
        f"--tmp={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["pair_bytes"] == 16 * 16 * 14 * 2
    assert found["vs_tfrecord_shuffle"] == found["pairs_per_s"] / found["tfrecord_shuffle_pairs_per_s"]
    assert found["vs_memmap_gather"] == found["pairs_per_s"] / found["memmap_gather_pairs_per_s"]
    assert not list(tmp_path.iterdir())  # the tiles are gone


def test_the_other_forms_hold_the_same_tiles(tmp_path):
    from fusionx_jax.prepared import pipeline

    bench_input.write_random_set(str(tmp_path), 20, 16)
    prepared = store.PreparedSet(str(tmp_path))
    names = tuple(prepared.contract.modalities)
    pipeline.write_tfrecord(prepared, "train", names, str(tmp_path / "x"))
    batches = list(pipeline.tfrecord_batches(str(tmp_path / "x"), prepared, names, 10, 2))
    assert len(batches) == 4
    whole = prepared.read("train", np.arange(20), names)
    for name in names:
        shuffled = np.concatenate([b[name] for b in batches[:2]])
        assert sorted(t.tobytes() for t in shuffled) == sorted(t.tobytes() for t in whole[name])


def test_probe_bench_agrees_with_scikit_learn_on_a_small_sweep():
    done = run_here("bench", "probe", "--json", "--examples=1000", "--features=16", "--seeds=1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["speedup"] == found["sklearn_s"] / found["our_s"]
    assert found["speedup_over_tuned"] == found["sklearn_tuned_s"] / found["our_s"]
    assert found["our_s"] < found["our_s_with_compilation"]
    assert found["metric"] == "macro_map"
    assert found["max_metric_difference"] < 0.3
    assert found["cores"] >= 1
    assert (found["examples"], found["features"], found["seeds"]) == (1000, 16, 1)
    assert 0 < found["speedup_over_tuned_if_both_stop_early"] <= found["speedup_over_tuned"]


@pytest.mark.parametrize("kind", ["multi", "single"])
def test_the_scikit_learn_side_gives_absent_classes_the_same_scores(kind):
    problem = bench_probe.make_problem(kind, 1000, 8)
    rows = np.flatnonzero(problem.train.y[:, 1] == 0)[:300]
    path = bench_probe._path(problem.train, rows, 1 if kind == "multi" else None, problem.selection, True)
    fit = logistic.fit(
        problem.train.x, problem.train.y, rows[None], np.zeros((1, 300), int), bench_probe.REGULARIZATION, problem.test.x,
        softmax=kind == "single", selection=problem.selection,
    )  # fmt: skip
    model = path.models[fit.chosen[0]]
    scores = problem.test.x @ model[:-1] + model[-1]
    if kind == "multi":
        assert np.allclose(scores[:, 0], fit.scores[0, :, 1], atol=1e-3)
    else:
        tried = np.isfinite(fit.selection_loss[0])
        assert np.allclose(path.loss[tried], fit.selection_loss[0, tried], rtol=0.01)


def test_bad_input_is_one_sentence():
    assert_clear(run_here("bench", "input", "--tiles=10"), 2, "at least four batches")
    assert_clear(run_here("bench", "probe", "--examples=10"), 2, "at least 1000 examples")
    assert run_here("bench").returncode == 2

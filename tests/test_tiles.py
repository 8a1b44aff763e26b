import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionx_jax import tiles
from fusionx_jax.contract import InputError


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**32), st.integers(0, 1000))
def test_every_epoch_is_a_permutation(size, seed, epoch):
    place = np.arange(size)
    out = tiles.permute(place, size, seed, np.full(size, epoch))
    assert (np.sort(out) == place).all()


def test_epochs_and_seeds_give_different_orders_without_visible_structure():
    place = np.arange(5000)
    orders = [tiles.permute(place, 5000, seed, np.full(5000, e)) for seed in (0, 1) for e in (0, 1)]
    for i, a in enumerate(orders):
        assert abs(np.corrcoef(place, a)[0, 1]) < 0.06  # four standard deviations
        for b in orders[:i]:
            assert (a == b).mean() < 0.005


def test_batches_of_consecutive_steps_cover_each_epoch_once():
    seen = np.concatenate([tiles.batch_indices(3, step, 7, 20) for step in range(20)])
    assert (np.bincount(seen, minlength=20) == 7).all()


def test_a_late_step_costs_no_more_than_the_first():
    late = tiles.batch_indices(0, 10**6, 256, 10_000)
    assert len(set(late.tolist())) == 256
    assert (tiles.batch_indices(0, 10**6, 256, 10_000) == late).all()


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_together_read_the_global_batch(hosts):
    whole = tiles.batch_indices(0, 5, 32, 1000)
    parts = [tiles.host_share(whole, i, hosts) for i in range(hosts)]
    assert (np.concatenate(parts) == whole).all()


def test_a_batch_that_does_not_divide_among_hosts_is_refused():
    with pytest.raises(InputError, match="does not divide"):
        tiles.host_share(np.arange(10), 0, 3)


def test_reading_by_index_agrees_with_tfds(simulated):
    prepared = tiles.PreparedSet(simulated)
    source = tfds.builder_from_directory(simulated).as_data_source(split="train")
    index = [5, 0, 139, 5]
    ours = prepared.read("train", index, ["s1", "s2", "label_multi", "label_single", "label_pixel", "id"])
    for row, i in enumerate(index):
        theirs = source[i]
        for feature in ("s1", "s2", "label_multi", "label_pixel"):
            assert (ours[feature][row] == theirs[feature]).all()
        assert ours["label_single"][row] == theirs["label_single"]
        assert ours["id"][row] == theirs["id"].decode()


def _copy(simulated, tmp_path):
    return shutil.copytree(simulated, tmp_path / "set")


def test_truncated_shard_is_named(simulated, tmp_path):
    copy = _copy(simulated, tmp_path)
    shard = next(copy.glob("*train*"))
    shard.write_bytes(shard.read_bytes()[:-70_000])
    with pytest.raises(InputError, match=shard.name):
        tiles.PreparedSet(copy).read("train", [0], ["s1"])


def test_missing_shard_is_named(simulated, tmp_path):
    copy = _copy(simulated, tmp_path)
    shard = next(copy.glob("*train*"))
    shard.unlink()
    with pytest.raises(InputError, match=shard.name):
        tiles.PreparedSet(copy)


def test_contract_of_another_tile_size_is_noticed(simulated, tmp_path):
    copy = _copy(simulated, tmp_path)
    raw = json.loads((copy / "contract.json").read_text())
    raw["modalities"]["s1"]["height"] = 16
    (copy / "contract.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match="contract or the shard was changed"):
        tiles.PreparedSet(copy).read("train", [0], ["s1"])


def test_empty_split_and_wild_index_are_refused(simulated):
    prepared = tiles.PreparedSet(simulated)
    with pytest.raises(InputError, match="no tiles in the split 'unlabelled'"):
        prepared.size("unlabelled")
    with pytest.raises(InputError, match="outside the split"):
        prepared.read("train", [140], ["s1"])
    with pytest.raises(InputError, match="no feature 'height'"):
        prepared.read("train", [0], ["height"])

import contextlib
import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from fusionx_jax.errors import InputError
from fusionx_jax.prepared import order, records, sets, store
from fusionx_jax.prepared.verify import verify


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**32), st.integers(0, 1000))
def test_every_epoch_is_a_permutation(size, seed, epoch):
    place = np.arange(size)
    out = order.permute(place, size, seed, np.full(size, epoch))
    assert (np.sort(out) == place).all()


def test_epochs_and_seeds_give_different_orders_without_visible_structure():
    place = np.arange(5000)
    orders = [order.permute(place, 5000, seed, np.full(5000, e)) for seed in (0, 1) for e in (0, 1)]
    for i, a in enumerate(orders):
        assert abs(np.corrcoef(place, a)[0, 1]) < 0.06  # four standard deviations
        for b in orders[:i]:
            assert (a == b).mean() < 0.005


def test_batches_of_consecutive_steps_cover_each_epoch_once():
    seen = np.concatenate([order.batch_indices(3, step, 7, 20) for step in range(20)])
    assert (np.bincount(seen, minlength=20) == 7).all()


def test_a_late_step_costs_no_more_than_the_first():
    late = order.batch_indices(0, 10**6, 256, 10_000)
    assert len(set(late.tolist())) == 256
    assert (order.batch_indices(0, 10**6, 256, 10_000) == late).all()


def test_reading_by_index_agrees_with_tfds(simulated):
    prepared = store.PreparedSet(simulated)
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
        store.PreparedSet(copy).read("train", [0], ["s1"])


def _flip_in(shard, numbers):
    """Flips a bit in the chunk of each of these records."""
    with contextlib.closing(array_record_module.ArrayRecordReader(str(shard))) as reader:
        records = reader.read(numbers)
    content = bytearray(shard.read_bytes())
    for record in records:
        content[content.index(record[-500:]) + 20] ^= 4
    shard.write_bytes(content)


def test_flipped_bits_are_found_and_named_by_shard_and_record(simulated, tmp_path):
    copy = _copy(simulated, tmp_path)
    assert "all 200 records" in verify(copy)
    shard = next(copy.glob("*train*"))
    _flip_in(shard, [1, 3])
    with pytest.raises(InputError, match=f"{shard.name}, record 1; {shard.name}, record 3. Copy"):
        verify(copy)
    reader = sets.open_for(ConfigDict({"verify_records": True}), str(copy))
    assert len(reader.read("train", [0, 2, 4], ["s1"])["s1"]) == 3
    with pytest.raises(InputError, match=f"{shard.name} cannot be read \\(record 3: .*hash mismatch"):
        reader.read("train", [2, 3], ["s1"])
    shard.write_bytes(shard.read_bytes()[:-70_000])
    with pytest.raises(InputError, match=f"is damaged: {shard.name}: it holds"):
        verify(copy)


def test_missing_shard_is_named(simulated, tmp_path):
    copy = _copy(simulated, tmp_path)
    shard = next(copy.glob("*train*"))
    shard.unlink()
    with pytest.raises(InputError, match=shard.name):
        store.PreparedSet(copy)


def test_contract_of_another_tile_size_is_noticed(simulated, tmp_path):
    copy = _copy(simulated, tmp_path)
    raw = json.loads((copy / "contract.json").read_text())
    raw["modalities"]["s1"]["height"] = 16
    (copy / "contract.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match="contract or the shard was changed"):
        store.PreparedSet(copy).read("train", [0], ["s1"])


def test_empty_split_and_wild_index_are_refused(simulated):
    prepared = store.PreparedSet(simulated)
    with pytest.raises(InputError, match="no tiles in the split 'unlabeled'"):
        prepared.size("unlabeled")
    with pytest.raises(InputError, match="outside the split"):
        prepared.read("train", [140], ["s1"])
    with pytest.raises(InputError, match="no feature 'height'"):
        prepared.read("train", [0], ["height"])


@settings(max_examples=80, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=12),
        st.one_of(st.binary(min_size=1, max_size=400), st.integers(0, 2**62)),
        max_size=6,
    ),
)
def test_records_are_parsed_as_protobuf_parses_them(features):
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    for key, value in features.items():
        if isinstance(value, bytes):
            example.features.feature[key].bytes_list.value.append(value)
        else:
            example.features.feature[key].int64_list.value.append(value)
    example.features.feature["last"].bytes_list.value.append(b"end")
    record = example.SerializeToString()
    found = records.example_fields(record)
    assert set(found) == {*features, "last"}
    for key, value in features.items():
        if key != "last":
            place = found[key]
            assert value == (record[place[0] : sum(place)] if isinstance(value, bytes) else place)
    for cut in (1, len(record) // 2, len(record) - 1):
        with pytest.raises(IndexError):
            records.example_fields(record[:cut])


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    from data import writer
    from data.simulated.builder import Simulated

    return writer.prepare(Simulated(100, 32, 5), str(tmp_path_factory.mktemp("second")), num_workers=2)


def test_a_mixture_is_drawn_by_weight_and_each_set_in_its_own_order(simulated, second):
    mixture = sets.open_sets(f"{simulated},{second}", (3.0, 1.0))
    drawn = np.concatenate([mixture.order("train", 7, step, 50) for step in range(80)])  # four cycles
    of_first = drawn < 140
    assert of_first.sum() == 3000
    assert abs(of_first.reshape(80, 50).mean(1) - 0.75).max() < 0.3  # spread over the batches
    # The thousand draws of the second set are fourteen of its epochs and a part of the next.
    draws = np.bincount(drawn[~of_first] - 140, minlength=70)
    assert set(draws) == {14, 15}
    assert (mixture.order("train", 7, 10**6, 50) == mixture.order("train", 7, 10**6, 50)).all()
    batch = mixture.read("train", drawn[:50], ["s1", "id"])
    single = store.PreparedSet(second).read("train", drawn[:50][~of_first[:50]][:1] - 140, ["id"])["id"][0]
    assert batch["id"][~of_first[:50]][0] == single
    assert set(batch["id"][of_first[:50]]) <= {f"sim-0-{i:07d}" for i in range(200)}


def test_a_mixture_pools_statistics_by_weight(simulated, second):
    a, b = (store.PreparedSet(d).contract.modalities["s2"] for d in (simulated, second))
    pooled = sets.open_sets(f"{simulated},{second}", (3.0, 1.0)).contract.modalities["s2"]
    mean = 0.75 * np.array(a.mean) + 0.25 * np.array(b.mean)
    assert np.allclose(pooled.mean, mean)
    variance = 0.75 * (np.array(a.std) ** 2 + (np.array(a.mean) - mean) ** 2)
    variance += 0.25 * (np.array(b.std) ** 2 + (np.array(b.mean) - mean) ** 2)
    assert np.allclose(np.square(pooled.std), variance)


def test_sets_that_do_not_fit_together_are_refused(simulated, tmp_path, second):
    from data import writer
    from data.simulated.builder import Simulated

    other = writer.prepare(Simulated(20, 16, 0), str(tmp_path), num_workers=1)
    with pytest.raises(InputError, match="has height 32"):
        sets.open_sets(f"{simulated},{other}")
    with pytest.raises(InputError, match=r"dataset_weights is \[1.0\]|dataset_weights is \(1.0,\)"):
        sets.open_sets(f"{simulated},{second}", (1.0,))


def test_a_set_elsewhere_is_read_through_fsspec(simulated, tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("FUSIONX_CACHE", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    memory.put(simulated, "/bucket/set", recursive=True)
    here = store.PreparedSet(simulated).read("train", [3, 9], ["s1", "label_multi"])
    for address in ("memory://bucket/set", f"file://{simulated}"):
        remote = store.PreparedSet(address)
        assert remote.contract == store.PreparedSet(simulated).contract
        read = remote.read("train", [3, 9], ["s1", "label_multi"])
        assert all((here[k] == read[k]).all() for k in here)
    with pytest.raises(InputError, match="There is no memory://bucket/none/contract.json"):
        store.PreparedSet("memory://bucket/none")
    with pytest.raises(InputError, match="cannot be read"):
        store.PreparedSet("nosuch://bucket/set")


def test_more_shards_than_files_may_be_open(simulated, monkeypatch, tmp_path):
    from data import shard_writer, writer
    from data.simulated.builder import Simulated

    monkeypatch.setattr(shard_writer, "_SHARD_BYTES", 20_000)
    many = writer.prepare(Simulated(60, 16, 0), str(tmp_path), num_workers=1)
    monkeypatch.setattr(store, "_max_open", lambda: 3)
    prepared = store.PreparedSet(many)
    assert len(prepared._shards["train"]) > 6
    read = prepared.read("train", np.arange(42)[::-1], ["id"])["id"]
    assert len(set(read.tolist())) == 42
    assert len(prepared._open) == 3


def test_records_unlike_the_first_are_read_all_the_same(tmp_path):
    """Texts of other lengths are passed over; a record with another feature in front of the tile is taken apart."""
    import json

    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    from fusionx_jax.bench import input as bench_input

    bench_input.write_random_set(str(tmp_path), 6, 16)
    shard = next(tmp_path.glob("*array_record*"))
    rng = np.random.default_rng(3)
    expected = {"s1": [], "s2": []}
    writer = array_record_module.ArrayRecordWriter(str(shard), "group_size:1,uncompressed")
    for i in range(6):
        example = tf_example_pb2.Example()
        example.features.feature["id"].bytes_list.value.append(b"x" * (1 + 40 * i))
        if i == 3:
            example.features.feature["s15"].bytes_list.value.append(b"between the two")
        if i == 4:
            example.features.feature["zzz"].bytes_list.value.append(b"behind both")
        for key, bands in (("s1", 2), ("s2", 12)):
            tile = rng.integers(0, 9000, (16, 16, bands), np.uint16)
            expected[key].append(tile)
            example.features.feature[key].bytes_list.value.append(tile.tobytes())
        writer.write(example.SerializeToString(deterministic=True))
    writer.close()
    assert json.loads((tmp_path / "dataset_info.json").read_text())["splits"][0]["shardLengths"] == ["6"]
    prepared = store.PreparedSet(tmp_path)
    for indices in ([0, 1, 2, 3, 4, 5], [3, 0, 4, 1], [4, 5, 3, 3]):
        read = prepared.read("train", indices, ["s2", "s1"])
        for key, values in expected.items():
            assert (read[key] == np.stack([values[i] for i in indices])).all()


def test_groups_of_bands_are_modalities_with_their_own_bands_and_statistics(simulated):
    plain = store.PreparedSet(simulated)
    grouped = sets.open_sets(simulated, (), {"red": ("s2", "B04", "B05"), "vh": ("s1", "VH")})
    sensor, red = plain.contract.modalities["s2"], grouped.contract.modalities["red"]
    place = [sensor.bands.index(b) for b in ("B04", "B05")]
    assert red.mean == tuple(sensor.mean[i] for i in place)
    batch = grouped.read("val", [3, 1], ["red", "s1", "id"])
    whole = plain.read("val", [3, 1], ["s2", "s1", "id"])
    assert (batch["red"] == whole["s2"][..., place]).all()
    assert (batch["s1"] == whole["s1"]).all()
    assert batch["id"].tolist() == whole["id"].tolist()
    for wrong in ({"s1": ("s2", "B04")}, {"x": ("s3", "B04")}, {"x": ("s2", "B99")}, {"x": ("s2",)}):
        with pytest.raises(InputError, match="band_groups defines"):
            sets.open_sets(simulated, (), wrong)

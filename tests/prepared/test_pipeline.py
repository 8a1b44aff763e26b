import csv
import sys
import threading
from unittest import mock

import jax
import numpy as np
import pytest

from fusionx_jax import sharding
from fusionx_jax.errors import InputError
from fusionx_jax.prepared import order, pipeline, sets, store


def _batches(prepared, start, stop, rows=None, reader="auto", features=("s1", "label_single")):
    if isinstance(prepared, str):
        prepared = store.PreparedSet(prepared)
    return list(
        pipeline.host_batches(
            prepared, "train", features, batch_size=8, seed=1, start_step=start, stop_step=stop, rows=rows,
            reader=reader,
        )
    )  # fmt: skip


def _assert_equal(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b):
        assert list(x) == list(y)
        for name in x:
            assert x[name].dtype == y[name].dtype
            assert np.array_equal(x[name], y[name])


def test_batches_are_a_function_of_the_step_however_one_gets_there(simulated):
    whole = _batches(simulated, 0, 6)
    _assert_equal(whole[4:], _batches(simulated, 4, 6))
    direct = store.PreparedSet(simulated).read("train", order.batch_indices(1, 5, 8, 140), ["s1"])
    assert (whole[5]["s1"] == direct["s1"]).all()


def test_threads_give_the_batches_of_tf_data_in_the_same_order(simulated):
    mixture = sets.open_sets(f"{simulated},{simulated}", (1.0, 2.0), {"red": ("s2", "B04")})
    for prepared, features in ((simulated, ("s1", "label_single", "label_pixel")), (mixture, ("s1", "red"))):
        by_tf_data = _batches(prepared, 3, 12, reader="tf.data", features=features)
        assert len(by_tf_data) == 9
        _assert_equal(_batches(prepared, 3, 12, reader="threads", features=features), by_tf_data)


@pytest.fixture
def no_tensorflow(monkeypatch):
    """Makes `import tensorflow` fail, and the import of what writes to TensorBoard with it."""
    for name in [n for n in sys.modules if n.split(".")[0] in ("tensorflow", "clu")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setitem(sys.modules, "clu.metric_writers", None)


def test_without_tensorflow_the_pipeline_runs_on_threads(simulated, no_tensorflow):
    direct = store.PreparedSet(simulated).read("train", order.batch_indices(1, 2, 8, 140), ["s1"])
    assert (_batches(simulated, 0, 3)[2]["s1"] == direct["s1"]).all()
    with pytest.raises(InputError, match="TensorFlow is not installed"):
        _batches(simulated, 0, 3, reader="tf.data")


def _losses(workdir):
    with open(f"{workdir}/metrics.csv", newline="") as f:
        return [row["loss"] for row in csv.DictReader(f)]


def test_pretraining_without_tensorflow_gives_the_same_losses(tiny_config, trained, tmp_path, no_tensorflow):
    from fusionx_jax import pretrain

    assert pretrain.run(tiny_config, str(tmp_path)) == 0
    assert _losses(tmp_path) == _losses(trained)
    assert len(_losses(tmp_path)) == 6


class Steps:
    """A reader from outside the package: a "tile" is the index of its batch's step."""

    directory = "nowhere"

    def __init__(self, contract):
        self.contract = contract
        self.started = set()
        self.before = lambda step: None

    def size(self, split):
        return 10**9

    def order(self, split, seed, step, batch_size):
        return np.full(batch_size, step)

    def read(self, split, indices, features):
        step = int(indices[0])
        self.started.add(step)
        self.before(step)
        return {f: np.asarray(indices) for f in features}


@pytest.fixture
def steps(simulated):
    return Steps(store.PreparedSet(simulated).contract)


def _threaded(steps, stop):
    return pipeline.host_batches(
        steps, "train", ("s1",), batch_size=2, seed=0, start_step=0, stop_step=stop, reader="threads"
    )


def _reading_threads():
    return [t for t in threading.enumerate() if t.name.startswith("read-ahead")]


def test_a_reader_from_outside_is_read_like_a_prepared_set(steps):
    assert isinstance(steps, sets.Readable)
    assert [b["s1"].tolist() for b in _threaded(steps, 3)] == [[0, 0], [1, 1], [2, 2]]


def test_threads_read_a_bounded_number_ahead_in_order_and_end_with_the_iterator(steps):
    last = threading.Event()

    def before(step):
        if step == 0:  # the first batch is the last to be ready
            assert last.wait(60)
        elif step == 4:
            last.set()

    steps.before = before
    batches = _threaded(steps, 10**9)
    assert next(batches)["s1"][0] == 0
    batches.close()
    assert steps.started == {0, 1, 2, 3, 4}
    assert not _reading_threads()


def test_an_error_in_a_thread_is_raised_as_it_was_in_place_of_its_batch(steps):
    error = InputError("the shard is damaged")

    def before(step):
        if step == 2:
            raise error

    steps.before = before
    batches = _threaded(steps, 10**9)
    assert [next(batches)["s1"][0] for _ in range(2)] == [0, 1]
    with pytest.raises(InputError) as caught:
        next(batches)
    assert caught.value is error
    assert not _reading_threads()


def test_a_damaged_record_is_raised_as_it_was_by_tf_data(steps):
    def before(step):
        if step == 1:
            raise InputError("the shard is damaged")

    steps.before = before
    with pytest.raises(InputError, match="the shard is damaged"):
        list(
            pipeline.host_batches(
                steps, "train", ("s1",), batch_size=2, seed=0, start_step=0, stop_step=3, reader="tf.data"
            )
        )


def test_hosts_read_their_rows_of_the_global_batches(simulated):
    whole = _batches(simulated, 0, 3)
    for rows in (np.arange(4, 8), np.array([2, 3, 6, 7])):
        for part, batch in zip(_batches(simulated, 0, 3, rows), whole, strict=True):
            assert (part["s1"] == batch["s1"][rows]).all()


def test_a_host_reads_the_rows_that_its_devices_hold_in_whatever_order_the_mesh_has_them():
    sharding = mock.NonCallableMagicMock(spec=jax.sharding.Sharding)
    sharding.addressable_devices_indices_map.return_value = {"a": (slice(6, 8),), "b": (slice(2, 4),)}
    assert pipeline.local_rows(sharding, 8).tolist() == [2, 3, 6, 7]


def test_a_resume_at_a_million_steps_is_immediate(simulated):
    batches = _batches(simulated, 10**6, 10**6 + 1)
    expected = store.PreparedSet(simulated).read("train", order.batch_indices(1, 10**6, 8, 140), ["s1"])
    assert (batches[0]["s1"] == expected["s1"]).all()


def test_tiles_stay_uint16_on_the_way_to_the_device(simulated):
    batches = _batches(simulated, 0, 3)
    out = list(pipeline.DeviceBatches(iter(batches), sharding.batch_sharding(sharding.make_mesh())))
    assert len(out) == 3
    assert out[0]["s1"].dtype == np.uint16
    assert isinstance(out[0]["s1"], jax.Array)
    assert (np.asarray(out[2]["s1"]) == batches[2]["s1"]).all()


def test_a_batch_is_handed_out_before_the_next_is_fetched_and_only_waiting_is_counted(monkeypatch):
    clock, fetched = [0.0], []
    monkeypatch.setattr(pipeline.time, "perf_counter", lambda: clock[0])

    def host():
        for step in range(3):
            fetched.append(step)
            clock[0] += 2.0  # a batch takes two seconds to come
            yield {"s1": np.full(4, step)}

    batches = pipeline.DeviceBatches(host(), jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    assert not fetched
    for step in range(3):
        assert next(batches)["s1"][0] == step
        assert fetched == list(range(step + 1))
        assert batches.waited_s == 2.0 * (step + 1)
        clock[0] += 5.0  # the train step
    assert next(batches, None) is None


def test_a_mixture_streams_the_same_global_batches_to_any_number_of_hosts(simulated):
    mixture = sets.open_sets(f"{simulated},{simulated}", (1.0, 2.0))
    whole = _batches(mixture, 10**6, 10**6 + 2, features=("s1",))
    halves = [_batches(mixture, 10**6, 10**6 + 2, rows, features=("s1",)) for rows in (np.arange(4), np.arange(4, 8))]
    for step in range(2):
        assert (np.concatenate([h[step]["s1"] for h in halves]) == whole[step]["s1"]).all()

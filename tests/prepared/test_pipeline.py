from unittest import mock

import jax
import numpy as np

from fusionx_jax import sharding
from fusionx_jax.prepared import order, pipeline, sets, store


def _steps(simulated, start, stop, rows=None):
    prepared = store.PreparedSet(simulated)
    return list(
        pipeline.host_batches(
            prepared,
            "train",
            ("s1", "label_single"),
            batch_size=8,
            seed=1,
            start_step=start,
            stop_step=stop,
            rows=rows,
        )
    )


def test_batches_are_a_function_of_the_step_however_one_gets_there(simulated):
    whole = _steps(simulated, 0, 6)
    resumed = _steps(simulated, 4, 6)
    for a, b in zip(whole[4:], resumed):
        assert all((a[k] == b[k]).all() for k in a)
    prepared = store.PreparedSet(simulated)
    direct = prepared.read("train", order.batch_indices(1, 5, 8, 140), ["s1"])
    assert (whole[5]["s1"] == direct["s1"]).all()


def test_hosts_read_their_rows_of_the_global_batches(simulated):
    whole = _steps(simulated, 0, 3)
    for rows in (np.arange(4, 8), np.array([2, 3, 6, 7])):
        for part, batch in zip(_steps(simulated, 0, 3, rows), whole, strict=True):
            assert (part["s1"] == batch["s1"][rows]).all()


def test_a_host_reads_the_rows_that_its_devices_hold_in_whatever_order_the_mesh_has_them():
    sharding = mock.NonCallableMagicMock(spec=jax.sharding.Sharding)
    sharding.addressable_devices_indices_map.return_value = {"a": (slice(6, 8),), "b": (slice(2, 4),)}
    assert pipeline.local_rows(sharding, 8).tolist() == [2, 3, 6, 7]


def test_a_resume_at_a_million_steps_is_immediate(simulated):
    batches = _steps(simulated, 10**6, 10**6 + 1)
    expected = store.PreparedSet(simulated).read("train", order.batch_indices(1, 10**6, 8, 140), ["s1"])
    assert (batches[0]["s1"] == expected["s1"]).all()


def test_tiles_stay_uint16_on_the_way_to_the_device(simulated):
    mesh = sharding.make_mesh()
    out = list(pipeline.DeviceBatches(iter(_steps(simulated, 0, 3)), sharding.batch_sharding(mesh)))
    assert len(out) == 3
    assert out[0]["s1"].dtype == np.uint16
    assert isinstance(out[0]["s1"], jax.Array)
    assert (np.asarray(out[2]["s1"]) == _steps(simulated, 2, 3)[0]["s1"]).all()


def test_a_mixture_streams_the_same_global_batches_to_any_number_of_hosts(simulated):
    mixture = f"{simulated},{simulated}"

    def batches(rows=None):
        return list(
            pipeline.host_batches(
                sets.open_sets(mixture, (1.0, 2.0)), "train", ("s1",), batch_size=8, seed=1, start_step=10**6,
                stop_step=10**6 + 2, rows=rows,
            )
        )  # fmt: skip

    whole, halves = batches(), [batches(rows) for rows in (np.arange(4), np.arange(4, 8))]
    for step in range(2):
        assert (np.concatenate([h[step]["s1"] for h in halves]) == whole[step]["s1"]).all()

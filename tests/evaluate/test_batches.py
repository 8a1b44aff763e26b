import threading

import numpy as np
import pytest

from fusionx_jax.errors import InputError
from fusionx_jax.evaluate import batches
from tests.evaluate import toy


def test_items_are_read_in_order_while_the_consumer_works():
    third_is_read = threading.Event()

    def read(number):
        if number == 2:
            third_is_read.set()
        return number * number

    values = batches.read_ahead(read, range(5))
    assert next(values) == 0
    assert third_is_read.wait(10)  # nobody has taken the second yet
    assert list(values) == [1, 4, 9, 16]


def test_a_consumer_that_stops_early_stops_the_reading():
    numbers = []
    values = batches.read_ahead(numbers.append, range(1000))
    next(values)
    values.close()
    assert len(numbers) < 10


def test_an_error_of_the_reading_thread_reaches_the_consumer():
    def read(number):
        if number == 1:
            raise InputError("shard 1 is damaged")
        return number

    values = batches.read_ahead(read, range(3))
    assert next(values) == 0
    with pytest.raises(InputError, match="shard 1 is damaged"):
        next(values)


def test_a_sweep_returns_every_tile_once_in_order_with_its_columns():
    prepared = toy.ToySet()
    reader = batches.DeviceReader(prepared, ["s1"])
    parts = [np.asarray(b.arrays["s1"])[: b.num_kept] for b in reader.sweep("val", np.arange(24), 10)]
    assert (np.concatenate(parts) == prepared.read("val", np.arange(24), ["s1"])["s1"]).all()
    batch = reader.read("val", np.array([5, 3]), {"number": np.arange(24) * 10})
    assert (np.asarray(batch.arrays["number"])[: batch.num_kept] == [50, 30]).all()

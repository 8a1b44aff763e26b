"""tf.data around tiles.py: parallel reads, prefetch, devices. The only TensorFlow in the data path.

One element is one batch, addressed by its step; tf.data only reads ahead on several threads and keeps the order. So
there is no iterator state to save: starting at step s gives exactly the batches from s on.
"""

import os
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from fusionx_jax.errors import InputError
from fusionx_jax.prepared import sets

_READERS = 3  # batches read at once: two being copied, one waiting for the disk
_AHEAD = 2  # batches kept ready


def _tensorflow():
    """TensorFlow, kept off the accelerator that JAX computes on.

    Raises:
      InputError: it is not installed.
    """
    # Its start-up remarks would bury ours; errors still show.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow as tf
    except ImportError as error:
        raise InputError(
            "Training reads its tiles through tf.data, and TensorFlow is not installed; `pip install tensorflow-cpu`."
        ) from error
    tf.config.set_visible_devices([], "GPU")
    return tf


def host_batches(
    prepared: sets.Readable,
    split: str,
    features: Sequence[str],
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
    rows: np.ndarray | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """The global batches of steps `start_step` to `stop_step`, or the given `rows` of each; numeric features only.

    Raises:
      InputError: the set cannot be read, or TensorFlow is not installed.
    """
    tf = _tensorflow()
    failures: list[Exception] = []

    def read(step):
        try:
            indices = prepared.order(split, seed, int(step), batch_size)
            batch = prepared.read(split, indices if rows is None else indices[rows], features)
        except Exception as error:  # tf.data would wrap it in its own: kept, to be raised as it was
            failures.append(error)
            raise
        return [batch[f] for f in features]

    sample = prepared.read(split, [0], features)
    types = [tf.as_dtype(sample[f].dtype) for f in features]
    dataset = (
        tf.data.Dataset.range(start_step, stop_step)
        .map(lambda step: tf.numpy_function(read, [step], types), num_parallel_calls=_READERS, deterministic=True)
        .prefetch(_AHEAD)
    )
    options = tf.data.Options()
    options.threading.private_threadpool_size = _READERS
    options.autotune.enabled = False
    try:
        for values in dataset.with_options(options).as_numpy_iterator():
            yield dict(zip(features, values))
    except tf.errors.OpError:
        if failures:
            raise failures[0] from None
        raise


def local_rows(sharding: jax.sharding.Sharding, batch_size: int) -> np.ndarray:
    """Rows of a global batch that this process's devices hold, in ascending order; int64."""
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in slices]))


class DeviceBatches:
    """Puts host batches on the devices, one ahead, and measures the time spent waiting for input.

    A host batch holds the rows that `local_rows` gives, in that order.
    """

    def __init__(self, batches: Iterator[dict[str, np.ndarray]], sharding: jax.sharding.Sharding):
        self._batches = batches
        self._sharding = sharding
        self.waited_s = 0.0
        self._next = self._fetch()

    def _fetch(self):
        started = time.perf_counter()
        batch = next(self._batches, None)
        self.waited_s += time.perf_counter() - started
        if batch is None:
            return None
        return {k: self._put(v) for k, v in batch.items()}

    def _put(self, values: np.ndarray) -> jax.Array:
        """The global array of which `values` are this process's rows."""
        count = self._sharding.num_devices
        batch_size = len(values) * count // len(local_rows(self._sharding, count))
        rows = local_rows(self._sharding, batch_size)

        def shard(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            first = np.searchsorted(rows, start)
            return values[first : first + stop - start]

        return jax.make_array_from_callback((batch_size, *values.shape[1:]), self._sharding, shard)

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, jax.Array]:
        current = self._next
        if current is None:
            raise StopIteration
        self._next = self._fetch()
        return current


def write_tfrecord(prepared: sets.Readable, split: str, features: Sequence[str], path: str) -> None:
    """A split as one TFRecord file: the form that most projects read, for `fusionx bench input` to compare with."""
    tf = _tensorflow()
    size = prepared.size(split)
    with tf.io.TFRecordWriter(path) as writer:
        for start in range(0, size, 64):
            batch = prepared.read(split, np.arange(start, min(start + 64, size)), features)
            for row in range(len(batch[features[0]])):
                stored = {f: tf.train.BytesList(value=[batch[f][row].tobytes()]) for f in features}
                example = tf.train.Features(feature={f: tf.train.Feature(bytes_list=v) for f, v in stored.items()})
                writer.write(tf.train.Example(features=example).SerializeToString())


def tfrecord_batches(
    path: str, prepared: sets.Readable, features: Sequence[str], batch_size: int, passes: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """What most projects do: a file read in order, a shuffle buffer of 1000, parsing and decoding in parallel."""
    tf = _tensorflow()
    layout = {f: tf.io.FixedLenFeature([], tf.string) for f in features}
    shapes = {f: (m.height, m.width, len(m.bands)) for f, m in prepared.contract.modalities.items()}

    def decode(record):
        parsed = tf.io.parse_single_example(record, layout)
        return {f: tf.reshape(tf.io.decode_raw(v, tf.uint16), shapes[f]) for f, v in parsed.items()}

    dataset = (
        tf.data.TFRecordDataset(path).shuffle(1000).repeat(passes).map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    )
    return dataset.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()

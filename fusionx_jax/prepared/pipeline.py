"""Batches read ahead on the host, by tf.data or by threads, and put on the devices.

The element of both readers is one batch, addressed by its step: they read several ahead and keep the order, so that
both give the same batches. There is no iterator state to save: starting at step s gives the batches from s on. This
module holds the only TensorFlow of the data path.
"""

import collections
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType
from typing import Literal

import jax
import numpy as np

from fusionx_jax.errors import InputError
from fusionx_jax.prepared.readable import Readable

Batch = dict[str, np.ndarray]
Reader = Literal["auto", "tf.data", "threads"]

_READERS = 3  # batches read at once: two being copied, one waiting for the disk
_AHEAD = 2  # further batches kept ready
_SHUFFLE_BUFFER = 1000  # examples; `tfrecord_batches` does what most projects do
_THREAD_NAME = "read-ahead"


def host_batches(
    prepared: Readable,
    split: str,
    features: Sequence[str],
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
    rows: np.ndarray | None = None,
    reader: Reader = "auto",
) -> Iterator[Batch]:
    """The global batches of steps `start_step` to `stop_step` (exclusive), or some rows of each.

    Args:
      features: numeric features; texts are not supported.
      rows: row indices of the global batch that this host reads (`local_rows`); all by default.
      reader: "tf.data", "threads", or "auto": tf.data where TensorFlow is installed.

    Raises:
      InputError: the set cannot be read, or TensorFlow is not installed and `reader` is "tf.data".
    """

    def read(step: int) -> Batch:
        indices = prepared.order(split, seed, step, batch_size)
        return prepared.read(split, indices if rows is None else indices[rows], features)

    steps = range(start_step, stop_step)
    tf = None if reader == "threads" else _tensorflow_if_installed()
    if tf is not None:
        sample = prepared.read(split, [0], features)
        return _read_with_tf_data(tf, read, steps, {f: sample[f].dtype for f in features})
    if reader == "tf.data":
        raise _tensorflow_missing()
    return _read_with_threads(read, steps)


def _read_with_threads(read: Callable[[int], Batch], steps: range) -> Iterator[Batch]:
    """`read(step)` for each step, in order. At most `_READERS` + `_AHEAD` steps are begun beyond those handed out.

    An error of `read` is raised in place of its batch. The threads end with the iterator.
    """
    pool = ThreadPoolExecutor(_READERS, thread_name_prefix=_THREAD_NAME)
    pending: collections.deque[Future[Batch]] = collections.deque()
    try:
        for step in steps:
            pending.append(pool.submit(read, step))
            if len(pending) == _READERS + _AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read_with_tf_data(
    tf: ModuleType, read: Callable[[int], Batch], steps: range, dtypes: Mapping[str, np.dtype]
) -> Iterator[Batch]:
    """As `_read_with_threads`, by tf.data."""
    failures: list[Exception] = []

    def read_columns(step: np.int64) -> list[np.ndarray]:
        try:
            batch = read(int(step))
        except Exception as error:  # tf.data wraps it in an error of its own: kept, to be raised as it was
            failures.append(error)
            raise
        return [batch[f] for f in dtypes]

    types = [tf.as_dtype(dtype) for dtype in dtypes.values()]
    dataset = (
        tf.data.Dataset.range(steps.start, steps.stop)
        .map(
            lambda step: tf.numpy_function(read_columns, [step], types),
            num_parallel_calls=_READERS,
            deterministic=True,
        )
        .prefetch(_AHEAD)
    )
    options = tf.data.Options()
    options.threading.private_threadpool_size = _READERS
    options.autotune.enabled = False
    try:
        for columns in dataset.with_options(options).as_numpy_iterator():
            yield dict(zip(dtypes, columns))
    except tf.errors.OpError:
        if failures:
            raise failures[0] from None
        raise


def local_rows(sharding: jax.sharding.Sharding, batch_size: int) -> np.ndarray:
    """Rows of a global batch that this process's devices hold, in ascending order; int64."""
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in slices]))


class DeviceBatches:
    """Host batches, each with the rows that `local_rows` gives in that order, as global arrays on the devices.

    A batch is fetched when it is requested, which is after the step on the previous batch was dispatched: JAX runs
    that step while the host waits for input and copies it. Reading ahead is left to `host_batches`.

    Attributes:
      waited_s: seconds that `next` waited for host batches so far. The devices may have been computing meanwhile, so
        this is an upper bound on their idle time.
    """

    def __init__(self, batches: Iterator[Batch], sharding: jax.sharding.Sharding):
        self._batches = batches
        self._sharding = sharding
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[dict[str, jax.Array]]:
        return self

    def __next__(self) -> dict[str, jax.Array]:
        started = time.perf_counter()
        batch = next(self._batches)
        self.waited_s += time.perf_counter() - started
        return {k: self._put(v) for k, v in batch.items()}

    def _put(self, values: np.ndarray) -> jax.Array:
        """The global array of which `values` are this process's rows."""
        count = self._sharding.num_devices
        batch_size = len(values) * count // len(local_rows(self._sharding, count))
        rows = local_rows(self._sharding, batch_size)

        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(batch_size)
            first = np.searchsorted(rows, start)
            return values[first : first + stop - start]

        return jax.make_array_from_callback((batch_size, *values.shape[1:]), self._sharding, shard)


def write_tfrecord(prepared: Readable, split: str, features: Sequence[str], path: str) -> None:
    """Writes a split as one TFRecord file, the form that most projects read, for `fusionx bench input`.

    Raises:
      InputError: TensorFlow is not installed.
    """
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
    path: str, prepared: Readable, features: Sequence[str], batch_size: int, passes: int = 1
) -> Iterator[Batch]:
    """The input pipeline of most projects: a file in order, a shuffle buffer, parallel parsing and decoding.

    Raises:
      InputError: TensorFlow is not installed.
    """
    tf = _tensorflow()
    layout = {f: tf.io.FixedLenFeature([], tf.string) for f in features}
    shapes = {f: (m.height, m.width, len(m.bands)) for f, m in prepared.contract.modalities.items()}
    dataset = (
        tf.data.TFRecordDataset(path)
        .shuffle(_SHUFFLE_BUFFER)
        .repeat(passes)
        .map(
            lambda record: {
                f: tf.reshape(tf.io.decode_raw(v, tf.uint16), shapes[f])
                for f, v in tf.io.parse_single_example(record, layout).items()
            },
            num_parallel_calls=tf.data.AUTOTUNE,
        )
    )
    return dataset.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def _tensorflow_if_installed() -> ModuleType | None:
    """TensorFlow, kept off the accelerator that JAX computes on; None where it is not installed."""
    # Its start-up messages would hide ours; errors are still printed.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow as tf
    except ImportError:
        return None
    tf.config.set_visible_devices([], "GPU")
    return tf


def has_tensorflow() -> bool:
    """Whether TensorFlow is installed, so that tf.data and TFRecord can be read."""
    return _tensorflow_if_installed() is not None


def _tensorflow() -> ModuleType:
    tf = _tensorflow_if_installed()
    if tf is None:
        raise _tensorflow_missing()
    return tf


def _tensorflow_missing() -> InputError:
    return InputError("This needs tf.data, and TensorFlow is not installed; `pip install tensorflow-cpu`.")

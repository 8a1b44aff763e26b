"""tf.data around tiles.py: parallel reads, prefetch, devices. The only TensorFlow in the data path.

One element is one batch, addressed by its step; tf.data only reads ahead on several threads and keeps the order. So
there is no iterator state to save: starting at step s gives exactly the batches from s on.
"""

import os
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from fusionx_jax import tiles
from fusionx_jax.contract import InputError

_READERS = 2  # batches read at once: one being copied, one waiting for the disk
_AHEAD = 2  # batches kept ready


def host_batches(
    prepared: tiles.PreparedSet,
    split: str,
    features: Sequence[str],
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """This host's share of the global batches of steps `start_step` to `stop_step`, numeric features only.

    Raises:
      InputError: the set cannot be read, or TensorFlow is not installed.
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
    # TensorFlow must not take the accelerator that JAX computes on.
    tf.config.set_visible_devices([], "GPU")
    size = prepared.size(split)
    failures: list[Exception] = []

    def read(step):
        try:
            indices = tiles.batch_indices(seed, int(step), batch_size, size)
            share = tiles.host_share(indices, process_index, process_count)
            batch = prepared.read(split, share, features)
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


class DeviceBatches:
    """Puts host batches on the devices, one ahead, and measures the time spent waiting for input."""

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
        return {k: jax.make_array_from_process_local_data(self._sharding, v) for k, v in batch.items()}

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, jax.Array]:
        current = self._next
        if current is None:
            raise StopIteration
        self._next = self._fetch()
        return current

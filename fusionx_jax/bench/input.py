"""`fusionx bench input`: the input pipeline against TFRecord with a shuffle buffer and a memmap gather."""

import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterator

import jax
import numpy as np

from fusionx_jax import contract as contract_lib
from fusionx_jax import modalities, progress
from fusionx_jax.bench import process
from fusionx_jax.bench.rates import Turn, rates
from fusionx_jax.errors import InputError, RunError
from fusionx_jax.prepared import order, pipeline, store
from fusionx_jax.types import JsonObject

_PASSES = 4  # over the tiles in one turn: starting a pipeline must not count as reading
_SENSORS = {m.name: m for m in (modalities.SENTINEL1_RTC, modalities.SENTINEL2_L2A)}


def write_random_set(directory: str, count: int, size: int) -> None:
    """A prepared set of random tiles, one split, as `data.prepare` would write it.

    Raises:
      RunError: the disk is full.
    """
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    rng = np.random.default_rng(0)
    name = "bench"
    try:
        writer = array_record_module.ArrayRecordWriter(
            os.path.join(directory, f"{name}-train.array_record-00000-of-00001"), "group_size:1,uncompressed"
        )
        for i in range(count):
            example = tf_example_pb2.Example()
            for key, sensor in _SENSORS.items():
                tile = rng.integers(0, 10_000, (size, size, len(sensor.bands)), np.uint16)
                example.features.feature[key].bytes_list.value.append(tile.tobytes())
            example.features.feature["id"].bytes_list.value.append(f"bench-{i}".encode())
            writer.write(example.SerializeToString(deterministic=True))
        writer.close()
    except RuntimeError as error:
        raise RunError(f"The tiles cannot be written to {directory} ({error}); give --tmp a larger disk.") from error
    mods = {
        key: contract_lib.of_modality(
            sensor, gsd_m=10.0, side=size, mean=[0.0] * len(sensor.bands), std=[1.0] * len(sensor.bands)
        )
        for key, sensor in _SENSORS.items()
    }
    made = contract_lib.Contract(
        name=name,
        simulated=True,
        modalities=mods,
        tasks={},
        splits={"train": count},
        split_origin="none",
        license="none",
        citation="random numbers",
        source_version="random numbers",
    )
    with open(os.path.join(directory, "dataset_info.json"), "w", encoding="utf-8") as f:
        json.dump({"name": name, "splits": [{"name": "train", "shardLengths": [str(count)]}]}, f)
    with open(os.path.join(directory, contract_lib.FILE_NAME), "w", encoding="utf-8") as f:
        f.write(made.to_json())


def run(tiles: int, tile_size: int, batch_size: int, rounds: int, tmp: str | None) -> JsonObject:
    """Pairs per second, decoded and on the device: our pipeline, TFRecord with a shuffle buffer, a memmap gather.

    Args:
      tiles: pairs in the set.
      tile_size: side of a tile, pixels.
      rounds: turns of each pipeline.
      tmp: folder for the tiles; None: the system's.

    Raises:
      InputError: too few tiles or rounds.
      RunError: the disk is full.
    """
    if tiles < batch_size * 4 or batch_size < 1 or rounds < 1:
        raise InputError(
            f"--tiles is {tiles}, --batch_size {batch_size} and --rounds {rounds}; at least four "
            "batches of tiles and one round are needed."
        )
    with tempfile.TemporaryDirectory(dir=tmp, prefix="fusionx-bench-") as folder:
        progress.logger.info("Writing %d random pairs of %d px in three forms to %s.", tiles, tile_size, folder)
        write_random_set(folder, tiles, tile_size)
        contestants = Contestants(folder, tiles, batch_size)
        # Measured alone, before a shuffle buffer fills and empties.
        growth = contestants.memory_growth()
        found = rates(contestants.turns(), rounds)
    tfrecord = found.get("tfrecord_shuffle")
    return {
        "pairs_per_s": found["ours"],
        "tfrecord_shuffle_pairs_per_s": tfrecord,
        "memmap_gather_pairs_per_s": found["memmap_gather"],
        "vs_tfrecord_shuffle": found["ours"] / tfrecord if tfrecord else None,
        "vs_memmap_gather": found["ours"] / found["memmap_gather"],
        "memory_growth_bytes": growth,
        "pair_bytes": sum(tile_size**2 * 2 * len(s.bands) for s in _SENSORS.values()),
        "page_cache": "warm in all cases",
        "reader": "tf.data" if pipeline.has_tensorflow() else "threads",
        "device": str(jax.local_devices()[0].device_kind),
        "cores": os.cpu_count(),
    }


class Contestants:
    """The prepared set in `folder` in the three forms that are compared, read by turns of `_PASSES` passes."""

    def __init__(self, folder: str, tiles: int, batch_size: int):
        self._prepared = store.PreparedSet(folder)
        self._tiles, self._batch_size = tiles, batch_size
        self._batches = _PASSES * (tiles // batch_size)
        self._starts = itertools.count(0, self._batches)
        self._sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        self._arrays = _memmaps(self._prepared, folder, tiles)
        self._records = os.path.join(folder, "tiles.tfrecord")
        if pipeline.has_tensorflow():
            pipeline.write_tfrecord(self._prepared, "train", tuple(_SENSORS), self._records)

    def turns(self) -> dict[str, Turn]:
        """The pipelines to compare; without TensorFlow none reads TFRecord."""
        out: dict[str, Turn] = {"ours": self.ours}
        if pipeline.has_tensorflow():
            out["tfrecord_shuffle"] = self.tfrecord_shuffle
        return out | {"memmap_gather": self.memmap_gather}

    def ours(self) -> float:
        return self._drain(self._our_batches())

    def tfrecord_shuffle(self) -> float:
        source = pipeline.tfrecord_batches(self._records, self._prepared, tuple(_SENSORS), self._batch_size, _PASSES)
        return self._drain(source)

    def memmap_gather(self) -> float:
        start = next(self._starts)
        for step in range(start, start + self._batches):
            index = order.batch_indices(0, step, self._batch_size, self._tiles)
            for array in self._arrays.values():
                array.take(index, axis=0)
        return float(self._batches * self._batch_size)

    def memory_growth(self) -> int:
        """Bytes by which the process grows from the second quarter of a turn of our pipeline to the last."""
        memory: list[int] = []
        self._drain(self._our_batches(), after_batch=lambda: memory.append(process.memory("RssAnon")))
        quarter = len(memory) // 4
        return int(np.median(memory[-quarter:]) - np.median(memory[quarter : 2 * quarter]))

    def _our_batches(self) -> Iterator[dict[str, np.ndarray]]:
        start = next(self._starts)
        return pipeline.host_batches(
            self._prepared,
            "train",
            tuple(_SENSORS),
            batch_size=self._batch_size,
            seed=0,
            start_step=start,
            stop_step=start + self._batches,
        )

    def _drain(self, source: Iterator[dict[str, np.ndarray]], after_batch: Callable[[], None] = lambda: None) -> float:
        count = 0.0
        for batch in pipeline.DeviceBatches(source, self._sharding):
            jax.block_until_ready(batch)
            count += self._batch_size
            after_batch()
        return count


def _memmaps(prepared: store.PreparedSet, folder: str, count: int) -> dict[str, np.ndarray]:
    """The same tiles as memory-mapped arrays, in the prepared set's order."""
    arrays: dict[str, np.ndarray] = {}
    for key in _SENSORS:
        shape = prepared.read("train", [0], [key])[key].shape[1:]
        path = os.path.join(folder, f"{key}.npy")
        arrays[key] = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint16, shape=(count, *shape))
        for start in range(0, count, 64):
            index = np.arange(start, min(start + 64, count))
            arrays[key][index] = prepared.read("train", index, [key])[key]
    return arrays

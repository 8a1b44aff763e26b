"""Plans and writes the shards of a prepared set: one array_record file and its statistics each.

Records are TFDS-encoded `tf.train.Example`s in uncompressed array_records of group size 1 (random access), with
`encoding="bytes"` tensors, so that `tfds.builder_from_directory` reads them. No TensorFlow is needed to write them.
"""

import contextlib
import dataclasses
import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Protocol

import numpy as np

from data.source import BadTile, Description, LeftOut, Source
from data.tile_statistics import Accumulator, ShardStatistics
from fusionx_jax import files
from fusionx_jax import modalities as modalities_lib
from fusionx_jax.contract import ACQUIRED
from fusionx_jax.errors import InputError
from fusionx_jax.types import Example, Untyped

WORK_DIR = "preparing"
"""Folder in an unfinished set for what only the preparation needs; removed at the end."""
TEMPORARY = ".tmp-"
"""Prefix of files that are being written."""

_RECORD_OPTIONS = "group_size:1,uncompressed"
_SHARD_BYTES = 64 << 20  # a worker writes one in a few seconds, which bounds what an interruption costs
_MAX_SHARDS = 256  # readers keep shards open: half a million tiles must not become thousands of files
_RECORD_OVERHEAD = 512  # upper bound of a record's bytes besides its tiles
_REPORT_EVERY = 8  # tiles between two reports of progress, each of which is a call to another process


@dataclasses.dataclass(frozen=True)
class Shard:
    """Examples `start` to `stop` (exclusive) of a split, and the file they are written to."""

    split: str
    start: int
    stop: int
    filename: str

    @property
    def size(self) -> int:
        return self.stop - self.start


class Progress(Protocol):
    """Receives the number of examples that were processed since the last call."""

    def __call__(self, count: int) -> None: ...


def tile_bytes(description: Description) -> int:
    """Approximate size of one record in bytes."""
    pixels = description.tile_size**2
    channels = sum(len(sensor.bands) for _, _, sensor in description.features())
    labels = sum(t.kind == "pixel" for t in description.tasks.values())
    return pixels * (2 * channels + labels) + _RECORD_OVERHEAD


def plan_shards(description: Description, splits: Mapping[str, int]) -> list[Shard]:
    """Divides each split into shards of about equal size."""
    size = tile_bytes(description)
    per_shard = max(1, max(_SHARD_BYTES, sum(splits.values()) * size // _MAX_SHARDS) // size)
    shards = []
    for split, total in splits.items():
        count = max(1, math.ceil(total / per_shard))
        edges = [total * i // count for i in range(count + 1)]
        for i in range(count):
            name = f"{description.name}-{split}.array_record-{i:05d}-of-{count:05d}"
            shards.append(Shard(split, edges[i], edges[i + 1], name))
    return shards


def statistics_path(directory: str, shard: Shard) -> str:
    """Where the statistics of a shard are kept until the set is complete."""
    return os.path.join(directory, WORK_DIR, f"{shard.filename}.json")


def write_shard(source: Source, directory: str, shard: Shard, progress: Progress | None = None) -> ShardStatistics:
    """Writes one shard and its statistics under their final names, or neither. A pure function of its arguments.

    Raises:
      InputError: an example does not fit the description of the source.
      OSError: the disk is full.
    """
    description = source.describe()
    accumulator = Accumulator(description)
    left_out: list[LeftOut] = []
    temporary = os.path.join(directory, f"{TEMPORARY}{os.getpid()}-{shard.filename}")
    try:
        with _RecordFile(temporary) as file:
            for index in _reporting(shard, progress):
                try:
                    example = source.example(shard.split, index)
                    wire = encode_example(example, description)
                except BadTile as bad:
                    left_out.append(LeftOut(f"{shard.split}/{index}", bad.kind, bad.detail))
                    continue
                record = _serialize(wire)
                file.write(record)
                accumulator.add(example, wire, len(record))
        statistics = accumulator.result(left_out)
        with files.replacing(statistics_path(directory, shard)) as f:
            f.write(statistics.to_json())
        os.replace(temporary, os.path.join(directory, shard.filename))
        return statistics
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def _reporting(shard: Shard, progress: Progress | None) -> Iterator[int]:
    """The indices of a shard; reports progress every few of them."""
    done = 0
    for index in range(shard.start, shard.stop):
        yield index
        done += 1
        if progress is not None and (done == _REPORT_EVERY or index + 1 == shard.stop):
            progress(done)
            done = 0


class _RecordFile:
    """An array_record file that is being written."""

    def __init__(self, path: str):
        from array_record.python import array_record_module

        self._path, self._bytes = path, 0
        with _as_full_disk(path):
            self._writer = array_record_module.ArrayRecordWriter(path, _RECORD_OPTIONS)

    def write(self, record: bytes) -> None:
        with _as_full_disk(self._path):
            self._writer.write(record)
        self._bytes += len(record)

    def __enter__(self) -> "_RecordFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _as_full_disk(self._path):
            self._writer.close()
        if kind is None and os.path.getsize(self._path) < self._bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)


@contextlib.contextmanager
def _as_full_disk(path: str) -> Iterator[None]:
    """array_record reports a failed write as RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({error})", path) from error


def encode_example(example: Mapping[str, Untyped], description: Description) -> Example:
    """A physical example as it is stored: uint16 tiles, uint8 labels, integers and bytes.

    A pixel without data in one band of a modality is stored without data in all of its bands.

    Raises:
      InputError: a tile has another shape than the description states.
    """
    wire: Example = {}
    for feature, name, modality in description.features():
        expected = (description.tile_size, description.tile_size, len(modality.bands))
        if feature != name and feature not in example:
            wire[feature] = np.full(expected, modalities_lib.NODATA, np.uint16)
            continue
        tile = np.asarray(example[feature])
        if tile.shape != expected:
            raise InputError(
                f"{example['id']}: the {feature} tile has shape {tile.shape}, expected {expected} as in the others."
            )
        coded = modality.encode(tile)
        coded[(coded == modalities_lib.NODATA).any(-1)] = modalities_lib.NODATA
        wire[feature] = coded
    for task in description.tasks.values():
        value = example[task.feature]
        wire[task.feature] = int(value) if task.kind == "single" else np.asarray(value, np.uint8)
    wire["id"] = example["id"].encode()
    if description.has_group:
        wire["group"] = example["group"].encode()
    if description.has_dates:
        wire[ACQUIRED] = json.dumps(example[ACQUIRED], sort_keys=True).encode()
    if description.has_location:
        wire["location"] = np.asarray(example["location"], np.float32)
    return wire


def _serialize(wire: Mapping[str, Untyped]) -> bytes:
    """An encoded example as a `tf.train.Example`."""
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    for key, value in wire.items():
        feature = example.features.feature[key]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        elif isinstance(value, int):
            feature.int64_list.value.append(value)
        else:
            feature.bytes_list.value.append(np.ascontiguousarray(value).tobytes())
    return example.SerializeToString(deterministic=True)  # otherwise the order of keys differs between processes

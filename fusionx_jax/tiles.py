"""Order as a pure function of (seed, step), and reading of prepared tiles by index. No TensorFlow.

The order is a format-preserving permutation of the indices (a Feistel network with cycle walking, after Black &
Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002): each epoch visits every tile once, and the batch of
any step is computed in O(batch) without walking there, so that a resume at step 10^6 costs nothing.
"""

import json
import os
import threading
from collections.abc import Sequence

import numpy as np

from fusionx_jax import contract as contract_lib
from fusionx_jax.contract import InputError

_ROUNDS = 6
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # SplitMix64


def _hash(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser on uint64 arrays (Steele, Lea & Flood, OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        x = x + _MIX[0]
        x = (x ^ (x >> np.uint64(30))) * _MIX[1]
        x = (x ^ (x >> np.uint64(27))) * _MIX[2]
        return x ^ (x >> np.uint64(31))


def permute(position: np.ndarray, size: int, seed: int, epoch: np.ndarray) -> np.ndarray:
    """Where each position 0..size-1 of its epoch falls under that epoch's permutation of range(size).

    Args:
      position, epoch: int64 arrays of one shape. Returns int64 of that shape.
    """
    half = max(1, ((max(size - 1, 1)).bit_length() + 1) // 2)
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    key = _hash(_hash(np.full(position.shape, seed, np.uint64)) ^ epoch.astype(np.uint64))
    out = position.astype(np.uint64)
    todo = np.ones(position.shape, bool)
    while todo.any():  # cycle walking: the domain is at most 4 times as large as `size`
        left, right = out[todo] >> shift, out[todo] & mask
        for i in range(_ROUNDS):
            left, right = right, left ^ (_hash(right ^ key[todo] ^ np.uint64(i << 56)) & mask)
        out[todo] = (left << shift) | right
        todo &= out >= np.uint64(size)
    return out.astype(np.int64)


def batch_indices(seed: int, step: int, batch_size: int, size: int) -> np.ndarray:
    """Tile indices [batch_size] of the global batch of `step`: a pure function of its arguments."""
    place = np.int64(step) * batch_size + np.arange(batch_size, dtype=np.int64)
    return permute(place % size, size, seed, place // size)


def host_share(indices: np.ndarray, process_index: int, process_count: int) -> np.ndarray:
    """The contiguous slice of a global batch that one of `process_count` hosts reads.

    Raises:
      InputError: the batch does not divide among the hosts.
    """
    if len(indices) % process_count:
        raise InputError(
            f"batch_size is {len(indices)}, which does not divide among {process_count} processes; make it a multiple."
        )
    per_host = len(indices) // process_count
    return indices[process_index * per_host : (process_index + 1) * per_host]


class PreparedSet:
    """Random access to the tiles of a prepared set (see data/writer.py for how one is written)."""

    def __init__(self, directory: str | os.PathLike):
        """Reads the contract and the shard list; shards are opened when first read.

        Raises:
          InputError: the directory is not a complete prepared set, or a shard is missing or truncated.
        """
        self.directory = os.fspath(directory)
        self.contract = contract_lib.load(directory)
        info_path = os.path.join(self.directory, "dataset_info.json")
        try:
            with open(info_path, encoding="utf-8") as f:
                info = json.load(f)
            lengths = {s["name"]: [int(n) for n in s["shardLengths"]] for s in info["splits"]}
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{info_path} is missing or damaged ({error}); prepare the set again.") from error
        self._shards: dict[str, list[str]] = {}
        self._edges: dict[str, np.ndarray] = {}
        for split, sizes in lengths.items():
            if sum(sizes) != self.contract.splits.get(split):
                raise InputError(
                    f"{info_path} says {sum(sizes)} tiles in {split}, the contract beside it "
                    f"{self.contract.splits.get(split)}; the folder mixes two sets: prepare it again."
                )
            self._edges[split] = np.cumsum([0, *sizes])
            names = [f"{info['name']}-{split}.array_record-{i:05d}-of-{len(sizes):05d}" for i in range(len(sizes))]
            self._shards[split] = [os.path.join(self.directory, n) for n in names]
            missing = [n for n, path in zip(names, self._shards[split]) if not os.path.isfile(path)]
            if missing:
                raise InputError(
                    f"{self.directory} lacks {len(missing)} shard(s), the first being {missing[0]}; copy the set "
                    "again, or prepare it again."
                )
        self._readers = threading.local()

    def size(self, split: str) -> int:
        """Number of tiles of a split.

        Raises:
          InputError: there is no such split, or it is empty.
        """
        size = self.contract.splits.get(split, 0)
        if not size:
            raise InputError(
                f"The prepared set {self.directory} has no tiles in the split {split!r} "
                f"(splits: {dict(self.contract.splits)})."
            )
        return size

    def _reader(self, path: str, expected: int):
        from array_record.python import array_record_module

        readers = self._readers.__dict__.setdefault("open", {})
        if path not in readers:
            try:
                reader = array_record_module.ArrayRecordReader(path, "readahead_buffer_size:0,max_parallelism:0")
                count = reader.num_records()
            except (RuntimeError, ValueError) as error:
                raise InputError(
                    f"{path} cannot be read ({error}); it is truncated or damaged: prepare the set again."
                ) from error
            if count != expected:
                raise InputError(
                    f"{path} holds {count} records, expected {expected}; it is truncated: prepare the set again."
                )
            readers[path] = reader
        return readers[path]

    def read(self, split: str, indices: Sequence[int] | np.ndarray, features: Sequence[str]) -> dict[str, np.ndarray]:
        """The named features of the given tiles, stacked in the order of `indices`.

        Tiles are uint16 [N, H, W, C], "multi" labels uint8 [N, K], "single" int64 [N], pixel labels uint8
        [N, H, W], "id" and "group" arrays of str, "location" float32 [N, 2].

        Raises:
          InputError: an index is out of range, a feature is absent, a record is damaged.
        """
        from tensorflow_datasets.proto import tf_example_pb2

        indices = np.asarray(indices, np.int64)
        size = self.size(split)
        if len(indices) and (indices.min() < 0 or indices.max() >= size):
            raise InputError(f"Tile index {indices.max()} is outside the split {split!r} of {size} tiles.")
        edges = self._edges[split]
        shard_of = np.searchsorted(edges, indices, side="right") - 1
        out: dict[str, list] = {f: [None] * len(indices) for f in features}
        for shard in np.unique(shard_of):
            path = self._shards[split][shard]
            where = np.flatnonzero(shard_of == shard)
            reader = self._reader(path, int(edges[shard + 1] - edges[shard]))
            try:
                records = reader.read([int(i) for i in indices[where] - edges[shard]])
            except (RuntimeError, ValueError) as error:
                raise InputError(f"{path} cannot be read ({error}); it is damaged: prepare the set again.") from error
            for place, record in zip(where, records):
                stored = tf_example_pb2.Example.FromString(record).features.feature
                for feature in features:
                    out[feature][place] = self._decode(feature, stored, path)
        return {f: np.stack(v) if len(v) else np.zeros(0) for f, v in out.items()}

    def _decode(self, feature: str, stored, path: str):
        if feature not in stored:
            raise InputError(f"{path} has no feature {feature!r}; it has {', '.join(sorted(stored))}.")
        value = stored[feature]
        if value.int64_list.value:
            return np.int64(value.int64_list.value[0])
        raw = value.bytes_list.value[0]
        if feature in ("id", self.contract.group_feature):
            return np.str_(raw.decode())
        shape, dtype = self._layout(feature)
        if len(raw) != int(np.prod(shape)) * np.dtype(dtype).itemsize:
            raise InputError(
                f"{path}: feature {feature!r} holds {len(raw)} bytes, expected {dtype} of shape {shape} as the "
                "contract says; the contract or the shard was changed: prepare the set again."
            )
        return np.frombuffer(raw, dtype).reshape(shape)

    def _layout(self, feature: str) -> tuple[tuple[int, ...], str]:
        m = self.contract.modalities.get(feature)
        if m:
            return (m.height, m.width, len(m.bands)), "uint16"
        if feature == "location":
            return (2,), "float32"
        task = next(t for t in self.contract.tasks.values() if t.feature == feature)
        if task.kind == "multi":
            return (len(task.classes),), "uint8"
        any_modality = next(iter(self.contract.modalities.values()))
        return (any_modality.height, any_modality.width), "uint8"

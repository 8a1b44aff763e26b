"""Random access to the tiles of a prepared set by index. No TensorFlow."""

import collections
import contextlib
import functools
import json
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusionx_jax import contract as contract_lib
from fusionx_jax.errors import InputError
from fusionx_jax.prepared import shards
from fusionx_jax.prepared.order import batch_indices
from fusionx_jax.prepared.records import example_fields
from fusionx_jax.prepared.remote import is_remote, local_file

_HEADER = 12  # bytes before a feature that hold its key, tags and lengths
_DAMAGED = "it is truncated or damaged: prepare the set again."


def _aligned(shape: Sequence[int], dtype: str) -> np.ndarray:
    """An empty array on a 64-byte boundary, which TensorFlow and JAX take over without copying."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size].view(dtype).reshape(shape)


@functools.cache
def _most_open() -> int:
    """How many shards of a set stay open: a share of the files this process may open, raised where that is allowed."""
    try:
        import resource
    except ImportError:  # not a Unix
        return 64
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > soft:
        wanted = min(hard, 8192) if hard != resource.RLIM_INFINITY else 8192
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
            soft = max(soft, wanted)
    return max(8, soft // 4)


class PreparedSet:
    """Random access to the tiles of a prepared set (see data/writer.py for how one is written)."""

    def __init__(self, directory: str | os.PathLike, verify: bool = False):
        """Reads the contract and the shard list; shards are opened when first read.

        `verify` checks the checksum of every record that is read, at a third of the speed.

        Raises:
          InputError: the directory is not a complete prepared set, or a shard is missing or truncated.
        """
        self.directory = os.fspath(directory)
        if is_remote(self.directory):
            self.contract = contract_lib.read(local_file(self.directory, contract_lib.FILE_NAME))
        else:
            self.contract = contract_lib.load(directory)
        info_path = local_file(self.directory, "dataset_info.json")
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
            self._shards[split] = names
            here = () if is_remote(self.directory) else names  # shards elsewhere are fetched when first read
            missing = [n for n in here if not os.path.isfile(os.path.join(self.directory, n))]
            if missing:
                raise InputError(
                    f"{self.directory} lacks {len(missing)} shard(s), the first being {missing[0]}; copy the set "
                    "again, or prepare it again."
                )
        self._open: collections.OrderedDict[str, Any] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._verify = verify

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

    def order(self, split: str, seed: int, step: int, batch_size: int) -> np.ndarray:
        """Tile indices of the global batch of `step`: a pure function of its arguments."""
        return batch_indices(seed, step, batch_size, self.size(split))

    def _shard(self, name: str, expected: int) -> shards.Shard | shards.LibraryShard:
        with self._lock:
            if name in self._open:
                self._open.move_to_end(name)
                return self._open[name]
            path = local_file(self.directory, name)
            try:
                opened = shards.open_shard(path, expected, self._verify)
            except ValueError as error:
                raise InputError(f"{path} cannot be read ({error}); {_DAMAGED}") from error
            except OSError as error:
                raise InputError(
                    f"{path} cannot be opened ({error.strerror}); check its permissions and the limit of open files."
                ) from error
            if len(self._open) >= _most_open():
                self._open.popitem(last=False)  # closed when no thread reads from it any more
            self._open[name] = opened
            return opened

    def read(self, split: str, indices: Sequence[int] | np.ndarray, features: Sequence[str]) -> dict[str, np.ndarray]:
        """The named features of the given tiles, stacked in the order of `indices`.

        Tiles are uint16 [N, H, W, C], "multi" labels uint8 [N, K], "single" int64 [N], pixel labels uint8
        [N, H, W], "id" and "group" arrays of str, "location" float32 [N, 2].

        Raises:
          InputError: an index is out of range, a feature is absent, a record is damaged.
        """
        indices = np.asarray(indices, np.int64)
        size = self.size(split)
        if len(indices) and (indices.min() < 0 or indices.max() >= size):
            raise InputError(f"Tile index {indices.max()} is outside the split {split!r} of {size} tiles.")
        edges = self._edges[split]
        shard_of = np.searchsorted(edges, indices, side="right") - 1
        out = {f: self._empty(f, len(indices)) for f in features}
        for shard in np.unique(shard_of):
            name = self._shards[split][shard]
            where = np.flatnonzero(shard_of == shard)
            shard_file = self._shard(name, int(edges[shard + 1] - edges[shard]))
            numbers = (indices[where] - edges[shard]).tolist()
            try:
                if isinstance(shard_file, shards.Shard) and all(
                    isinstance(v, np.ndarray) and v.ndim > 1 for v in out.values()
                ):
                    self._read_straight(shard_file, numbers, where.tolist(), out, name)
                else:
                    self._read_whole(shard_file, numbers, where.tolist(), out, name)
            except InputError:
                raise
            except (ValueError, IndexError) as error:
                raise InputError(f"{self._path(name)} cannot be read ({error}); {_DAMAGED}") from error
        return {f: np.array(v) if isinstance(v, list) else v for f, v in out.items()}

    def _read_whole(self, shard: Any, numbers: list[int], places: list[int], out: Mapping[str, Any], name: str) -> None:
        for place, record in zip(places, shard.read(numbers)):
            stored = example_fields(record)
            for feature, rows in out.items():
                self._decode(feature, record, stored, rows, place, name)

    def _read_straight(
        self, shard: shards.Shard, numbers: list[int], places: list[int], out: Mapping[str, np.ndarray], name: str
    ) -> None:
        """Reads tiles into the batch without a copy between.

        Records of a shard differ in the length of their texts only, and these stand first (keys are sorted, and "group"
        and "id" come before the rest), so features lie at fixed distances from the record's end. What surrounds them is
        read too and must be that of the first record; where it is not, the record is taken apart as a whole.
        """
        first = next(iter(shard.read([numbers[0]])))
        stored = example_fields(first)
        for feature, rows in out.items():  # refuses a feature that is not there or of another size
            self._decode(feature, first, stored, rows, places[0], name)
        order = sorted(out, key=lambda f: stored[f][0])
        distances = [len(first) - stored[f][0] for f in order]
        ends = [stored[f][0] + stored[f][1] for f in order]
        around = [bytes(first[max(0, stored[order[0]][0] - _HEADER) : stored[order[0]][0]])]
        around += [bytes(first[e : len(first) - d]) for e, d in zip(ends, [*distances[1:], 0])]
        rooms = [out[f].reshape(len(out[f]), -1).view(np.uint8) for f in order]
        for number, place in zip(numbers[1:], places[1:]):
            if shard.places[number][1] < distances[0]:
                self._read_whole(shard, [number], [place], out, name)
                continue
            gaps = shard.scatter(number, [(d, memoryview(room[place])) for room, d in zip(rooms, distances)])
            if gaps[0][-len(around[0]) :] != around[0] or any(g != a for g, a in zip(gaps[1:], around[1:])):
                self._read_whole(shard, [number], [place], out, name)

    def _path(self, name: str) -> str:
        return f"{self.directory.rstrip('/')}/{name}"

    def _empty(self, feature: str, count: int) -> np.ndarray | list[str]:
        """Room for a feature of `count` tiles; texts differ in length and stay a list until they are all there."""
        if feature in ("id", self.contract.group_feature):
            return [""] * count
        shape, dtype = self._layout(feature)
        return _aligned((count, *shape), dtype)

    def _decode(
        self, feature: str, record: bytes | memoryview, stored: Mapping[str, Any], out: Any, place: int, shard: str
    ) -> None:
        """Copies one feature of a record to its place in the batch."""
        found = stored.get(feature)
        if found is None:
            raise InputError(f"{self._path(shard)} has no feature {feature!r}; it has {', '.join(sorted(stored))}.")
        if isinstance(found, int):
            out[place] = found
            return
        start, length = found
        if isinstance(out, list):
            out[place] = str(record[start : start + length], "utf-8")
            return
        row = out[place]
        if length != row.nbytes:
            raise InputError(
                f"{self._path(shard)}: feature {feature!r} holds {length} bytes, expected {row.dtype} of shape "
                f"{row.shape} as the contract says; the contract or the shard was changed: prepare the set again."
            )
        row[...] = np.frombuffer(record, row.dtype, row.size, start).reshape(row.shape)

    def _layout(self, feature: str) -> tuple[tuple[int, ...], str]:
        m = self.contract.modalities.get(feature)
        if m:
            return (m.height, m.width, len(m.bands)), "uint16"
        if feature == "location":
            return (2,), "float32"
        task = next((t for t in self.contract.tasks.values() if t.feature == feature), None)
        if task is None:
            known = [*self.contract.modalities, *(t.feature for t in self.contract.tasks.values()), "id"]
            raise InputError(f"{self.directory} has no feature {feature!r}; it has {', '.join(known)}.")
        if task.kind == "multi":
            return (len(task.classes),), "uint8"
        if task.kind == "single":
            return (), "int64"
        any_modality = next(iter(self.contract.modalities.values()))
        return (any_modality.height, any_modality.width), "uint8"

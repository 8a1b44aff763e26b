"""Random access to the tiles of a prepared set by index. No TensorFlow."""

import collections
import contextlib
import functools
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fusionx_jax import contract as contract_lib
from fusionx_jax import files
from fusionx_jax.contract import ACQUIRED
from fusionx_jax.errors import InputError
from fusionx_jax.prepared import shards
from fusionx_jax.prepared.order import batch_indices, parts
from fusionx_jax.prepared.records import ByteRange, example_fields
from fusionx_jax.prepared.remote import local_file

_HEADER = 12  # bytes before a feature's value that hold its key, tags and lengths
_ALIGNMENT = 64  # bytes; TensorFlow and JAX take over arrays that are aligned to it without copying
_DAMAGED = "it is truncated or damaged: prepare the set again."

_Columns = Mapping[str, np.ndarray | list[str]]
"""The batch that is being read: arrays to fill by feature, lists for texts."""


def _aligned(shape: Sequence[int], dtype: str) -> np.ndarray:
    """An uninitialized array on an aligned address."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer = np.empty(size + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)


@functools.cache
def _max_open() -> int:
    """How many shards of a set stay open: a quarter of the files this process may open, its soft limit raised."""
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


class _ShardFile(NamedTuple):
    """A shard that is open, and its name in error messages."""

    reader: shards.Shard | shards.LibraryShard
    path: str


class _Rows(NamedTuple):
    """Records to read from a shard, and the rows of the batch that they fill."""

    numbers: list[int]
    places: list[int]


class _Layout(NamedTuple):
    """Shape and type of one tile's feature."""

    shape: tuple[int, ...]
    dtype: str


class PreparedSet:
    """Random access to the tiles of a prepared set (data/writer.py writes them)."""

    def __init__(self, directory: str | os.PathLike, verify: bool = False):
        """Reads the contract and the list of shards; a shard is opened when it is first read.

        Args:
          directory: path or address (gs://, s3://, memory://) of the set.
          verify: verify the checksum of every record that is read, at a third of the speed.

        Raises:
          InputError: the directory is not a complete prepared set, or a shard is missing.
        """
        self.directory = os.fspath(directory)
        self._verify = verify
        self.contract = _load_contract(self.directory)
        self._shards, self._edges = _list_shards(self.directory, self.contract)
        self._open: collections.OrderedDict[str, shards.Shard | shards.LibraryShard] = collections.OrderedDict()
        self._lock = threading.Lock()

    def size(self, split: str) -> int:
        """Number of tiles of a split.

        Raises:
          InputError: the split does not exist or is empty.
        """
        size = self.contract.splits.get(split, 0)
        if not size:
            raise InputError(
                f"The prepared set {self.directory} has no tiles in the split {split!r} "
                f"(splits: {dict(self.contract.splits)})."
            )
        return size

    def shard_sizes(self) -> dict[str, int]:
        """The number of records of each shard by its file name."""
        return {
            name: int(count)
            for split, names in self._shards.items()
            for name, count in zip(names, np.diff(self._edges[split]))
        }

    def order(self, split: str, seed: int, step: int, batch_size: int) -> np.ndarray:
        """Tile indices of the global batch of `step`: a pure function of its arguments."""
        return batch_indices(seed, step, batch_size, self.size(split))

    def read(self, split: str, indices: Sequence[int] | np.ndarray, features: Sequence[str]) -> dict[str, np.ndarray]:
        """The named features of the given tiles, stacked in the order of `indices`.

        Tiles are uint16 [N, H, W, C], "multi" labels uint8 [N, K], "single" int64 [N], pixel labels uint8
        [N, H, W], "id", "group" and "acquired" arrays of str, "location" float32 [N, 2]. Further acquisitions of a
        modality are features of their own, see `contract.acquisition`.

        Raises:
          InputError: an index is out of range, a feature is missing, or a record is damaged.
        """
        indices = np.asarray(indices, np.int64)
        size = self.size(split)
        if len(indices) and (indices.min() < 0 or indices.max() >= size):
            raise InputError(f"Tile index {indices.max()} is outside the split {split!r} of {size} tiles.")
        edges = self._edges[split]
        columns = {f: self._empty(f, len(indices)) for f in features}
        for shard, places, numbers in parts(edges, indices):
            rows = _Rows(numbers.tolist(), places.tolist())
            self._read_shard(self._shards[split][shard], int(edges[shard + 1] - edges[shard]), rows, columns)
        return {f: np.array(v) if isinstance(v, list) else v for f, v in columns.items()}

    def _read_shard(self, name: str, count: int, rows: _Rows, columns: _Columns) -> None:
        file = self._open_shard(name, count)
        arrays = {f: v for f, v in columns.items() if isinstance(v, np.ndarray) and v.ndim > 1}
        try:
            if isinstance(file.reader, shards.Shard) and len(arrays) == len(columns):
                _read_in_place(file.reader, file, rows, arrays)
            else:
                _read_records(file, rows, columns)
        except InputError:
            raise
        except (ValueError, IndexError) as error:
            raise InputError(f"{file.path} cannot be read ({error}); {_DAMAGED}") from error

    def _open_shard(self, name: str, count: int) -> _ShardFile:
        shown = files.join(self.directory, name)
        with self._lock:
            if name in self._open:
                self._open.move_to_end(name)
                return _ShardFile(self._open[name], shown)
            path = local_file(self.directory, name)
            try:
                reader = shards.open_shard(path, count, self._verify)
            except ValueError as error:
                raise InputError(f"{path} cannot be read ({error}); {_DAMAGED}") from error
            except OSError as error:
                raise InputError(
                    f"{path} cannot be opened ({error.strerror}); check its permissions and the limit of open files."
                ) from error
            if len(self._open) >= _max_open():
                self._open.popitem(last=False)  # it is closed when no thread reads it any more
            self._open[name] = reader
            return _ShardFile(reader, shown)

    def _empty(self, feature: str, count: int) -> np.ndarray | list[str]:
        """An array to fill with a feature of `count` tiles; texts differ in length and are collected in a list."""
        if feature in ("id", self.contract.group_feature) or (feature == ACQUIRED and self.contract.has_dates):
            return [""] * count
        layout = self._layout(feature)
        return _aligned((count, *layout.shape), layout.dtype)

    def _layout(self, feature: str) -> _Layout:
        images = self.contract.features()
        m = images.get(feature)
        if m:
            return _Layout((m.height, m.width, len(m.bands)), "uint16")
        if feature == "location":
            return _Layout((2,), "float32")
        task = next((t for t in self.contract.tasks.values() if t.feature == feature), None)
        if task is None:
            known = [*images, *(t.feature for t in self.contract.tasks.values()), "id"]
            raise InputError(f"{self.directory} has no feature {feature!r}; it has {', '.join(known)}.")
        if task.kind == "multi":
            return _Layout((len(task.classes),), "uint8")
        if task.kind == "single":
            return _Layout((), "int64")
        first = next(iter(self.contract.modalities.values()))
        return _Layout((first.height, first.width), "uint8")


def _load_contract(directory: str) -> contract_lib.Contract:
    if files.is_address(directory):
        return contract_lib.read(local_file(directory, contract_lib.FILE_NAME))
    return contract_lib.load(directory)


def _list_shards(directory: str, contract: contract_lib.Contract) -> tuple[dict[str, list[str]], dict[str, np.ndarray]]:
    """File names of the shards by split, and the index of the first tile of each (and the number of all).

    Raises:
      InputError: the list is missing, does not fit the contract, or names a file that does not exist.
    """
    info_path = local_file(directory, "dataset_info.json")
    try:
        with open(info_path, encoding="utf-8") as f:
            info = json.load(f)
        lengths = {s["name"]: [int(n) for n in s["shardLengths"]] for s in info["splits"]}
        name = info["name"]
        if not re.fullmatch(r"\w+", name) or any(n < 0 for sizes in lengths.values() for n in sizes):
            raise ValueError(f"the name {name!r} or a number of records is wrong")
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"{info_path} is missing or damaged ({error}); prepare the set again.") from error
    absent = [s for s, size in contract.splits.items() if size and s not in lengths]
    if absent:
        raise InputError(
            f"{info_path} lists no shards of {absent[0]}, which the contract beside it has; the folder mixes two sets: "
            "prepare it again."
        )
    names: dict[str, list[str]] = {}
    for split, sizes in lengths.items():
        if sum(sizes) != contract.splits.get(split):
            raise InputError(
                f"{info_path} lists {sum(sizes)} tiles in {split}, the contract beside it "
                f"{contract.splits.get(split)}; the folder mixes two sets: prepare it again."
            )
        names[split] = [f"{name}-{split}.array_record-{i:05d}-of-{len(sizes):05d}" for i in range(len(sizes))]
        _check_present(directory, names[split])
    return names, {split: np.cumsum([0, *sizes]) for split, sizes in lengths.items()}


def _check_present(directory: str, names: Sequence[str]) -> None:
    if files.is_address(directory):  # shards at an address are fetched when they are first read
        return
    missing = [n for n in names if not os.path.isfile(os.path.join(directory, n))]
    if missing:
        raise InputError(
            f"{directory} lacks {len(missing)} shard(s), the first being {missing[0]}; copy the set again, or prepare "
            "it again."
        )


def _read_records(file: _ShardFile, rows: _Rows, columns: _Columns) -> None:
    """Reads whole records and copies their features into the batch."""
    records: Iterator[bytes | memoryview] = file.reader.read(rows.numbers)
    for place, record in zip(rows.places, records):
        _copy_features(record, place, columns, file.path)


def _copy_features(record: bytes | memoryview, place: int, columns: _Columns, path: str) -> None:
    fields = example_fields(record)
    for feature, column in columns.items():
        if feature not in fields:
            raise InputError(f"{path} has no feature {feature!r}; it has {', '.join(sorted(fields))}.")
        _copy_feature(feature, record, fields[feature], column, place, path)


def _copy_feature(
    feature: str,
    record: bytes | memoryview,
    field: ByteRange | int,
    column: np.ndarray | list[str],
    place: int,
    path: str,
) -> None:
    """Copies one feature of a record into row `place` of its column."""
    if isinstance(column, list):
        column[place] = str(field) if isinstance(field, int) else _text(record, field)
        return
    if isinstance(field, int):
        column[place] = field
        return
    row = column[place]
    if field.length != row.nbytes:
        raise InputError(
            f"{path}: feature {feature!r} has {field.length} bytes, but the contract describes {row.dtype} of shape "
            f"{row.shape}; the contract or the shard was changed: prepare the set again."
        )
    row[...] = np.frombuffer(record, row.dtype, row.size, field.start).reshape(row.shape)


def _text(record: bytes | memoryview, field: ByteRange) -> str:
    return str(record[field.start : field.start + field.length], "utf-8")


class _Template(NamedTuple):
    """Where the tiles of a shard's records are, taken from one of them.

    Attributes:
      features: in the order of the record.
      from_end: byte offset of each feature's first byte from the end of the record.
      between: the bytes before, between and after the features; those before are the first feature's header only.
    """

    features: list[str]
    from_end: list[int]
    between: list[bytes]


def _template(record: bytes | memoryview, features: Sequence[str]) -> _Template:
    fields = example_fields(record)
    ranges = {f: r for f in features if isinstance(r := fields[f], ByteRange)}
    ordered = sorted(ranges, key=lambda f: ranges[f].start)
    starts = [ranges[f].start for f in ordered]
    ends = [ranges[f].start + ranges[f].length for f in ordered]
    between = [bytes(record[max(0, starts[0] - _HEADER) : starts[0]])]
    between += [bytes(record[end:start]) for end, start in zip(ends, [*starts[1:], len(record)])]
    return _Template(ordered, [len(record) - start for start in starts], between)


def _read_in_place(shard: shards.Shard, file: _ShardFile, rows: _Rows, columns: Mapping[str, np.ndarray]) -> None:
    """Reads tiles straight into the batch, without a copy of the record.

    Records of a shard differ only in the length of their texts, and texts come first (keys are sorted, and "acquired",
    "group" and "id" sort before the rest), so the byte offset of a tile from the end of the record is the same in all
    records. The bytes around the tiles are read too and compared with those of the first record; a record in which they
    differ is parsed as a whole.
    """
    first = next(iter(shard.read([rows.numbers[0]])))
    _copy_features(first, rows.places[0], columns, file.path)  # refuses a missing feature or one of another size
    template = _template(first, list(columns))
    buffers = [columns[f].reshape(len(columns[f]), -1).view(np.uint8) for f in template.features]
    for number, place in zip(rows.numbers[1:], rows.places[1:]):
        if shard.records[number].length >= template.from_end[0]:
            parts = [shards.Part(o, memoryview(b[place])) for o, b in zip(template.from_end, buffers)]
            gaps = shard.scatter(number, parts)
            header = gaps[0][-len(template.between[0]) :]
            if header == template.between[0] and all(g == b for g, b in zip(gaps[1:], template.between[1:])):
                continue
        _read_records(file, _Rows([number], [place]), columns)

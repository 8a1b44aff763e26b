"""Order as a pure function of (seed, step), and reading of prepared tiles by index. No TensorFlow.

The order is a format-preserving permutation of the indices (a Feistel network with cycle walking, after Black &
Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002): each epoch visits every tile once, and the batch of
any step is computed in O(batch) without walking there, so that a resume at step 10^6 costs nothing.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fusionx_jax import contract as contract_lib
from fusionx_jax import shards
from fusionx_jax.contract import InputError
from fusionx_jax.shards import varint

_ROUNDS = 6
_HEADER = 12  # bytes before a feature that hold its key, tags and lengths
_DAMAGED = "it is truncated or damaged: prepare the set again."
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


def spread(size: int, count: int) -> np.ndarray:
    """`count` indices inside range(size), evenly spread and off its ends; all where there are no more."""
    if size <= count:
        return np.arange(size)
    return np.unique(np.linspace(0, size - 1, count + 2).round().astype(int)[1:-1])


def equal_batches(size: int, batch_size: int, multiple: int = 1) -> Iterator[tuple[np.ndarray, int]]:
    """Batches over range(size), in order and all of one length, a multiple of `multiple`: one compiled program.

    The last one is filled up from the beginning; each comes with how many of it count.
    """
    batch_size = -(-min(batch_size, size) // multiple) * multiple
    for start in range(0, size, batch_size):
        yield np.arange(start, start + batch_size) % size, min(batch_size, size - start)


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


def is_remote(directory: str) -> bool:
    """Whether a prepared set is named by an address (gs://, s3://, memory://) rather than a path."""
    return "://" in directory


def absolute(dataset: str) -> str:
    """Prepared sets as they can be found from anywhere; addresses stay as they are."""
    parts = [d.strip() for d in dataset.split(",")]
    return ",".join(d if is_remote(d) else os.path.abspath(d) for d in parts)


def local_file(directory: str, name: str) -> str:
    """Path of a file of a prepared set; one that is elsewhere is copied into the cache first, by fsspec.

    The cache is `$FUSIONX_CACHE`, or `~/.cache/fusionx`; a copy is used as long as the original has not changed.

    Raises:
      InputError: it is not there, or the file system is not known or needs a package that is not installed.
    """
    if not is_remote(directory):
        return os.path.join(directory, name)
    import fsspec

    cache = os.environ.get("FUSIONX_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "fusionx")
    address = f"{directory.rstrip('/')}/{name}"
    try:
        return fsspec.open_local(f"filecache::{address}", filecache={"cache_storage": cache, "check_files": True})
    except FileNotFoundError as error:
        raise InputError(
            f"There is no {address}; give the address of a finished prepared set (its {contract_lib.FILE_NAME} is "
            "written last)."
        ) from error
    except (OSError, ImportError, ValueError) as error:
        raise InputError(f"{address} cannot be read ({error}); check the address, access and packages.") from error


def example_fields(record: bytes | memoryview) -> dict[str, tuple[int, int] | int]:
    """Where the features of a serialised `tf.train.Example` stand: (start, length) of bytes, or an integer's value.

    Parsing with protobuf copies every tile twice more; this follows the lengths of the wire format instead (protobuf
    encoding guide; tensorflow/core/example/*.proto).

    Raises:
      IndexError: the record is cut short or holds something else.
    """
    out: dict[str, tuple[int, int] | int] = {}
    end, at = _field(record, 0, 0x0A)  # Example.features
    if end != len(record):
        raise IndexError
    while at < end:
        after, at = _field(record, at, 0x0A)  # one entry of Features.feature
        key_end, at = _field(record, at, 0x0A)
        key = str(record[at:key_end], "utf-8")
        _, at = _field(record, key_end, 0x12)  # Feature
        if record[at] == 0x0A:  # bytes_list
            _, at = _field(record, at, 0x0A)
            stop, at = _field(record, at, 0x0A)
            out[key] = (at, stop - at)
        elif record[at] == 0x1A:  # int64_list, packed or not
            _, at = _field(record, at, 0x1A)
            if record[at] == 0x0A:
                _, at = _field(record, at, 0x0A)
            else:
                at += 1
            out[key] = varint(record, at)[0]
        at = after
    return out


def _field(record: bytes | memoryview, at: int, tag: int) -> tuple[int, int]:
    """End and start of the content of a length-delimited field that begins at `at`."""
    if record[at] != tag:
        raise IndexError
    length, at = varint(record, at + 1)
    if at + length > len(record):
        raise IndexError
    return at + length, at


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


_CYCLE = 1000  # places of a mixture's stream after which the shares of its sets are met exactly


class Mixture:
    """Several prepared sets as one: tiles are drawn by weight, and addressed by (seed, step) like those of one set.

    The stream of tiles is cut into cycles of 1000 places; in each, every set has its share of places, at positions that
    a permutation of the cycle gives, and takes the next tiles of its own order. Indices run through the sets in turn.
    """

    def __init__(self, sets: Sequence[PreparedSet], weights: Sequence[float] = ()):
        """Without weights each set counts by its training tiles.

        Raises:
          InputError: weights do not fit the sets, or the sets differ in bands, unit, level, encoding or tile size.
        """
        self._sets = list(sets)
        self.directory = ",".join(s.directory for s in sets)
        weights = list(weights) or [float(s.size("train")) for s in sets]
        if len(weights) != len(sets) or min(weights) <= 0:
            raise InputError(
                f"dataset_weights is {tuple(weights)} for {len(sets)} data sets; give a positive weight for each."
            )
        share = np.array(weights, np.float64) / sum(weights)
        counts = np.floor(share * _CYCLE).astype(np.int64)
        rest = np.argsort(counts - share * _CYCLE, kind="stable")[: _CYCLE - counts.sum()]
        counts[rest] += 1
        if counts.min() < 1:
            raise InputError(f"dataset_weights is {tuple(weights)}: a set of less than a thousandth is never read.")
        self._edges = np.concatenate([[0], np.cumsum(counts)])
        self.contract = merge_contracts([s.contract for s in sets], counts / _CYCLE, [s.directory for s in sets])

    def size(self, split: str) -> int:
        """Number of tiles of a split over all sets."""
        return sum(s.size(split) for s in self._sets)

    def order(self, split: str, seed: int, step: int, batch_size: int) -> np.ndarray:
        """Tile indices of the global batch of `step`: a pure function of its arguments."""
        place = np.int64(step) * batch_size + np.arange(batch_size, dtype=np.int64)
        slot = permute(place % _CYCLE, _CYCLE, seed ^ 0x6D69, place // _CYCLE)
        out = np.empty(batch_size, np.int64)
        first = 0
        for number, prepared in enumerate(self._sets):
            low, high = self._edges[number], self._edges[number + 1]
            mine = (slot >= low) & (slot < high)
            own = (place[mine] // _CYCLE) * (high - low) + slot[mine] - low
            size = prepared.size(split)
            out[mine] = first + permute(own % size, size, seed + number, own // size)
            first += size
        return out

    def read(self, split: str, indices: Sequence[int] | np.ndarray, features: Sequence[str]) -> dict[str, np.ndarray]:
        """The named features of the given tiles, as `PreparedSet.read` gives them."""
        indices = np.asarray(indices, np.int64)
        edges = np.cumsum([0] + [s.size(split) for s in self._sets])
        parts, places = [], []
        for number, prepared in enumerate(self._sets):
            mine = np.flatnonzero((indices >= edges[number]) & (indices < edges[number + 1]))
            if len(mine):
                parts.append(prepared.read(split, indices[mine] - edges[number], features))
                places.append(mine)
        back = np.argsort(np.concatenate(places))
        return {f: np.concatenate([p[f] for p in parts])[back] for f in features}


def merge_contracts(
    contracts: Sequence[contract_lib.Contract], share: np.ndarray, names: Sequence[str]
) -> contract_lib.Contract:
    """One contract for a mixture: statistics pooled by share, labels left out (classes differ between sets).

    Raises:
      InputError: modalities differ in bands, unit, level, encoding or tile size; both sets are named.
    """
    first = contracts[0]
    for other, name in zip(contracts[1:], names[1:]):
        if set(other.modalities) != set(first.modalities):
            raise InputError(
                f"{names[0]} has the modalities {', '.join(first.modalities)}, {name} {', '.join(other.modalities)}; "
                "sets that are mixed must have the same."
            )
        for key, m in first.modalities.items():
            for field in ("bands", "unit", "level", "scale", "offset", "nodata", "height", "width"):
                if getattr(m, field) != getattr(other.modalities[key], field):
                    raise InputError(
                        f"Modality {key}: {names[0]} has {field} {getattr(m, field)!r}, {name} "
                        f"{getattr(other.modalities[key], field)!r}; sets that are mixed must agree."
                    )
    pooled = {}
    for key, m in first.modalities.items():
        of = [c.modalities[key] for c in contracts]
        mean = sum(w * np.array(o.mean) for w, o in zip(share, of))
        square = sum(w * (np.array(o.std) ** 2 + np.array(o.mean) ** 2) for w, o in zip(share, of))
        pooled[key] = dataclasses.replace(
            m,
            mean=tuple(mean.tolist()),
            std=tuple(np.sqrt(square - mean**2).tolist()),
            nodata_fraction=float(sum(w * o.nodata_fraction for w, o in zip(share, of))),
        )
    together = [f"{c.source_version} ({100 * w:.3g} %)" for c, w in zip(contracts, share)]
    return contract_lib.Contract(
        name="+".join(c.name for c in contracts),
        simulated=any(c.simulated for c in contracts),
        modalities=pooled,
        tasks={},
        splits={s: sum(c.splits.get(s, 0) for c in contracts) for s in first.splits},
        split_origin="; ".join(f"{c.name}: {c.split_origin}" for c in contracts),
        licence="; ".join(dict.fromkeys(c.licence for c in contracts)),
        citation=" ".join(dict.fromkeys(c.citation for c in contracts)),
        source_version=", mixed with ".join(together),
        notes=tuple(dict.fromkeys(note for c in contracts for note in c.notes)),
    )


class Grouped:
    """A prepared set with groups of bands as modalities of their own, beside the sensors they come from.

    A group can then be hidden, left out or missing like any sensor.
    """

    def __init__(self, prepared: PreparedSet | Mixture, groups: Mapping[str, Sequence[str]]):
        """`groups` gives each new modality's sensor, then its bands.

        Raises:
          InputError: a group has the name of a sensor, or names a sensor or band that the set does not have.
        """
        self._prepared, self.directory = prepared, prepared.directory
        self._taken: dict[str, tuple[str, list[int]]] = {}
        known = dict(prepared.contract.modalities)
        for name, (sensor, *bands) in groups.items():
            own = prepared.contract.modalities.get(sensor)
            missing = [b for b in bands if own is None or b not in own.bands]
            if name in prepared.contract.modalities or own is None or missing or not bands:
                have = ", ".join(own.bands) if own is not None else ", ".join(prepared.contract.modalities)
                raise InputError(
                    f"band_groups gives {name!r} as {(sensor, *bands)}; it must be a new name with a sensor of the "
                    f"data set and some of its bands ({sensor if own is not None else prepared.directory} has {have})."
                )
            known[name] = contract_lib.in_band_order(own, bands)
            self._taken[name] = sensor, [own.bands.index(b) for b in bands]
        self.contract = dataclasses.replace(prepared.contract, modalities=known)

    def size(self, split: str) -> int:
        """Number of tiles of a split."""
        return self._prepared.size(split)

    def order(self, split: str, seed: int, step: int, batch_size: int) -> np.ndarray:
        """Tile indices of the global batch of `step`."""
        return self._prepared.order(split, seed, step, batch_size)

    def read(self, split: str, indices: Sequence[int] | np.ndarray, features: Sequence[str]) -> dict[str, np.ndarray]:
        """The named features of the given tiles; a group's are its bands of its sensor's."""
        stored = dict.fromkeys(self._taken[f][0] if f in self._taken else f for f in features)
        read = self._prepared.read(split, indices, list(stored))
        out = {}
        for f in features:
            sensor, bands = self._taken.get(f, (f, None))
            out[f] = read[sensor] if bands is None else np.ascontiguousarray(read[sensor][..., bands])
        return out


Readable = PreparedSet | Mixture | Grouped


def open_for(config: Any, dataset: str) -> Readable:
    """The sets of `dataset` as a config reads them: mixed by its weights, with its groups of bands.

    Raises:
      InputError: one cannot be read, or they do not fit together.
    """
    return open_sets(dataset, config.get("dataset_weights", ()), dict(config.get("band_groups", {})))


def open_sets(
    dataset: str, weights: Sequence[float] = (), groups: Mapping[str, Sequence[str]] | None = None
) -> Readable:
    """A prepared set, or a mixture of those that `dataset` lists with commas between; with groups of bands if asked.

    Raises:
      InputError: one cannot be read, or they do not fit together.
    """
    directories = [d.strip() for d in dataset.split(",") if d.strip()]
    if not directories:
        raise InputError("The data set's directory is empty; give that of a prepared set (--dataset).")
    if len(directories) == 1:
        opened = PreparedSet(directories[0])
    else:
        opened = Mixture([PreparedSet(d) for d in directories], weights)
    return Grouped(opened, groups) if groups else opened

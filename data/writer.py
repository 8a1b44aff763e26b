"""Writes any source as a prepared set: a TFDS directory of array_record shards, plus its contract.

A shard is the unit of work and of resuming: a worker writes it and its statistics to temporary names and renames
them. The TFDS metadata follow when all shards are there, and `contract.json` last: a directory without it is not
a prepared set, however it was interrupted.

Records are TFDS-encoded `tf.train.Example`s in uncompressed array_records of group size 1 (random access), with
`encoding="bytes"` tensors, so that `tfds.builder_from_directory` reads them. No TensorFlow is needed to write them.
"""

import collections
import concurrent.futures
import contextlib
import csv
import dataclasses
import errno
import fcntl
import functools
import io
import json
import math
import multiprocessing
import os
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from data import beam, checks
from data.source import SPLITS, BadTile, Description, LeftOut, Source
from fusionx_jax import contract as contract_lib
from fusionx_jax import modalities as modalities_lib
from fusionx_jax.errors import InputError, RunError

TFDS_VERSION = "1.0.0"
_RECORD_OPTIONS = "group_size:1,uncompressed"
_STATS_DIR = "preparing"
_SHARD_BYTES = 64 << 20
_MOST_SHARDS = 256
LEFT_OUT_FILE = "left_out.csv"


@dataclasses.dataclass(frozen=True)
class Shard:
    """Examples `start` to `stop` of a split, and the file they go to."""

    split: str
    start: int
    stop: int
    filename: str


def prepare(
    source: Source,
    out: str,
    num_workers: int | None = None,
    max_failures: float = 0.0,
    beam_options: list[str] | None = None,
) -> str:
    """Prepares `source` under `out` and returns the prepared set's directory, `out/NAME/1.0.0`.

    Finished shards of an interrupted run of the same command are kept. Examples that cannot be used are left out and
    listed in `left_out.csv`, as long as they are at most the share `max_failures` of all. With `beam_options` (Apache
    Beam's own arguments, such as --runner=DirectRunner) shards are written by that runner instead of local processes;
    its workers must see `out` under the same path.

    Raises:
      InputError: the directory holds another set, a split the set needs is empty, the pixels are not in the unit they
        are said to be in, or too many examples cannot be used.
      RunError: the disk filled or a worker died; what is finished stays, and the same command goes on.
    """
    description = source.describe()
    splits = {s: n for s, n in source.splits().items() if n}
    for needed in ("train", "test"):
        if not splits.get(needed):
            raise InputError(
                f"The split {needed!r} of {description.name} is empty (splits: {dict(source.splits())}); give more "
                "data or other split settings."
            )
    directory = os.path.join(out, description.name, TFDS_VERSION)
    if _already_there(directory, description):
        print(f"{directory} is already prepared from the same source; nothing to do.", file=sys.stderr)
        return directory
    remarks = checks.examine(source, description, splits)
    for remark in remarks:
        print(f"warning: {remark}", file=sys.stderr)
    description = dataclasses.replace(description, notes=(*description.notes, *remarks))
    shards = _plan_shards(description, splits)
    tally = _Tally(source, directory, source.listed(), max_failures)
    with _disk_errors(directory):
        os.makedirs(os.path.join(directory, _STATS_DIR), exist_ok=True)
        lock = _claim(directory, description)
        _check_space(directory, description, splits)
        stats = _finished(directory, shards, tally)
        todo = [s for s in shards if s.filename not in stats]
        if beam_options is not None:
            beam.run(functools.partial(write_shard, source, directory), todo, beam_options)
            stats |= _finished(directory, todo, tally)
            if len(stats) < len(shards):
                tally.check()
                raise RunError(
                    f"{len(shards) - len(stats)} shards of {directory} are not there; run the command again."
                )
        else:
            stats |= _write_locally(source, directory, shards, todo, num_workers, tally)
        tally.write()
        for needed in ("train", "test"):
            if not sum(stats[s.filename]["num_examples"] for s in shards if s.split == needed):
                raise InputError(
                    f"No tile of the split {needed!r} of {description.name} can be used; {tally.summary()}."
                )
        _write_metadata(directory, description, shards, stats, tally)
        lock.close()
    return directory


class _Tally:
    """Examples left out so far, and the share of them at which the preparation stops."""

    def __init__(self, source: Source, directory: str, total: int, most: float):
        if not 0 <= most < 1:
            raise InputError(f"--max_failures is {most:g}; it is a share of all tiles, from 0 to below 1.")
        self.left_out = list(source.left_out())
        self._directory, self._total, self._most = directory, total, most

    def add(self, stats: Mapping[str, Any]) -> None:
        self.left_out += [LeftOut(*entry) for entry in stats["left_out"]]

    def summary(self) -> str:
        """How many of how many, by kind."""
        kinds = collections.Counter(entry.kind for entry in self.left_out)
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        return f"{len(self.left_out)} of {self._total} tiles left out ({listed})"

    def too_many(self) -> bool:
        return len(self.left_out) > self._most * self._total

    def forget(self, stats: Mapping[str, Any]) -> None:
        """Takes a shard's entries back: it will be written again."""
        again = {LeftOut(*entry) for entry in stats["left_out"]}
        self.left_out = [entry for entry in self.left_out if entry not in again]

    def check(self) -> None:
        """Stops when too many examples were left out."""
        if self.too_many():
            os.makedirs(self._directory, exist_ok=True)
            self.write()
            raise InputError(
                f"{self.summary()}, more than --max_failures={self._most:g} allows; the first: "
                f"{self.left_out[0].id}: {self.left_out[0].detail}. All are listed in "
                f"{os.path.join(self._directory, LEFT_OUT_FILE)}: repair the files, or allow a larger share."
            )

    def write(self) -> None:
        path = os.path.join(self._directory, LEFT_OUT_FILE)
        if not self.left_out:
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)
            return
        text = io.StringIO()
        csv.writer(text).writerows([LeftOut._fields, *sorted(self.left_out)])
        _write_atomically(path, text.getvalue())


def tile_bytes(description: Description) -> int:
    """Approximate size of one record."""
    pixels = description.tile_size**2
    channels = sum(len(m.bands) for m in description.modalities.values())
    return pixels * (2 * channels + sum(t.kind == "pixel" for t in description.tasks.values())) + 512


def _already_there(directory: str, description: Description) -> bool:
    if not os.path.exists(os.path.join(directory, contract_lib.FILE_NAME)):
        return False
    existing = contract_lib.load(directory)
    if existing.source_version == description.source_version:
        return True
    raise InputError(
        f"{directory} already holds another set ({existing.source_version}), and this command would prepare "
        f"{description.source_version}; give another --out or remove that directory."
    )


def _claim(directory: str, description: Description) -> io.IOBase:
    """Marks the unfinished directory as belonging to this source, or refuses one that belongs to another.

    Returns an open file whose lock keeps a second preparation away until it is closed, or this process ends.
    """
    lock = open(os.path.join(directory, _STATS_DIR, "lock"), "w", encoding="utf-8")  # noqa: SIM115 (held until the end)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise InputError(f"Another process is preparing {directory}; wait for it, or give another --out.") from error
    path = os.path.join(directory, _STATS_DIR, "source.json")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            begun = json.load(f)["source_version"]
        if begun != description.source_version:
            raise InputError(
                f"{directory} holds an unfinished preparation of {begun}, and this command would prepare "
                f"{description.source_version}; finish that one with its own command, or remove the directory."
            )
    else:
        _write_atomically(path, json.dumps({"source_version": description.source_version}))
    return lock


def _check_space(directory: str, description: Description, splits: Mapping[str, int]) -> None:
    needed = sum(splits.values()) * tile_bytes(description)
    done = sum(os.path.getsize(os.path.join(directory, f)) for f in os.listdir(directory) if ".array_record-" in f)
    free = shutil.disk_usage(directory).free
    if needed - done > free:
        raise RunError(
            f"{directory} needs about {needed / 1e9:.2f} GB, of which {done / 1e9:.2f} GB are written, but the disk "
            f"has {free / 1e9:.2f} GB free; free some space or give another --out."
        )


@contextlib.contextmanager
def _disk_errors(directory: str):
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise RunError(
                f"The disk filled while writing {directory} ({error.strerror}); finished shards are kept: free some "
                "space and run the same command again."
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise InputError(f"Cannot write to {directory} ({error.strerror}); give another --out.") from error
        raise


def _plan_shards(description: Description, splits: Mapping[str, int]) -> list[Shard]:
    # Readers keep shards open: half a million tiles must not become thousands of files.
    wanted = max(_SHARD_BYTES, sum(splits.values()) * tile_bytes(description) // _MOST_SHARDS)
    per_shard = max(1, wanted // tile_bytes(description))
    shards = []
    for split, total in splits.items():
        count = max(1, math.ceil(total / per_shard))
        edges = [total * i // count for i in range(count + 1)]
        shards += [
            Shard(
                split,
                edges[i],
                edges[i + 1],
                f"{description.name}-{split}.array_record-{i:05d}-of-{count:05d}",
            )
            for i in range(count)
        ]
    return shards


def _stats_path(directory: str, shard: Shard) -> str:
    return os.path.join(directory, _STATS_DIR, shard.filename + ".json")


def _write_atomically(path: str, text: str) -> None:
    temporary = f"{path}.tmp-{os.getpid()}"
    try:
        with open(temporary, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


_SOURCE: Source | None = None  # a worker's own copy, set once when its process starts


def _start_worker(source: Source) -> None:
    global _SOURCE
    os.environ["OMP_NUM_THREADS"] = "1"  # one worker a core: inner threads would only compete
    _SOURCE = source


def _work(directory: str, shard: Shard, progress) -> dict[str, Any]:
    return write_shard(_SOURCE, directory, shard, progress)


def _finished(directory: str, shards: list[Shard], tally: _Tally) -> dict[str, dict[str, Any]]:
    """Statistics of the shards that are there, by file name; what an interrupted run left half-written is removed."""
    stats: dict[str, dict[str, Any]] = {}
    for shard in shards:
        record, side = os.path.join(directory, shard.filename), _stats_path(directory, shard)
        if os.path.exists(record) and os.path.exists(side):
            with open(side, encoding="utf-8") as f:
                stats[shard.filename] = json.load(f)
            tally.add(stats[shard.filename])
    if tally.too_many():  # files may have been repaired since: what was left out gets another chance
        for name in [n for n, s in stats.items() if s["left_out"]]:
            tally.forget(stats.pop(name))
        tally.check()
    for leftover in os.listdir(directory):
        if leftover.startswith(".tmp-"):
            os.remove(os.path.join(directory, leftover))
    return stats


def _write_locally(
    source: Source, directory: str, shards: list[Shard], todo: list[Shard], num_workers: int | None, tally: _Tally
) -> dict[str, dict[str, Any]]:
    """Writes what is missing with one process a core; returns statistics by shard file name."""
    stats: dict[str, dict[str, Any]] = {}
    workers = max(1, min(num_workers or os.cpu_count() or 1, len(todo) or 1))
    total = sum(s.stop - s.start for s in shards)
    done = total - sum(s.stop - s.start for s in todo)
    bar = _Bar(total, done, f"preparing {os.path.basename(os.path.dirname(directory))}")
    context = multiprocessing.get_context("spawn")
    with bar, context.Manager() as manager:
        counter = manager.Value("q", 0)
        lock = manager.Lock()
        with concurrent.futures.ProcessPoolExecutor(
            workers, mp_context=context, initializer=_start_worker, initargs=(source,)
        ) as pool:
            pending = {pool.submit(_work, directory, s, (counter, lock)): s for s in todo}
            try:
                waiting = set(pending)
                while waiting:
                    finished, waiting = concurrent.futures.wait(waiting, timeout=0.5)
                    bar.at(done + counter.value)
                    for future in finished:
                        stats[pending[future].filename] = future.result()
                        tally.add(future.result())
                        tally.check()
            except concurrent.futures.process.BrokenProcessPool as error:
                raise RunError(
                    f"A worker process ended while preparing {directory} (out of memory?); finished shards are kept: "
                    "run the same command again, with fewer --num_workers if memory is short."
                ) from error
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        bar.at(total)
    return stats


class _Bar:
    """Progress with rate and time left: a bar on a terminal, a plain line every ten seconds elsewhere."""

    def __init__(self, total: int, done: int, what: str):
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=what,
            unit="tile",
            mininterval=0.5 if self._terminal else 10,
            file=sys.stderr if self._terminal else self,
            ascii=not self._terminal,
        )

    def write(self, text: str) -> None:
        text = text.strip()
        if text:
            print(text, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()

    def at(self, done: int) -> None:
        self._bar.update(done - self._bar.n)

    def __enter__(self):
        return self

    def __exit__(self, *unused) -> None:
        self._bar.close()


def write_shard(source: Source, directory: str, shard: Shard, progress=None) -> dict[str, Any]:
    """Writes one shard and its statistics under their final names, or nothing. A pure function of its arguments."""
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    description = source.describe()
    collector = _Statistics(description)
    temporary = os.path.join(directory, f".tmp-{os.getpid()}-{shard.filename}")
    try:
        with _as_full_disk(temporary):
            writer = array_record_module.ArrayRecordWriter(temporary, _RECORD_OPTIONS)
        try:
            size, left_out = 0, []
            for index in range(shard.start, shard.stop):
                if progress and (index % 8 == 7 or index + 1 == shard.stop):
                    counter, lock = progress
                    with lock:
                        counter.value += index + 1 - max(shard.start, index - index % 8)
                try:
                    wire = encode_example(source.example(shard.split, index), description)
                except BadTile as bad:
                    left_out.append(LeftOut(f"{shard.split}/{index}", bad.kind, bad.detail))
                    continue
                collector.add(wire)
                example = tf_example_pb2.Example()
                for key, value in wire.items():
                    feature = example.features.feature[key]
                    if isinstance(value, bytes):
                        feature.bytes_list.value.append(value)
                    elif isinstance(value, int):
                        feature.int64_list.value.append(value)
                    else:
                        feature.bytes_list.value.append(np.ascontiguousarray(value).tobytes())
                record = example.SerializeToString(deterministic=True)  # map order would differ by process
                size += len(record)
                with _as_full_disk(temporary):
                    writer.write(record)
        finally:
            with _as_full_disk(temporary):
                writer.close()
        written = os.path.getsize(temporary)
        if written < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), temporary)
        stats = {
            **collector.result(),
            "num_bytes": size,
            "num_examples": shard.stop - shard.start - len(left_out),
            "left_out": left_out,
        }
        _write_atomically(_stats_path(directory, shard), json.dumps(stats))
        os.replace(temporary, os.path.join(directory, shard.filename))
        return stats
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


@contextlib.contextmanager
def _as_full_disk(path: str):
    """array_record reports a failed write as RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({error})", path) from error


def encode_example(example: Mapping[str, Any], description: Description) -> dict[str, Any]:
    """Physical example to what is stored: uint16 tiles, uint8 labels, integers and bytes.

    A pixel that misses one band of a modality is without data in all of that modality's bands.
    """
    wire: dict[str, Any] = {}
    for name, modality in description.modalities.items():
        tile = np.asarray(example[name])
        expected = (description.tile_size, description.tile_size, len(modality.bands))
        if tile.shape != expected:
            raise InputError(
                f"{example['id']}: the {name} tile has shape {tile.shape}, expected {expected} as in the other tiles."
            )
        coded = modality.encode(tile)
        missing = (coded == modalities_lib.NODATA).any(-1)
        coded[missing] = modalities_lib.NODATA
        wire[name] = coded
    for task in description.tasks.values():
        value = example[task.feature]
        wire[task.feature] = int(value) if task.kind == "single" else np.asarray(value, np.uint8)
    wire["id"] = example["id"].encode()
    if description.has_group:
        wire["group"] = example["group"].encode()
    if description.has_location:
        wire["location"] = np.asarray(example["location"], np.float32)
    return wire


class _Statistics:
    """Streaming sums of one shard: exact integer sums of wire values, class counts."""

    def __init__(self, description: Description):
        self._description = description
        self._sums = {name: np.zeros((3, len(m.bands)), np.float64) for name, m in description.modalities.items()}
        self._missing = dict.fromkeys(description.modalities, 0)
        self._counts = {name: np.zeros(len(t.classes), np.int64) for name, t in description.tasks.items()}

    def add(self, wire: Mapping[str, Any]) -> None:
        for name in self._description.modalities:
            tile = wire[name]
            valid = tile[..., 0] != modalities_lib.NODATA
            pixels = tile[valid].astype(np.float64)
            self._sums[name] += [np.full(tile.shape[-1], len(pixels)), pixels.sum(0), (pixels**2).sum(0)]
            self._missing[name] += int((~valid).sum())
        for name, task in self._description.tasks.items():
            value = wire[task.feature]
            if task.kind == "single":
                self._counts[name][value] += 1
            elif task.kind == "multi":
                self._counts[name] += value
            else:
                labels = value[value != contract_lib.IGNORE_LABEL]
                self._counts[name] += np.bincount(labels, minlength=len(task.classes))

    def result(self) -> dict[str, Any]:
        return {
            "sums": {k: v.tolist() for k, v in self._sums.items()},
            "missing": self._missing,
            "counts": {k: v.tolist() for k, v in self._counts.items()},
        }


def _write_metadata(
    directory: str, description: Description, shards: list[Shard], stats: Mapping[str, Mapping[str, Any]], tally: _Tally
) -> None:
    """TFDS metadata, then the contract (last), then the working files go."""
    import tensorflow_datasets as tfds

    splits: dict[str, list[Shard]] = {}
    for shard in shards:
        splits.setdefault(shard.split, []).append(shard)
    splits = {s: m for s, m in splits.items() if sum(stats[x.filename]["num_examples"] for x in m)}
    if tally.left_out:
        remark = f"{tally.summary()}; see {LEFT_OUT_FILE}."
        print(remark, file=sys.stderr)
        description = dataclasses.replace(description, notes=(*description.notes, remark))
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[stats[s.filename]["num_examples"] for s in members],
            num_bytes=sum(stats[s.filename]["num_bytes"] for s in members),
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=directory, dataset_name=description.name, split=split, filetype_suffix="array_record"
            ),
        )
        for split, members in splits.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=_tfds_features(tfds, description),
        split_infos=infos,
        version=TFDS_VERSION,
        filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        check_data=False,
        description=f"{description.source_version}. {' '.join(description.notes)}",
        citation=description.citation,
        license=description.license,
    )
    contract = build_contract(description, splits, stats)
    _write_atomically(os.path.join(directory, contract_lib.FILE_NAME), contract.to_json())
    shutil.rmtree(os.path.join(directory, _STATS_DIR))


def _tfds_features(tfds, description: Description):
    size = description.tile_size

    def tensor(shape, dtype):
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")

    features = {n: tensor((size, size, len(m.bands)), np.uint16) for n, m in description.modalities.items()}
    for task in description.tasks.values():
        if task.kind == "single":
            features[task.feature] = tfds.features.ClassLabel(names=list(task.classes))
        elif task.kind == "multi":
            features[task.feature] = tensor((len(task.classes),), np.uint8)
        else:
            features[task.feature] = tensor((size, size), np.uint8)
    features["id"] = tfds.features.Text()
    if description.has_group:
        features["group"] = tfds.features.Text()
    if description.has_location:
        features["location"] = tensor((2,), np.float32)
    return tfds.features.FeaturesDict(features)


def build_contract(
    description: Description, splits: Mapping[str, list[Shard]], stats: Mapping[str, Mapping[str, Any]]
) -> contract_lib.Contract:
    """Merges shard statistics: mean and deviation over valid pixels of the training split, class counts by split."""
    mods = {}
    for name, modality in description.modalities.items():
        train = [stats[s.filename] for s in splits["train"]]
        count, total, squares = np.sum([s["sums"][name] for s in train], axis=0)
        if not count.min():
            raise InputError(
                f"No training tile of {description.name} has a valid {name} pixel; check its no-data code."
            )
        valid = sum(s["sums"][name][0][0] for s in stats.values())
        missing = sum(s["missing"][name] for s in stats.values())
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
        if (std <= 0).any():
            flat = [b for b, s in zip(modality.band_names, std) if s <= 0]
            raise InputError(
                f"The band {', '.join(flat)} of {name} has one value in all training tiles of {description.name}; "
                "leave it out or check the file."
            )
        mods[name] = contract_lib.of_modality(
            modality,
            gsd_m=description.gsd_m,
            side=description.tile_size,
            mean=(mean * modality.scale + modality.offset).tolist(),
            std=(std * modality.scale).tolist(),
            nodata_fraction=missing / (missing + valid),
        )
    counts = {
        task: {
            split: tuple(np.sum([stats[s.filename]["counts"][task] for s in members], axis=0).tolist())
            for split, members in splits.items()
        }
        for task in description.tasks
    }
    return contract_lib.Contract(
        name=description.name,
        simulated=description.simulated,
        modalities=mods,
        tasks={n: contract_lib.Task(t.feature, t.kind, t.classes, counts[n]) for n, t in description.tasks.items()},
        splits={s: sum(stats[m.filename]["num_examples"] for m in splits[s]) for s in SPLITS if s in splits},
        split_origin=description.split_origin,
        license=description.license,
        citation=description.citation,
        source_version=description.source_version,
        notes=description.notes,
        has_location=description.has_location,
        group_feature="group" if description.has_group else None,
    )

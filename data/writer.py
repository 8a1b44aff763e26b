"""Writes any source as a prepared set: a TFDS directory of array_record shards, plus its contract.

A shard is the unit of work and of resuming: a worker writes it and its statistics to temporary names and renames
them. The TFDS metadata follow when all shards are written, and `contract.json` last: a directory without it is not
a prepared set, wherever the preparation was interrupted.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from data import beam, checks, metadata, quality, workers
from data.left_out import Tally
from data.shard_writer import TEMPORARY, WORK_DIR, Shard, plan_shards, statistics_path, tile_bytes, write_shard
from data.source import Description, Source
from data.tile_statistics import ShardStatistics
from fusionx_jax import contract as contract_lib
from fusionx_jax import files
from fusionx_jax.errors import InputError, RunError

_NEEDED = ("train", "test")  # splits without which a set is of no use
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST)


def prepare(
    source: Source,
    out: str,
    num_workers: int | None = None,
    max_failures: float = 0.0,
    beam_options: Sequence[str] | None = None,
    limits: quality.Limits | None = None,
) -> str:
    """Prepares `source` under `out` and returns the prepared set's directory, `out/NAME/1.0.0`.

    Finished shards of an interrupted run of the same command are kept. Examples that cannot be used are left out and
    listed in `left_out.csv`, as long as they are at most the share `max_failures` of all. With `beam_options` (Apache
    Beam's arguments, such as --runner=DirectRunner) that runner writes the shards instead of local processes; its
    workers must see `out` under the same path. `limits` bound the shares of missing, clipped and zero pixels.

    Raises:
      InputError: the directory holds another set, a split the set needs is empty, the pixels are not in the stated
        unit, or too many examples cannot be used.
      RunError: the disk is full or a worker died. Finished shards stay, and the same command resumes.
    """
    description = source.describe()
    splits = _splits(source, description)
    directory = os.path.join(out, description.name, metadata.TFDS_VERSION)
    if _is_prepared(directory, description):
        print(f"{directory} is already prepared from the same source; nothing to do.", file=sys.stderr)
        return directory
    description = _with_remarks(source, description, splits)
    shards = plan_shards(description, splits)
    tally = Tally(source, directory, max_failures)
    with _disk_errors(directory):
        os.makedirs(os.path.join(directory, WORK_DIR), exist_ok=True)
        with _lock(directory):
            _claim(directory, description)
            _check_space(directory, description, splits)
            statistics = _finished(directory, shards, tally)
            todo = [s for s in shards if s.filename not in statistics]
            limits = limits or quality.Limits()
            if beam_options is None:
                check = functools.partial(_check_early, description, statistics, limits)
                statistics |= _write_locally(source, directory, todo, num_workers, tally, check)
            else:
                statistics |= _write_with_beam(source, directory, todo, beam_options, tally)
            counts = [s.quality for s in statistics.values()]
            remarks = quality.check(counts, description, limits, complete=True)
            for remark in remarks:
                print(f"{remark}.", file=sys.stderr)
            tally.write()
            _check_splits(description, shards, statistics, tally)
            metadata.write(directory, description, shards, statistics, tally)
    return directory


def _splits(source: Source, description: Description) -> dict[str, int]:
    """The splits that are not empty."""
    splits = {s: n for s, n in source.splits().items() if n}
    for needed in _NEEDED:
        if not splits.get(needed):
            raise InputError(
                f"The split {needed!r} of {description.name} is empty (splits: {dict(source.splits())}); give more "
                "data or other split settings."
            )
    return splits


def _is_prepared(directory: str, description: Description) -> bool:
    if not os.path.exists(os.path.join(directory, contract_lib.FILE_NAME)):
        return False
    existing = contract_lib.load(directory)
    if existing.source_version == description.source_version:
        return True
    raise InputError(
        f"{directory} already holds another set ({existing.source_version}), and this command would prepare "
        f"{description.source_version}; give another --out or remove that directory."
    )


def _with_remarks(source: Source, description: Description, splits: Mapping[str, int]) -> Description:
    """Prints what looks wrong with the pixels, and adds it to the notes."""
    remarks = checks.examine(source, description, splits)
    for remark in remarks:
        print(f"warning: {remark}", file=sys.stderr)
    return dataclasses.replace(description, notes=(*description.notes, *remarks))


def _lock(directory: str) -> files.Lock:
    """Keeps other preparations away from the directory until it is closed, or this process ends."""
    lock = files.lock(os.path.join(directory, WORK_DIR, "lock"))
    if lock is None:
        raise InputError(f"Another process is preparing {directory}; wait for it, or give another --out.")
    return lock


def _claim(directory: str, description: Description) -> None:
    """Marks the unfinished directory as belonging to this source, or refuses one that belongs to another."""
    path = os.path.join(directory, WORK_DIR, "source.json")
    if not os.path.exists(path):
        with files.replacing(path) as f:
            json.dump({"source_version": description.source_version}, f)
        return
    begun = json.loads(files.read_text(path))["source_version"]
    if begun != description.source_version:
        raise InputError(
            f"{directory} holds an unfinished preparation of {begun}, and this command would prepare "
            f"{description.source_version}; finish that one with its own command, or remove the directory."
        )


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
def _disk_errors(directory: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise RunError(
                f"The disk filled while writing {directory} ({error.strerror}). Finished shards are kept: free some "
                "space and run the same command again."
            ) from error
        if error.errno in _NOT_WRITABLE:
            raise InputError(f"Cannot write to {directory} ({error.strerror}); give another --out.") from error
        raise


def _finished(directory: str, shards: Sequence[Shard], tally: Tally) -> dict[str, ShardStatistics]:
    """Statistics of the shards that are complete, by file name. Removes what an interrupted run left half written."""
    statistics: dict[str, ShardStatistics] = {}
    for shard in shards:
        path = statistics_path(directory, shard)
        if os.path.exists(os.path.join(directory, shard.filename)) and os.path.exists(path):
            statistics[shard.filename] = ShardStatistics.from_json(files.read_text(path))
            tally.add(statistics[shard.filename])
    if tally.too_many():  # files may have been repaired since: shards with left-out examples are written again
        for name in [n for n, s in statistics.items() if s.left_out]:
            tally.forget(statistics.pop(name))
        tally.check()
    for name in os.listdir(directory):
        if name.startswith(TEMPORARY):
            os.remove(os.path.join(directory, name))
    return statistics


def _check_early(
    description: Description,
    earlier: Mapping[str, ShardStatistics],
    limits: quality.Limits,
    written: Mapping[str, ShardStatistics],
) -> None:
    """Ends the preparation if the pixels written so far are above a limit."""
    counts = [s.quality for s in (*earlier.values(), *written.values())]
    quality.check(counts, description, limits, complete=False)


def _write_locally(
    source: Source, directory: str, shards: Sequence[Shard], num_workers: int | None, tally: Tally,
    check: Callable[[Mapping[str, ShardStatistics]], None],
) -> dict[str, ShardStatistics]:  # fmt: skip
    statistics: dict[str, ShardStatistics] = {}

    def finished(shard: Shard, result: ShardStatistics) -> None:
        statistics[shard.filename] = result
        tally.add(result)
        tally.check()
        check(statistics)

    workers.run(source, directory, shards, num_workers, finished)
    return statistics


def _write_with_beam(
    source: Source, directory: str, shards: Sequence[Shard], options: Sequence[str], tally: Tally
) -> dict[str, ShardStatistics]:
    beam.run(functools.partial(write_shard, source, directory), shards, options)
    statistics = _finished(directory, shards, tally)
    if len(statistics) < len(shards):
        tally.check()
        raise RunError(
            f"{len(shards) - len(statistics)} shards of {directory} are missing after the Beam pipeline; run the same "
            "command again."
        )
    return statistics


def _check_splits(
    description: Description, shards: Sequence[Shard], statistics: Mapping[str, ShardStatistics], tally: Tally
) -> None:
    for needed in _NEEDED:
        if not sum(statistics[s.filename].num_examples for s in shards if s.split == needed):
            raise InputError(f"No tile of the split {needed!r} of {description.name} can be used; {tally.summary()}.")

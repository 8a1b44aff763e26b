"""Verifying every record of a prepared set against the checksum it was written with."""

import os

from fusionx_jax import files, progress
from fusionx_jax.errors import InputError
from fusionx_jax.prepared import shards
from fusionx_jax.prepared.remote import local_file
from fusionx_jax.prepared.store import PreparedSet

_NAMED = 20  # damaged records that a message lists
_CHUNK = 64  # records between two reports of progress


def verify(directory: str | os.PathLike) -> str:
    """Reads all records of a prepared set; returns a sentence on what was read.

    Raises:
      InputError: it is no complete prepared set, or records are damaged; the message names shards and records.
    """
    prepared = PreparedSet(directory)
    sizes = prepared.shard_sizes()
    total = sum(sizes.values())
    damage: list[str] = []
    with progress.Progress(total, f"verifying {prepared.contract.name}", "record") as bar:
        for name, count in sizes.items():
            try:
                shard = shards.LibraryShard(local_file(prepared.directory, name), count)
            except (ValueError, OSError) as error:
                damage.append(f"{name}: {error}")
                bar.advance(count)
                continue
            for start in range(0, count, _CHUNK):
                some = range(start, min(start + _CHUNK, count))
                damage += [f"{name}, record {number}" for number in shard.damaged(some)]
                bar.advance(len(some))
    if damage:
        more = f" and {len(damage) - _NAMED} more" if len(damage) > _NAMED else ""
        raise InputError(
            f"{prepared.directory} is damaged: {'; '.join(damage[:_NAMED])}{more}. Copy the set again, or prepare it "
            "again."
        )
    return f"{files.absolute(prepared.directory)}: all {total} records in {len(sizes)} shards are as they were written."

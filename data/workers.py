"""Shards written on this machine: by several processes, or in this one."""

import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable, Sequence
from multiprocessing.managers import ValueProxy
from threading import Lock
from typing import NamedTuple

from data.shard_writer import Shard, write_shard
from data.source import Source
from data.tile_statistics import ShardStatistics
from fusionx_jax import progress
from fusionx_jax.errors import RunError

_POLL_S = 0.5  # between two reads of the workers' progress

Finished = Callable[[Shard, ShardStatistics], None]

_source: Source | None = None  # a worker's copy, set once when its process starts


def run(source: Source, directory: str, shards: Sequence[Shard], num_workers: int | None, finished: Finished) -> None:
    """Writes shards, and calls `finished` with each; an error that it raises ends the run.

    Args:
      num_workers: processes, by default one per core. One worker is this process.

    Raises:
      RunError: a worker process died.
    """
    workers = max(1, min(num_workers or os.cpu_count() or 1, len(shards) or 1))
    name = os.path.basename(os.path.dirname(directory))
    with progress.Progress(sum(s.size for s in shards), f"preparing {name}", "tile") as bar:
        if workers > 1:
            _run_pool(source, directory, shards, workers, finished, bar)
            return
        for shard in shards:
            finished(shard, write_shard(source, directory, shard, bar.advance))


class _Counter(NamedTuple):
    """Examples processed by all workers; the lock makes adding to it atomic."""

    value: ValueProxy[int]
    lock: Lock

    def __call__(self, count: int) -> None:
        with self.lock:
            self.value.value += count


def _run_pool(
    source: Source,
    directory: str,
    shards: Sequence[Shard],
    workers: int,
    finished: Finished,
    bar: progress.Progress,
) -> None:
    context = multiprocessing.get_context("spawn")
    with (
        context.Manager() as manager,
        concurrent.futures.ProcessPoolExecutor(
            workers, mp_context=context, initializer=_start_worker, initargs=(source,)
        ) as pool,
    ):
        counter = _Counter(manager.Value("q", 0), manager.Lock())
        pending = {pool.submit(_work, directory, s, counter): s for s in shards}
        waiting, shown = set(pending), 0
        try:
            while waiting:
                ready, waiting = concurrent.futures.wait(waiting, timeout=_POLL_S)
                done = counter.value.value
                bar.advance(done - shown)
                shown = done
                for future in ready:
                    finished(pending[future], future.result())
        except concurrent.futures.process.BrokenProcessPool as error:
            raise RunError(
                f"A worker process died while preparing {directory} (out of memory?). Finished shards are kept: "
                "run the same command again, with fewer --num_workers if memory is short."
            ) from error
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _start_worker(source: Source) -> None:
    global _source
    _source = source


def _work(directory: str, shard: Shard, counter: _Counter) -> ShardStatistics:
    assert _source is not None  # set by _start_worker
    return write_shard(_source, directory, shard, counter)

"""`fusionx bench`: speed as ratios against named alternatives, measured side by side in one run.

Machines differ and are shared, so a rate alone says little: every alternative takes turns with ours, several rounds,
and the medians are compared.
"""

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fusionx_jax import contract as contract_lib
from fusionx_jax import modalities, progress
from fusionx_jax.errors import InputError, RunError

_PASSES = 4  # over the tiles in one turn: starting a pipeline must not count as reading
_SENSORS = {m.name: m for m in (modalities.SENTINEL1_RTC, modalities.SENTINEL2_L2A)}


def rates(contestants: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Median items per second of each contestant, which take turns; each call returns how many items it handled."""
    measured: dict[str, list[float]] = {name: [] for name in contestants}
    for contestant in contestants.values():  # warm up: compile, fill caches
        contestant()
    for _ in range(rounds):
        for name, contestant in contestants.items():
            started = time.perf_counter()
            count = contestant()
            measured[name].append(count / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in measured.items()}


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


def bench_input(args: argparse.Namespace) -> dict[str, Any]:
    """Pairs per second, decoded and on the device: our pipeline, TFRecord with a shuffle buffer, a memmap gather."""
    import jax

    from fusionx_jax.prepared import order, pipeline, store

    if args.tiles < args.batch_size * 4 or args.batch_size < 1 or args.rounds < 1:
        raise InputError(
            f"--tiles is {args.tiles}, --batch_size {args.batch_size} and --rounds {args.rounds}; at least four "
            "batches of tiles and one round are needed."
        )
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    batches = _PASSES * (args.tiles // args.batch_size)
    with tempfile.TemporaryDirectory(dir=args.tmp, prefix="fusionx-bench-") as folder:
        progress.logger.info(
            "Writing %d random pairs of %d px in three forms to %s.", args.tiles, args.tile_size, folder
        )
        write_random_set(folder, args.tiles, args.tile_size)
        prepared = store.PreparedSet(folder)
        arrays = _memmaps(prepared, folder, args.tiles)
        records = os.path.join(folder, "tiles.tfrecord")
        pipeline.write_tfrecord(prepared, "train", tuple(_SENSORS), records)
        steps = iter(range(0, 1 << 40, batches))

        memory: list[int] = []

        def drain(source: Iterator[dict[str, np.ndarray]]) -> int:
            count = 0
            for batch in pipeline.DeviceBatches(source, sharding):
                jax.block_until_ready(batch)
                count += args.batch_size
                if len(memory) < batches:  # the first turn is not timed
                    memory.append(_own_bytes())
            return count

        def ours() -> int:
            start = next(steps)
            return drain(
                pipeline.host_batches(
                    prepared, "train", tuple(_SENSORS), batch_size=args.batch_size, seed=0, start_step=start,
                    stop_step=start + batches,
                )
            )  # fmt: skip

        def tfrecord_shuffle() -> int:
            return drain(pipeline.tfrecord_batches(records, prepared, tuple(_SENSORS), args.batch_size, _PASSES))

        def memmap_gather() -> int:
            start = next(steps)
            for step in range(start, start + batches):
                index = order.batch_indices(0, step, args.batch_size, args.tiles)
                for array in arrays.values():
                    array[index]
            return batches * args.batch_size

        ours()  # alone, before a shuffle buffer fills and empties
        quarter = len(memory) // 4
        growth = int(np.median(memory[-quarter:]) - np.median(memory[quarter : 2 * quarter]))
        found = rates({"ours": ours, "tfrecord_shuffle": tfrecord_shuffle, "memmap_gather": memmap_gather}, args.rounds)
    return {
        "pairs_per_s": found["ours"],
        "tfrecord_shuffle_pairs_per_s": found["tfrecord_shuffle"],
        "memmap_gather_pairs_per_s": found["memmap_gather"],
        "vs_tfrecord_shuffle": found["ours"] / found["tfrecord_shuffle"],
        "vs_memmap_gather": found["ours"] / found["memmap_gather"],
        "memory_growth_bytes": growth,  # from the second quarter of one turn of ours to the last
        "pair_bytes": sum(args.tile_size**2 * 2 * len(s.bands) for s in _SENSORS.values()),
        "page_cache": "warm in all cases",
        "device": str(jax.local_devices()[0].device_kind),
        "cores": os.cpu_count(),
    }


def bench_probe(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a label-ratio sweep of linear probes: our vmapped fits against scikit-learn on every core."""
    from fusionx_jax.bench import probe as bench_probe

    if args.examples < 1000 or args.features < 2 or args.seeds < 1:
        raise InputError(
            f"--examples is {args.examples}, --features {args.features} and --seeds {args.seeds}; at least 1000 "
            "examples (ten labels at 1 %), two features and one seed are needed."
        )
    return bench_probe.run(args.kind, args.examples, args.features, args.seeds)


def bench_evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds and memory of a sweep at BigEarthNet's size."""
    from fusionx_jax.bench import evaluate

    names = [f.name for f in dataclasses.fields(evaluate.Sizes)]
    return evaluate.run(evaluate.Sizes(**{n: getattr(args, n) for n in names if getattr(args, n) is not None}))


def bench_train(args: argparse.Namespace) -> dict[str, Any]:
    """The train step of each config: pairs and FLOPs a second, against matrix products and against PyTorch."""
    from fusionx_jax.bench import train as bench_train

    if args.rounds < 1 or args.seconds <= 0 or args.tile_size < 1:
        raise InputError(
            f"--rounds is {args.rounds}, --seconds {args.seconds} and --tile_size {args.tile_size}; all must be "
            "positive."
        )
    configs = bench_train.load_configs(args.config, args.overrides)
    return bench_train.run(
        configs, args.dataset, args.tile_size, args.peer, args.rounds, args.seconds, args.profile, rates
    )


def _own_bytes() -> int:
    """Memory of this process that is not a file's; 0 where the system does not say."""
    try:
        with open("/proc/self/status", encoding="ascii") as f:
            return next((int(line.split()[1]) * 1024 for line in f if line.startswith("RssAnon:")), 0)
    except OSError:
        return 0


def _memmaps(prepared, folder: str, count: int) -> dict[str, np.ndarray]:
    """The same tiles as memory-mapped arrays, in the prepared set's order."""
    arrays = {}
    for key in _SENSORS:
        shape = prepared.read("train", [0], [key])[key].shape[1:]
        path = os.path.join(folder, f"{key}.npy")
        arrays[key] = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint16, shape=(count, *shape))
        for start in range(0, count, 64):
            index = np.arange(start, min(start + 64, count))
            arrays[key][index] = prepared.read("train", index, [key])[key]
    return arrays


def _table(values: dict[str, Any], indent: str = "") -> str:
    lines = []
    for k, v in values.items():
        if isinstance(v, dict):
            lines += [f"{indent}{k}", _table(v, indent + "  ")]
        elif isinstance(v, list):
            lines += [f"{indent}{k}", *(f"{indent}  " + "  ".join(_said(x) for x in row.values()) for row in v)]
        elif v is not None:
            lines.append(f"{indent}{k:{32 - len(indent)}} {_said(v)}")
    return "\n".join(lines)


def _said(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

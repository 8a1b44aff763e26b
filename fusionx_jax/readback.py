"""Reading checkpoints back: after they are saved, and before they are trusted.

Orbax finishes a checkpoint by a rename, but neither it nor TensorStore notices every array that was not written and
every bit that changed on the disk later. So each checkpoint is read once after its save, and the checksums (CRC-32) of
its arrays and metadata are kept beside them.

In a job of several processes the first one has this done by a process of its own: Orbax numbers its operations, and a
process that had read one checkpoint more than the others would wait for them at its next save.
"""

import json
import logging
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from fusionx_jax import files, progress
from fusionx_jax.errors import InputError, RunError, first_line
from fusionx_jax.types import JsonObject

CHECKSUMS = "checksums.json"
SET_ASIDE = "damaged"
"""Folder of a workdir for checkpoints that a run passed over."""
_METADATA = "metadata"
_LONGEST = 200  # characters of a library's error that a sentence quotes


class Damaged(Exception):
    """A checkpoint that cannot be used; the message says what is wrong with it."""


class Newest(NamedTuple):
    """The newest whole checkpoint of a folder, its metadata, and what is wrong with each newer one by its path."""

    path: str
    metadata: JsonObject
    passed_over: dict[str, str]


def _metadata(path: str) -> JsonObject:
    """The configuration, contract and step of a checkpoint.

    Raises:
      Damaged: it is not a finished checkpoint of ours.
    """
    with _single_process():
        try:
            if not ocp.is_orbax_checkpoint(path):
                raise Damaged("it is not a finished Orbax checkpoint")
            found = ocp.checkpointables_metadata(path).custom_metadata or {}
        except Damaged:
            raise
        except Exception as error:  # what Orbax raises for damaged files has many types
            raise Damaged(_line(error)) from error
    lacking = [key for key in ("config", "contract") if key not in found]
    if lacking:
        raise Damaged(f"its metadata have no {lacking[0]}")
    return dict(found)


def check(path: str, part: str = "") -> JsonObject:
    """Reads a checkpoint, or the part of its state called `part` ("params"), and compares its checksums.

    Returns:
      Its configuration, contract and step.

    Raises:
      Damaged: an array or the metadata cannot be read, or have other checksums.
    """
    metadata = _metadata(path)
    found = _checksums(path, metadata, part)
    file = files.join(path, CHECKSUMS)
    if not files.exists(file):  # saved by another program, or the run ended before it could read it back
        return metadata
    try:
        saved = json.loads(files.read_text(file))
        other = [name for name, value in found.items() if saved[name] != value]
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{CHECKSUMS} is damaged") from error
    if other:
        more = f" and {len(other) - 1} more" if len(other) > 1 else ""
        raise Damaged(f"the checksum of {other[0]}{more} is not the one that was saved")
    return metadata


def confirm(path: str) -> None:
    """Reads a checkpoint that was just saved, and keeps its checksums beside it.

    Raises:
      RunError: it cannot be read back.
    """
    if jax.process_count() > 1:
        _in_own_process("confirm", path)
        return
    try:
        checksums = _checksums(path, _metadata(path), "")
    except Damaged as error:
        raise RunError(
            f"The checkpoint {path} was saved but cannot be read back ({error}); check the disk and the path, and "
            "start again with the same command or another --workdir."
        ) from error
    with files.replacing(files.join(path, CHECKSUMS)) as f:
        json.dump(checksums, f)


def newest(folder: str, part: str = "") -> Newest:
    """The newest checkpoint in a folder that is whole, as far as `part` of its state (see `check`).

    Raises:
      InputError: none is whole, or there is none.
    """
    passed_over: dict[str, str] = {}
    for path in _steps(folder):
        try:
            return Newest(path, check(path, part), passed_over)
        except Damaged as error:
            passed_over[path] = str(error)
    if not passed_over:
        raise InputError(f"{folder} holds no finished checkpoint; let `fusionx pretrain` reach checkpoint_every.")
    listed = "; ".join(f"{os.path.basename(path)}: {why}" for path, why in passed_over.items())
    raise InputError(
        f"No checkpoint in {folder} is whole ({listed}); copy the folder again from where it came, or give another "
        "workdir."
    )


def set_aside_damaged(workdir: str, folder: str) -> None:
    """Moves the damaged checkpoints that are newer than the newest whole one out of a run's folder, and logs each.

    Raises:
      InputError: there are checkpoints, but none is whole.
    """
    if jax.process_count() > 1:
        _in_own_process("set_aside_damaged", workdir, folder)
        return
    if not files.is_folder(folder) or not list(_steps(folder)):
        return
    whole = newest(folder)
    for path, why in whole.passed_over.items():
        target = _free_name(files.join(workdir, SET_ASIDE, os.path.basename(path)))
        files.move(path, target)
        progress.logger.warning(
            "The checkpoint %s is passed over (%s); it is now %s. The newest whole one is %s.",
            path,
            why,
            target,
            whole.path,
        )


def _in_own_process(function: str, *arguments: str) -> None:
    """Runs a function of this module in another process that belongs to no job, and raises or logs what it does."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "fusionx_jax.readback", function, *arguments],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        told = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise RunError(
            f"The process that checks the checkpoints ended with the status {done.returncode}: {done.stderr[-500:]}"
        ) from error
    for warning in told["warnings"]:
        progress.logger.warning("%s", warning)
    if told["error"]:
        raise {"InputError": InputError, "RunError": RunError}[told["kind"]](told["error"])


def _main(function: str, *arguments: str) -> None:
    """What `_in_own_process` runs: prints one line of JSON."""
    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    progress.logger.addHandler(handler)
    progress.logger.propagate = False
    kind = message = ""
    try:
        if function == "confirm":
            confirm(*arguments)
        else:
            set_aside_damaged(*arguments)
    except (InputError, RunError) as error:
        kind, message = type(error).__name__, str(error)
    print(json.dumps({"warnings": warnings, "kind": kind, "error": message}))


def _steps(folder: str) -> Iterator[str]:
    """Paths of the checkpoints in a folder, the newest first."""
    for step in sorted((int(name) for name in files.listdir(folder) if name.isdecimal()), reverse=True):
        yield files.join(folder, str(step))


def _free_name(path: str) -> str:
    number = 0
    while files.exists(f"{path}.{number}" if number else path):
        number += 1
    return f"{path}.{number}" if number else path


def _checksums(path: str, metadata: JsonObject, part: str) -> dict[str, int]:
    """CRC-32 of the metadata and of each array."""
    out = {_METADATA: zlib.crc32(json.dumps(metadata, sort_keys=True).encode())}
    for where, array in jax.tree.leaves_with_path(read(path, part)):
        out[jax.tree_util.keystr(where, simple=True, separator="/")] = zlib.crc32(np.ascontiguousarray(array).data)
    return out


def read(path: str, part: str = "") -> PyTree[np.ndarray]:
    """The state of a checkpoint on the host, or one part of it.

    Raises:
      Damaged: it cannot be read.
    """
    with _single_process():
        try:
            described = ocp.checkpointables_metadata(path).metadata["state"]
            if described is None:  # Orbax logs the reason
                raise Damaged("not all of its arrays can be read")
            wanted = {
                key: _host(value) if part in ("", key) else _passed_over(value) for key, value in described.items()
            }
            state = ocp.load_checkpointables(path, {"state": wanted})["state"]
        except Damaged:
            raise
        except Exception as error:  # TensorStore's errors have types of their own
            raise Damaged(_line(error)) from error
    return {key: value for key, value in state.items() if part in ("", key)}


def _host(described: PyTree) -> PyTree[np.ndarray]:
    return jax.tree.map(lambda x: np.empty(x.shape, x.dtype), described)


def _passed_over(described: PyTree) -> PyTree:
    return jax.tree.map(lambda _: ocp.PLACEHOLDER, described)


def _single_process() -> ocp.Context:
    """Reads without waiting for the other processes of a job."""
    this = jax.process_index()
    context = ocp.Context()
    options = context.multiprocessing
    options.primary_host, options.active_processes, options.barrier_sync_key_prefix = this, {this}, f"readback_{this}"
    return context


def _line(error: Exception) -> str:
    """The first line of an error, cut."""
    line = first_line(error)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"


if __name__ == "__main__":
    _main(*sys.argv[1:])

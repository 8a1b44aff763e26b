"""Failures that a command reports in one sentence instead of a traceback."""

import contextlib
import errno
import re
from collections.abc import Iterator
from typing import NamedTuple

_LONGEST_WORD = 400  # characters: names that people type may be paths, but not pages


class InputError(ValueError):
    """The user's input or usage is wrong; the message is a clear sentence. Exit status 2.

    Very long words, which the input may hold, are cut in the message.
    """

    def __init__(self, message: str):
        super().__init__(_cut(message))


class RunError(RuntimeError):
    """The run failed for a reason outside the input (a full disk, diverged training). Exit status 1."""

    def __init__(self, message: str):
        super().__init__(_cut(message))


def _cut(message: str) -> str:
    return re.sub(rf"(\S{{{_LONGEST_WORD}}})\S+", r"\1…", message)


def first_line(error: BaseException) -> str:
    """The first line of a library's error, or its type where it has no text."""
    return next(iter(str(error).splitlines()), "").strip() or type(error).__name__


class Failure(NamedTuple):
    """The exit status of a command that failed, and the message it prints."""

    status: int
    message: str


def failure(error: BaseException) -> Failure | None:
    """What a command reports for an error; None for a fault of the program, which needs its traceback."""
    if isinstance(error, InputError):
        return Failure(2, str(error))
    if isinstance(error, RunError):
        return Failure(1, str(error))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = error.filename or "while writing"
        return Failure(1, f"The disk is full ({place}); free some space and run the same command again.")
    unusable = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
    if isinstance(error, OSError) and error.errno in unusable:
        return Failure(2, f"{error.strerror}: {error.filename}; give another folder or its permissions.")
    return None


@contextlib.contextmanager
def device_memory(task: str, advice: str) -> Iterator[None]:
    """Reports XLA's out-of-memory error as a RunError. Steps run asynchronously: include the reading of their results.

    Args:
      task: names the computation and the settings that determine its memory, e.g. "the train step (batch_size is 256)".
      advice: what to change, e.g. "lower batch_size".

    Raises:
      RunError: the devices ran out of memory inside the block.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        # XLA's message is long: the first line with the status code has the sizes.
        line = next(line for line in str(error).splitlines() if "RESOURCE_EXHAUSTED" in line)
        raise RunError(f"The device ran out of memory in {task}; {advice}. XLA reports: {line.strip()}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is XLA's for too little device memory. TensorStore has the same status code for a full disk."""
    import jax  # here: `--help` must not wait for it

    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)

"""Files that are complete or not there."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import IO


def lock(path: str | os.PathLike) -> IO | None:
    """An open file whose lock nobody else gets until it is closed, or this process ends; None where another has it.

    File systems without locks give one to everybody.
    """
    held = open(path, "w", encoding="utf-8")  # noqa: SIM115 (held until the end)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.close()
        return None
    except OSError:
        pass
    return held


@contextlib.contextmanager
def replacing(path: str | os.PathLike, mode: str = "w", newline: str | None = None) -> Iterator[IO]:
    """A file open for writing that takes the name `path` when the block ends well, and is removed when it does not."""
    path = os.fspath(path)
    temporary = f"{path}.tmp-{os.getpid()}"
    try:
        with open(temporary, mode, newline=newline, encoding=None if "b" in mode else "utf-8") as f:
            yield f
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)

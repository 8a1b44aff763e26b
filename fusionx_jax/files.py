"""Files that are complete or not there."""

import contextlib
import os
from collections.abc import Iterator
from typing import IO


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

"""Files at local paths and at addresses (gs://, s3://, memory://): one set of functions for both.

Local paths use the standard library. Addresses use fsspec and not `etils.epath`, because the readers of prepared sets
need its file cache, it knows memory:// (tests need no server), and it uploads an object with one call. Orbax writes
checkpoints through `epath` (see `checkpoint.py`).

Object stores differ from disks in three ways, and each has one answer here:

- no rename: `replacing` uploads the whole file at the end of the block;
- no append: `Appender` keeps the content in memory and rewrites the object when `flush` is called;
- no locks: `lock` writes a claim with an owner and a time, and refreshes it (see `lock`).
"""

import contextlib
import errno
import fcntl
import io
import json
import os
import posixpath
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from types import TracebackType
from typing import IO, TYPE_CHECKING

from fusionx_jax import progress
from fusionx_jax.errors import InputError

if TYPE_CHECKING:
    import fsspec

Path = str | os.PathLike[str]

# The owner of a claim rewrites it at this interval; others take it over after three intervals without a write. One
# write in 20 s is cheap on every object store, and a preempted job waits for a minute at most.
_REFRESH_S = 20.0
_STALE_S = 3 * _REFRESH_S


def is_address(path: Path) -> bool:
    """Whether a path is an address (gs://, s3://, memory://) and not a local path."""
    return "://" in os.fspath(path)


def absolute(path: Path) -> str:
    """The absolute form of a local path; addresses are absolute already."""
    return os.fspath(path) if is_address(path) else os.path.abspath(path)


def join(folder: Path, *names: str) -> str:
    """The path of a file or folder inside `folder`."""
    if is_address(folder):
        return posixpath.join(os.fspath(folder), *names)
    return os.path.join(folder, *names)


def _file_system(address: Path) -> "tuple[fsspec.AbstractFileSystem, str]":
    """The fsspec file system of an address, and the path in it.

    Raises:
      InputError: no file system is known by the scheme, or its package is not installed.
    """
    import fsspec

    try:
        return fsspec.core.url_to_fs(os.fspath(address))
    except (ImportError, ValueError) as error:
        raise InputError(
            f"{address} cannot be opened ({error}); install the file system's package (gcsfs for gs://, s3fs for "
            "s3://) or use a local path."
        ) from error


def exists(path: Path) -> bool:
    """Whether there is a file or folder; on an object store a folder exists if it holds an object."""
    if not is_address(path):
        return os.path.exists(path)
    file_system, name = _file_system(path)
    return bool(file_system.exists(name))


def is_folder(path: Path) -> bool:
    """Whether there is a folder."""
    if not is_address(path):
        return os.path.isdir(path)
    file_system, name = _file_system(path)
    return bool(file_system.isdir(name))


def listdir(path: Path) -> list[str]:
    """Sorted names of the files and folders in a folder.

    Raises:
      FileNotFoundError: there is no such folder.
    """
    if not is_address(path):
        return sorted(os.listdir(path))
    file_system, name = _file_system(path)
    file_system.invalidate_cache()
    return sorted(posixpath.basename(entry.rstrip("/")) for entry in file_system.ls(name, detail=False))


def makedirs(path: Path) -> None:
    """Creates a folder and its parents where they do not exist."""
    if is_address(path):
        file_system, name = _file_system(path)
        file_system.makedirs(name, exist_ok=True)
    else:
        os.makedirs(path, exist_ok=True)


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
      FileNotFoundError: there is no such file.
    """
    if is_address(path):
        file_system, name = _file_system(path)
        return bytes(file_system.cat_file(name))
    with open(path, "rb") as f:
        return f.read()


def read_text(path: Path) -> str:
    """The content of a UTF-8 file. Line ends stay as they are, as the `csv` module needs them.

    Raises:
      FileNotFoundError: there is no such file.
    """
    return read_bytes(path).decode("utf-8")


def remove(path: Path) -> None:
    """Removes a file; nothing if there is none."""
    with contextlib.suppress(FileNotFoundError):
        if is_address(path):
            file_system, name = _file_system(path)
            file_system.rm_file(name)
        else:
            os.remove(path)


def remove_folder(path: Path) -> None:
    """Removes a folder and everything in it; nothing if there is none."""
    if not is_address(path):
        shutil.rmtree(path, ignore_errors=True)
        return
    file_system, name = _file_system(path)
    with contextlib.suppress(FileNotFoundError):
        file_system.rm(name, recursive=True)


def move(source: Path, target: Path) -> None:
    """Moves a folder to a path in an existing or new folder of the same file system."""
    if is_address(source):
        file_system, name = _file_system(source)
        file_system.mv(name, _file_system(target)[1], recursive=True)
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    os.rename(source, target)


@contextlib.contextmanager
def replacing(path: Path, mode: str = "w", newline: str | None = None) -> Iterator[IO]:
    """A file open for writing that replaces `path` when the block ends without an error.

    Readers see the old content or the new one, never a part: a local file is renamed, an object is uploaded whole.
    """
    encoding = None if "b" in mode else "utf-8"
    if is_address(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = os.path.join(folder, "upload")
            with open(temporary, mode, newline=newline, encoding=encoding) as f:
                yield f
            file_system, name = _file_system(path)
            file_system.put_file(temporary, name)
        return
    path = os.fspath(path)
    temporary = f"{path}.tmp-{os.getpid()}"
    try:
        with open(temporary, mode, newline=newline, encoding=encoding) as f:
            yield f
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


class Appender:
    """A UTF-8 text file that grows. `flush` makes what was written visible to readers.

    An object is rewritten whole at each `flush`: call it at checkpoints, not at each line.
    """

    def __init__(self, path: Path, newline: str | None = None):
        self.rewrites = is_address(path)
        self._path, self._newline = path, newline
        self._file: IO[str]
        if self.rewrites:
            self._file = io.StringIO(newline=newline)
            if exists(path):
                self._file.write(read_text(path))
        else:
            self._file = open(path, "a", newline=newline, encoding="utf-8")  # noqa: SIM115 (closed in `close`)

    def write(self, text: str) -> int:
        """Adds text; returns its length, as files do."""
        return self._file.write(text)

    def flush(self) -> None:
        """Makes the content visible to readers."""
        if isinstance(self._file, io.StringIO):
            with replacing(self._path, newline=self._newline) as f:
                f.write(self._file.getvalue())
        else:
            self._file.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        if not self._file.closed:
            self.flush()
            self._file.close()


class Lock:
    """A lock on a path until `close`, or until the process ends."""

    def __init__(self, file: IO | None = None, claim: "_Claim | None" = None):
        self._file, self._claim = file, claim

    def close(self) -> None:
        """Releases the lock."""
        if self._file is not None:
            self._file.close()
        if self._claim is not None:
            self._claim.close()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def lock(path: Path) -> Lock | None:
    """Locks a path; None if another process has locked it.

    Local files are locked by the operating system (`flock`), which releases the lock when the process ends. Where that
    is impossible (an object store, some network file systems) a claim file holds the owner and the time, and the owner
    refreshes it every 20 s. A claim is taken over when it is a minute old, or when its owner was a process of this
    machine that no longer runs. Two processes that claim a path in the same instant may both succeed.
    """
    if is_address(path):
        return _claim(path)
    file = open(path, "w", encoding="utf-8")  # noqa: SIM115 (closed by Lock.close)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        file.close()
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
        return _claim(f"{os.fspath(path)}.claim")
    return Lock(file)


def _claim(path: Path) -> Lock | None:
    """Claims a path by a claim file; None if a live owner has claimed it."""
    owner = _owner(path)
    if owner is not None and _is_alive(owner):
        return None
    progress.logger.info("%s cannot be locked; a claim that is refreshed every %.0f s replaces it.", path, _REFRESH_S)
    claim = _Claim(path)
    return Lock(claim=claim) if claim.is_ours() else None


def _owner(path: Path) -> dict | None:
    """The content of a claim file; None if there is none, or it is damaged."""
    try:
        owner = json.loads(read_text(path))
    except (FileNotFoundError, ValueError):
        return None
    return owner if isinstance(owner, dict) and {"id", "host", "process", "time"} <= set(owner) else None


def _is_alive(owner: dict) -> bool:
    """Whether the owner of a claim still runs, as far as its age and this machine's processes show."""
    if time.time() - owner["time"] > _STALE_S:
        return False
    if owner["host"] != socket.gethostname():
        return True
    return owner["process"] == os.getpid() or os.path.exists(f"/proc/{owner['process']}")


class _Claim:
    """A claim file, refreshed by a thread until it is closed."""

    def __init__(self, path: Path):
        self._path, self._id = path, uuid.uuid4().hex
        self._closed = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._refresh, name="claim", daemon=True)
        self._thread.start()

    def is_ours(self) -> bool:
        """Whether no other process has written over the claim."""
        owner = _owner(self._path)
        return owner is not None and owner["id"] == self._id

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        if self.is_ours():
            remove(self._path)

    def _write(self) -> None:
        owner = {"id": self._id, "host": socket.gethostname(), "process": os.getpid(), "time": time.time()}
        with replacing(self._path) as f:
            json.dump(owner, f)

    def _refresh(self) -> None:
        while not self._closed.wait(_REFRESH_S):
            try:
                self._write()
            except OSError as error:  # an unreachable store: the next turn tries again
                progress.logger.warning("The claim %s could not be refreshed (%s).", self._path, error)

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import uuid

import pytest

from fusionx_jax import files
from fusionx_jax.errors import InputError


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    """An empty folder on a disk, and one in fsspec's memory file system."""
    path = str(tmp_path / "folder") if request.param == "local" else f"memory://{uuid.uuid4().hex}/folder"
    files.makedirs(path)
    return path


def test_files_are_written_listed_and_read_alike_at_paths_and_addresses(folder):
    text, raw = files.join(folder, "a", "text.csv"), files.join(folder, "raw")
    files.makedirs(files.join(folder, "a"))
    with files.replacing(text, newline="") as f:
        f.write("é\r\n")
    with files.replacing(raw, "wb") as f:
        f.write(b"\0\1")
    assert files.read_text(text) == "é\r\n"
    assert files.read_bytes(raw) == b"\0\1"
    assert files.listdir(folder) == ["a", "raw"]
    assert files.exists(text)
    assert files.is_folder(files.join(folder, "a"))
    assert not files.is_folder(raw)
    files.remove(raw)
    files.remove(raw)
    assert not files.exists(raw)
    with pytest.raises(FileNotFoundError):
        files.read_bytes(raw)


def test_a_write_that_fails_leaves_the_old_content_and_no_other_file(folder):
    path = files.join(folder, "x")
    with files.replacing(path) as f:
        f.write("old")
    with contextlib.suppress(ZeroDivisionError), files.replacing(path) as f:
        f.write("new")
        raise ZeroDivisionError
    assert files.read_text(path) == "old"
    assert files.listdir(folder) == ["x"]


def test_appended_text_follows_what_was_there_once_it_is_flushed(folder):
    path = files.join(folder, "log")
    for line in ("one\n", "two\n"):
        appender = files.Appender(path)
        appender.write(line)
        appender.flush()
        assert files.read_text(path).endswith(line)
        appender.close()
    assert files.read_text(path) == "one\ntwo\n"


def test_a_locked_path_is_refused_until_the_lock_is_closed(folder):
    path = files.join(folder, "lock")
    first = files.lock(path)
    assert files.lock(path) is None
    first.close()
    with files.lock(path):
        assert files.lock(path) is None


def _write_claim(path, **changes):
    claim = {"id": "0", "host": "elsewhere", "process": 1, "time": time.time(), **changes}
    with files.replacing(path) as f:
        json.dump(claim, f)


def test_a_claim_is_taken_over_only_from_an_owner_that_is_gone():
    path = f"memory://{uuid.uuid4().hex}/lock"
    _write_claim(path)
    assert files.lock(path) is None
    _write_claim(path, time=time.time() - 61)
    files.lock(path).close()
    assert not files.exists(path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    _write_claim(path, host=socket.gethostname(), process=ended.pid)
    files.lock(path).close()
    _write_claim(path, host=socket.gethostname(), process=os.getppid())
    assert files.lock(path) is None


def test_a_file_system_without_locks_is_claimed_and_the_log_says_so(tmp_path, monkeypatch, caplog):
    import errno

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    caplog.set_level("INFO", "fusionx")
    path = str(tmp_path / "lock")
    with files.lock(path):
        assert files.lock(path) is None
    assert "cannot be locked; a claim" in caplog.text


def test_an_unknown_scheme_is_refused_with_the_address():
    with pytest.raises(InputError, match=r"nowhere://x/y cannot be opened"):
        files.exists("nowhere://x/y")
    assert files.absolute("memory://x") == "memory://x"
    assert files.absolute("x") == os.path.abspath("x")

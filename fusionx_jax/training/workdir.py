"""The workdir of a run: locked while the run trains, and bound to one configuration and one data set.

It is a local path or an address (see `files.py`).
"""

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Mapping

from ml_collections import ConfigDict

from fusionx_jax import config as config_lib
from fusionx_jax import files, progress
from fusionx_jax.contract import Contract
from fusionx_jax.errors import InputError

RECORD = "run.json"


def lock(workdir: str) -> files.Lock:
    """Creates the workdir and locks it until the returned lock is closed.

    Raises:
      InputError: another run has locked it, or it cannot be written.
    """
    try:
        files.makedirs(workdir)
        lock_file = files.lock(files.join(workdir, "lock"))
    except OSError as error:
        raise _cannot_write(workdir, error) from error
    if lock_file is None:
        raise InputError(f"Another run trains in the workdir {workdir}; wait for it, or give another --workdir.")
    return lock_file


def claim(workdir: str, config: ConfigDict, contract: Contract) -> None:
    """Records configuration and contract of a run in its workdir.

    Raises:
      InputError: the workdir belongs to another configuration or data set, or cannot be written.
    """
    record = {"config": config_lib.to_json(config), "contract": contract.to_dict()}
    path = files.join(workdir, RECORD)
    try:
        if files.exists(path):
            _check_same_run(workdir, json.loads(files.read_text(path)), record)
        with files.replacing(path) as f:
            json.dump(record, f, indent=1, sort_keys=True)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}); give another --workdir.") from error
    except OSError as error:
        raise _cannot_write(workdir, error) from error


def _check_same_run(workdir: str, before: Mapping, now: Mapping) -> None:
    different = differences(before["config"], now["config"])
    if different:
        raise InputError(
            f"The workdir {workdir} belongs to another config ({'; '.join(different)}); give another --workdir, or the "
            "values it was started with."
        )
    old, new = before["contract"]["source_version"], now["contract"]["source_version"]
    if old != new:
        raise InputError(
            f"The workdir {workdir} was started on {old}, but the data set is now {new}; give another --workdir or the "
            "same data set."
        )


def differences(before: Mapping, now: Mapping) -> list[str]:
    """Settings that change the weights and differ between two configurations as JSON, one line each."""
    return _differences(config_lib.without_free_settings(before), config_lib.without_free_settings(now), "")


def _differences(before: Mapping, now: Mapping, prefix: str) -> list[str]:
    lines: list[str] = []
    for key in sorted(set(before) | set(now)):
        a, b = before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += _differences(a, b, f"{prefix}{key}.")
        # A key that one side lacks equals an empty value: runs made before the key existed did not use it.
        elif a != b and (a is not None or b):
            lines.append(f"{prefix}{key}: was {a!r}, now {b!r}")
    return lines


def _cannot_write(workdir: str, error: OSError) -> InputError:
    return InputError(f"Cannot write to the workdir {workdir} ({error.strerror or error}); give another one.")


_LOG_FLUSH_S = 60.0  # an object is rewritten whole: at every line of the log that would be most of the traffic


@contextlib.contextmanager
def logging_to(path: str) -> Iterator[None]:
    """Writes every line of the log to a file as well; at an address the file is rewritten once a minute."""
    if not files.is_address(path):
        with progress.logging_to(path):
            yield
        return
    handler = _ObjectLog(path)
    progress.logger.addHandler(handler)
    try:
        yield
    finally:
        progress.logger.removeHandler(handler)
        handler.close()


class _ObjectLog(logging.Handler):
    """A log file on an object store."""

    def __init__(self, path: str):
        super().__init__(logging.DEBUG)
        self.setFormatter(progress.LOG_FORMAT)
        self._file = files.Appender(path)
        self._flushed = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        self._file.write(self.format(record) + "\n")
        if time.monotonic() - self._flushed >= _LOG_FLUSH_S:
            self._flushed = time.monotonic()
            self._file.flush()

    def close(self) -> None:
        self._file.close()
        super().close()

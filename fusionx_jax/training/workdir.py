"""The workdir of a run: locked while the run trains, and bound to one configuration and one data set."""

import json
import os
from collections.abc import Mapping

from ml_collections import ConfigDict

from fusionx_jax import config as config_lib
from fusionx_jax import files
from fusionx_jax.contract import Contract
from fusionx_jax.errors import InputError

RECORD = "run.json"


def lock(workdir: str) -> files.Lock:
    """Creates the workdir and locks it until the returned lock is closed.

    Raises:
      InputError: another run has locked it, or it cannot be written.
    """
    try:
        os.makedirs(workdir, exist_ok=True)
        lock_file = files.lock(os.path.join(workdir, "lock"))
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
    path = os.path.join(workdir, RECORD)
    try:
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                _check_same_run(workdir, json.load(f), record)
        with files.replacing(path) as f:
            json.dump(record, f, indent=1, sort_keys=True)
    except (json.JSONDecodeError, KeyError) as error:
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

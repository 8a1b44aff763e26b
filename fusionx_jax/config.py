"""Configurations: a Python file with `get_config(options)`, overridden by `--config.key=value`."""

import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from fusionx_jax import limits
from fusionx_jax.errors import InputError
from fusionx_jax.types import Json, JsonObject, Untyped

_LONGEST = 500  # characters of a library's error that a sentence quotes
FREE_SETTINGS = (
    "dataset",
    "method",
    "evaluate",
    "label_fractions",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "verify_records",
    "mesh",
)
"""Top-level keys that do not change the weights. Resuming a run and the settings hash of its cells ignore them."""


def load_file(spec: str) -> ConfigDict:
    """Runs `get_config(options)` of `PATH[:options]`.

    Raises:
      InputError: no such file, no `get_config` in it, or it fails.
    """
    path, _, options = spec.partition(":")
    if not os.path.isfile(path):
        raise InputError(f"There is no config file {path}; those that come with the project are in configs/.")
    # configs/*.py import each other as a package that sits beside the library in a checkout.
    root = os.path.dirname(os.path.abspath(path))
    while os.path.isfile(os.path.join(root, "__init__.py")):
        root = os.path.dirname(root)
    if root not in sys.path:
        sys.path.append(root)
    module_spec = importlib.util.spec_from_file_location("_fusionx_config", path)
    assert module_spec is not None
    assert module_spec.loader is not None  # a path that ends in .py has one
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        config = module.get_config(options)
    except InputError:
        raise
    except AttributeError as error:
        raise InputError(f"{path} has no usable `get_config(options)` ({error}).") from error
    except (SyntaxError, ImportError, TypeError, ValueError, KeyError) as error:
        raise InputError(f"The config {spec} cannot be read: {type(error).__name__}: {error}.") from error
    return config


def from_json(raw: Mapping[str, Json]) -> ConfigDict:
    """A config as stored in a checkpoint; lists become tuples again."""

    def tuples(value: Json) -> Json:  # any JSON value
        if isinstance(value, Mapping):
            return {k: tuples(v) for k, v in value.items()}
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    return ConfigDict(tuples(raw))


def to_json(config: ConfigDict) -> JsonObject:
    """Plain JSON values, as they will be read back."""
    return json.loads(config.to_json(sort_keys=True))


def weight_settings(config: ConfigDict) -> JsonObject:
    """The settings that determine a run's weights: all but `FREE_SETTINGS`, as plain JSON values."""
    return without_free_settings(to_json(config))


def without_free_settings(raw: Mapping[str, Json]) -> JsonObject:
    """A config as JSON without `FREE_SETTINGS`."""
    return {key: value for key, value in raw.items() if key not in FREE_SETTINGS}


_FLOATS = ("dataset_weights", "label_fractions", "layer_decays", "learning_rates", "regularization")

BY_MODALITY = ("loss_weights", "mask_ratio")
"""Keys that may hold one value for each modality; overrides may add an entry for any name in `modalities`."""


def override(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """Applies `--config.key=value` arguments, with ml_collections' type checks.

    Raises:
      InputError: an unknown key, with the keys that exist beside it, or a value of the wrong type or out of range.
    """
    for item in overrides:
        if not item.startswith("--config."):
            raise InputError(f"The argument {item!r} is not understood; config values are set as --config.key=value.")
    new = [item for item in overrides if _is_new_entry(config, _key(item))]
    config = _set_values(config, [item for item in overrides if item not in new])
    for item in new:
        _add_entry(config, _key(item))
    if new:
        config = _set_values(config, new)
    limits.check(config)
    _make_floats(config)
    return config


def _make_floats(config: ConfigDict) -> None:
    """Writes the numbers of lists of rates and shares as floats: `(0.1,1)` is `(0.1,1.0)`, also in hashes."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            _make_floats(value)
        elif name in _FLOATS and isinstance(value, tuple | list):
            config[name] = tuple(float(v) for v in value)


def _key(item: str) -> str:
    """The key of `--config.key=value`."""
    return item.removeprefix("--config.").partition("=")[0]


def _is_new_entry(config: ConfigDict, key: str) -> bool:
    """Whether a key adds an entry to a setting that has one value for each modality."""
    parent, _, name = key.partition(".")
    return (
        parent in BY_MODALITY
        and bool(name)
        and isinstance(config.get(parent), ConfigDict)
        and name not in config[parent]
    )


def _add_entry(config: ConfigDict, key: str) -> None:
    """Adds a float entry for a modality."""
    parent, _, name = key.partition(".")
    if name not in config.modalities:
        raise InputError(
            f"Unknown config key {key!r}: {name} is not a modality of this config; modalities is "
            f"{tuple(config.modalities)}."
        )
    with config.unlocked():
        config[parent][name] = 0.0


def _set_values(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """Sets values of existing keys."""
    from absl import flags
    from ml_collections import config_flags

    for item in overrides:
        _check_key(config, _key(item))
    values = flags.FlagValues()
    argv = ["fusionx", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
    except (flags.Error, TypeError, ValueError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"A config value cannot be set: {reason[:_LONGEST]}. A value has the type of the default in configs/."
        ) from error
    return values.config


def _check_key(config: ConfigDict, key: str) -> None:
    node: Untyped = config  # a ConfigDict or a leaf
    walked: list[str] = []
    for part in key.split("."):
        if not isinstance(node, ConfigDict) or part not in node:
            where = ".".join(walked) or "the top level"
            have = ", ".join(sorted(node)) if isinstance(node, ConfigDict) else "no keys"
            raise InputError(f"Unknown config key {key!r}: {where} has {have}.")
        node = node[part]
        walked.append(part)


def stages(config: ConfigDict) -> list[int]:
    """The steps at which mask ratios change, from 0: shapes are static, so each stage is a program of its own.

    Raises:
      InputError: the schedule is not a list of (step, ratio) with rising steps.
    """
    schedule = config.get("mask_schedule", ())
    steps = [entry[0] if isinstance(entry, tuple) and len(entry) == 2 else -1 for entry in schedule]
    if any(not isinstance(s, int) or s < 1 for s in steps) or steps != sorted(set(steps)):
        raise InputError(
            f"mask_schedule is {schedule}; it must list (step, mask_ratio) with steps rising from at least 1, e.g. "
            "((500, 0.8), (800, 0.9)), each ratio holding from its step on."
        )
    return [0, *steps]


def mask_ratios(config: ConfigDict, step: int = 0) -> dict[str, float]:
    """The mask ratio of each modality at `step`, given as one number or by modality.

    Raises:
      InputError: a modality has no ratio.
    """
    passed = [ratio for begin, ratio in config.get("mask_schedule", ()) if begin <= step]
    if passed:
        return {m: float(passed[-1]) for m in config.modalities}
    if isinstance(config.mask_ratio, ConfigDict):
        missing = [m for m in config.modalities if m not in config.mask_ratio]
        if missing:
            raise InputError(f"mask_ratio gives none for {', '.join(missing)}; it must name every modality.")
        return {m: float(config.mask_ratio[m]) for m in config.modalities}
    return {m: float(config.mask_ratio) for m in config.modalities}

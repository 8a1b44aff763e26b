"""Hashes of an evaluation's settings, which decide which kept cells are used again.

One hash is of the settings that affect every cell, and one by evaluator of what affects its cells alone. Settings that
only say which cells there are belong to neither.
"""

import hashlib
import json
from collections.abc import Sequence

from ml_collections import ConfigDict

from fusionx_jax import config as config_lib
from fusionx_jax.evaluate.evaluators import EVALUATORS
from fusionx_jax.types import Json, JsonObject

# Which cells there are; no cell's numbers. Label subsets are identified by each cell itself.
_SELECTING = (
    "evaluators", "baselines", "modalities", "tasks", "single_sensor_tasks", "seeds", "shots", "zero_fill",
    "subset_dir", "any_level",
)  # fmt: skip


def digest(value: Json) -> str:
    """A short hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def shared_settings(config: ConfigDict) -> JsonObject:
    """The settings of `config.evaluate` that affect every cell."""
    of_evaluators = {key for e in EVALUATORS.values() for key in e.settings}
    values = config_lib.to_json(config)["evaluate"]
    if not values.get("folds"):  # cells that were kept before there were folds stay valid
        values.pop("folds", None)
    return {k: v for k, v in values.items() if k not in _SELECTING and k not in of_evaluators}


def evaluator_hashes(config: ConfigDict, leave_out: Sequence[str] = ()) -> dict[str, str]:
    """By evaluator, the hash of its version and of the settings that affect its cells alone, without some keys."""
    values = config_lib.to_json(config)["evaluate"]
    ignored = {"seeds", "tasks", *leave_out}
    out = {}
    for name, evaluator in EVALUATORS.items():
        settings = {key: _without(values.get(key), ignored) for key in evaluator.settings}
        out[name] = digest([evaluator.version, settings])
    return out


def _without(value: Json, ignored: set[str]) -> Json:
    return {k: v for k, v in value.items() if k not in ignored} if isinstance(value, dict) else value

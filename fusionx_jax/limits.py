"""Ranges of config values, checked when a config is read: by the last part of a key, wherever it stands."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from fusionx_jax.errors import InputError
from fusionx_jax.types import Untyped


class _Range(NamedTuple):
    """Numbers from `least` to `most`; `above` and `below` leave out the ends."""

    least: int | float = -math.inf
    most: int | float = math.inf
    above: bool = False
    below: bool = False

    def holds(self, value: int | float) -> bool:
        return (value > self.least if self.above else value >= self.least) and (
            value < self.most if self.below else value <= self.most
        )

    def text(self) -> str:
        if self.most == math.inf:
            return f"{'above' if self.above else 'at least'} {self.least:g}"
        return f"{'above' if self.above else 'from'} {self.least:g} {'and' if self.above else 'to'} " + (
            f"below {self.most:g}" if self.below else f"at most {self.most:g}" if self.above else f"{self.most:g}"
        )


_POSITIVE, _NOT_NEGATIVE, _COUNT = _Range(0, above=True), _Range(0), _Range(1)
_SHARE, _DECAY = _Range(0, 1), _Range(0, 1, below=True)
_RANGES: Mapping[str, _Range] = {
    **dict.fromkeys(
        ("accumulate", "batch_size", "block_size", "checkpoint_every", "components", "eval_every", "fsdp", "k",
         "keep_checkpoints", "log_every", "min_samples_leaf", "patch_size", "seeds", "shots", "trees"), _COUNT,
    ),
    **dict.fromkeys(
        ("alpha", "clip_norm", "learning_rate", "learning_rates", "regularization", "temperature"), _POSITIVE
    ),
    **dict.fromkeys(
        ("bootstrap", "crop", "dataset_weights", "folds", "gain", "loss_weights", "min_steps", "noise", "num_steps",
         "patience", "warmup_steps", "weight", "weight_decay"), _NOT_NEGATIVE,
    ),
    **dict.fromkeys(("drop", "final_fraction", "own_share", "warmup_share"), _SHARE),
    **dict.fromkeys(("b1", "b2", "drop_path", "ema"), _DECAY),
    "cv_folds": _Range(2),
    "label_fractions": _Range(0, 1, above=True),
    "holdout": _Range(0, 0.5, above=True),
    "layer_decays": _Range(0, 1, above=True),
    "least_area": _Range(0, 1, above=True),
    "seed": _Range(0, 2**32 - 1),
    "unfreeze": _Range(-1),
}  # fmt: skip
_TEXTS = ("baselines", "evaluators", "modalities", "single_sensor_tasks", "tasks")
_LARGEST_INTEGER = 2**31 - 1  # steps and sizes are int32 on the device; a seed may be larger


def check(config: ConfigDict) -> None:
    """Refuses values out of range and lists with members of another kind.

    Raises:
      InputError: with the key, its value and what is expected.
    """
    _check(config, "")


def _check(config: ConfigDict, prefix: str) -> None:
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, ConfigDict):
            _check(value, f"{key}.")
            continue
        members = value if isinstance(value, tuple | list) else (value,)
        # An entry by modality (loss_weights.s1) has the range of its parent.
        parent = prefix.rstrip(".").rpartition(".")[2]
        found = _RANGES.get(name) or (_RANGES.get(parent) if parent == "loss_weights" else None)
        texts = name in _TEXTS or parent == "band_groups"
        for member in members:
            _check_member(key, value, member, found, texts)
        if (key == "modalities" or parent == "band_groups") and len(set(members)) < len(members):
            raise InputError(f"{key} is {value!r}; it names something twice.")


def _check_member(key: str, value: Untyped, member: Untyped, found: _Range | None, texts: bool) -> None:
    shown = repr(value) if len(repr(value)) < 200 else f"{repr(value)[:200]}…"
    if texts and not (isinstance(member, str) and member):
        raise InputError(f"{key} is {shown}; it must be a list of names, e.g. ('a','b').")
    if found is not None and (isinstance(member, bool) or not isinstance(member, int | float)):
        raise InputError(f"{key} is {shown}; it must be {found.text()}.")
    if isinstance(member, float) and not math.isfinite(member):
        raise InputError(f"{key} is {shown}; it must be finite.")
    if isinstance(member, int) and abs(member) > _LARGEST_INTEGER and found is not _RANGES["seed"]:
        raise InputError(f"{key} is {shown}; it must be at most {_LARGEST_INTEGER}.")
    if found is not None and not found.holds(member):
        raise InputError(f"{key} is {shown}; it must be {found.text()}.")

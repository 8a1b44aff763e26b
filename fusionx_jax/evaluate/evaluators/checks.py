"""Checks of settings that several evaluators share."""

from collections.abc import Iterable

from ml_collections import ConfigDict

from fusionx_jax.errors import InputError

_LEAST = {"seeds": 1, "batch_size": 1, "num_steps": 1, "min_steps": 0, "eval_every": 1, "patience": 0}


def check_present(name: str, settings: ConfigDict, keys: Iterable[str]) -> None:
    """Refuses settings that lack a key; `name` is their config key.

    Raises:
      InputError: with the first key that is not there.
    """
    lacking = [key for key in keys if key not in settings]
    if lacking:
        raise InputError(
            f"The config has no {name}.{lacking[0]}, as those of weights that an earlier version pretrained. Evaluate "
            "them with `python -m experiments.label_sweep --weights=W`, whose --config is complete, or pretrain again."
        )


def check_training(name: str, settings: ConfigDict) -> None:
    """Refuses counts and rates that cannot be trained with; `name` is their config key.

    Raises:
      InputError: with the key, its value and the least it may be.
    """
    for key, least in _LEAST.items():
        if settings.get(key, least) < least:
            raise InputError(f"{name}.{key} is {settings[key]}; it must be at least {least}.")
    rates = settings.get("learning_rates", (settings.get("learning_rate", 0),))
    if not rates or min(rates) <= 0:
        raise InputError(f"{name} has the rates {tuple(rates)}; at least one is needed, and all must be positive.")

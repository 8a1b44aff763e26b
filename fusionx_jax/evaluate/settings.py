"""Checks of an evaluation's settings."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from fusionx_jax import encoder as encoder_lib
from fusionx_jax import files, limits
from fusionx_jax.errors import InputError
from fusionx_jax.evaluate.evaluators import EVALUATORS
from fusionx_jax.evaluate.records import parse_modalities
from fusionx_jax.evaluate.sources import BASELINES
from fusionx_jax.prepared import sets
from fusionx_jax.types import Untyped

_CHOICES = {
    "pooling": encoder_lib.POOLINGS,
    "statistics": ("checkpoint", "dataset"),
    "score_split": ("test", "val"),
}


def check(config: ConfigDict, prepared: sets.Readable | None = None) -> None:
    """Refuses settings of an evaluation that make no sense or, where it is given, do not fit a prepared set.

    Raises:
      InputError: with the key, its value and what is expected.
    """
    limits.check(config)
    e = config.evaluate
    for key, values in _CHOICES.items():
        if e[key] not in values:
            raise InputError(f"evaluate.{key} is {e[key]!r}; it must be one of {', '.join(values)}.")
    _check_names("evaluate.baselines", e.baselines, BASELINES)
    _check_names("evaluate.evaluators", e.evaluators, EVALUATORS)
    if e.seeds < 1 or not (config.label_fractions or e.shots):
        raise InputError(
            f"evaluate.seeds is {e.seeds}, label_fractions {tuple(config.label_fractions)} and evaluate.shots "
            f"{tuple(e.shots)}; at least one seed and one label fraction or number of shots are needed."
        )
    if e.get("folds", 0) == 1:
        raise InputError("evaluate.folds is 1; give 0 for the set's own splits, or 2 and more folds.")
    if not any(set(parse_modalities(m)) <= set(config.modalities) for m in e.modalities):
        raise InputError(
            f"evaluate.modalities is {', '.join(e.modalities)}, but the network reads {', '.join(config.modalities)}."
        )
    if e.subset_dir and not files.is_folder(e.subset_dir):
        raise InputError(f"evaluate.subset_dir is {e.subset_dir}, but there is no such folder.")
    contract = None if prepared is None else prepared.contract
    baselines = [BASELINES[name].evaluator for name in e.baselines]
    for name in dict.fromkeys([*e.evaluators, *filter(None, baselines)]):
        EVALUATORS[name].check(e, contract)
    if prepared is not None:
        _check_fits(config, prepared)


def _check_names(key: str, names: Sequence[str], registry: Untyped) -> None:
    unknown = [n for n in names if n not in registry]
    if unknown:
        raise InputError(f"{key} holds {', '.join(unknown)}; it may hold {', '.join(registry)}.")


def _check_fits(config: ConfigDict, prepared: sets.Readable) -> None:
    contract, e = prepared.contract, config.evaluate
    folds = e.get("folds", 0)
    count = sum(contract.splits.values()) * (folds - 1) // folds if folds else contract.splits.get("train", 0)
    small = [f for f in config.label_fractions if round(f * count) < 2]
    if small:
        raise InputError(
            f"label_fractions holds {min(small):g}, which leaves fewer than 2 of the {count} training tiles of "
            f"{prepared.directory}; use larger fractions or more data."
        )
    if e.score_split not in contract.splits or not set(e.tasks) & contract.tasks.keys():
        raise InputError(
            f"evaluate.score_split is {e.score_split!r} and evaluate.tasks {tuple(e.tasks)}; {prepared.directory} has "
            f"the splits {', '.join(contract.splits)} and the tasks {', '.join(contract.tasks) or '(none)'}."
        )

"""What a pretraining run consists of, built from its config and checked before anything is written."""

import dataclasses

import jax
from ml_collections import ConfigDict

from fusionx_jax import checkpoint, limits, preprocess, sharding
from fusionx_jax import config as config_lib
from fusionx_jax.contract import Contract, check_compatible, in_band_order
from fusionx_jax.errors import InputError
from fusionx_jax.models import build
from fusionx_jax.models.network import Network
from fusionx_jax.prepared import sets
from fusionx_jax.training.objective import Objective, make_objective
from fusionx_jax.training.optimizer import Optimizer, make_optimizer
from fusionx_jax.training.state import abstract_batch


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything a run is made of, checked before anything is written."""

    config: ConfigDict
    prepared: sets.Readable
    contract: Contract  # bands and statistics that the weights are trained with
    init_from: checkpoint.Saved | None
    mesh: jax.sharding.Mesh
    model: Network
    objectives: dict[int, Objective]  # by the step from which each applies
    optimizer: Optimizer


def make_experiment(config: ConfigDict) -> Experiment:
    """Builds a run from its config.

    Raises:
      InputError: a value is out of range or does not fit the data set.
    """
    if not config.dataset:
        raise InputError("No data set is given; set --config.dataset=DIR to a directory that data.prepare printed.")
    limits.check(config)
    prepared = sets.open_for(config, config.dataset)
    prepared.size("train")
    contract, init_from = run_contract(config, prepared.contract)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    sharding.check_batch(config.batch_size, mesh, config.optimizer.get("accumulate", 1))
    model = build.make_model(config, contract.modalities)
    if config.num_steps and not model.traits.pretrainable:
        raise InputError(
            f"model.family {config.model.family!r} has no pretraining objective, but num_steps is {config.num_steps}; "
            "set num_steps to 0 and train it on labels."
        )
    check_tiles(config, contract)
    normalizer = preprocess.make_normalizer(
        prepared.contract.modalities,
        {m: contract.modalities[m] for m in config.modalities},
        side=config.augment.crop,
        patch_size=config.model.patch_size,
    )
    objectives = {first: make_objective(config, model, normalizer, first) for first in config_lib.stages(config)}
    return Experiment(config, prepared, contract, init_from, mesh, model, objectives, make_optimizer(config))


def check_tiles(config: ConfigDict, contract: Contract) -> None:
    """Refuses a crop or a patch size that does not fit the tiles."""
    for name in config.modalities:
        m = contract.modalities[name]
        side = config.augment.crop or min(m.height, m.width)
        if side > min(m.height, m.width):
            raise InputError(f"augment.crop is {side}, larger than the tiles of {m.height} x {m.width} pixels.")
        preprocess.check_patch((side, side), config.model.patch_size, config.dataset)


def run_contract(config: ConfigDict, data: Contract) -> tuple[Contract, checkpoint.Saved | None]:
    """The contract that a run's checkpoints carry, and the checkpoint that `init_from` names.

    A run that starts from other weights keeps their bands, and their statistics unless `statistics` is "dataset".
    """
    if config.statistics not in ("checkpoint", "dataset"):
        raise InputError(f"statistics is {config.statistics!r}; it must be 'checkpoint' or 'dataset'.")
    if not config.init_from:
        return data, None
    saved = checkpoint.find(config.init_from)
    weights = {m: saved.contract.modalities[m] for m in config.modalities if m in saved.contract.modalities}
    check_compatible(data, weights, have_name=config.dataset, want_name=config.init_from)
    modalities = {}
    for name, modality in data.modalities.items():
        if name in weights:
            modality = in_band_order(modality, weights[name].bands)  # the order of the first layer's channels
            if config.statistics == "checkpoint":
                modality = dataclasses.replace(modality, mean=weights[name].mean, std=weights[name].std)
        modalities[name] = modality
    return dataclasses.replace(data, modalities=modalities), saved


def check_trace(experiment: Experiment, objective: Objective) -> None:
    """Traces a step without computing it, so that a config that cannot run is refused before the workdir is claimed."""
    params = jax.eval_shape(lambda: build.init_params(experiment.model, jax.random.key(0)))
    if experiment.init_from is not None:
        checkpoint.check_params(experiment.init_from, params)
    batch = abstract_batch(experiment.config, experiment.contract)
    jax.eval_shape(objective.loss, params, batch, jax.random.key(0))

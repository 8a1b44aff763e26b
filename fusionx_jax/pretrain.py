"""Self-supervised pretraining: the experiment, top to bottom.

Masked autoencoding of co-registered modalities (Fus-MAE, arXiv 2401.02764; MAE, arXiv 2111.06377). The state is
parameters, optimizer state and step; order, masks and learning rate are functions of the seed and the step, so that an
interrupted run resumes bit for bit.
"""

import contextlib
import dataclasses
import functools
import math
from typing import Any

import jax
from ml_collections import ConfigDict

from fusionx_jax import checkpoint, distributed, files, preprocess, progress, sharding
from fusionx_jax import config as config_lib
from fusionx_jax.contract import Contract, check_compatible, in_band_order
from fusionx_jax.errors import InputError, device_memory
from fusionx_jax.models import build
from fusionx_jax.prepared import pipeline, sets
from fusionx_jax.training import workdir as workdir_lib
from fusionx_jax.training.loop import Loop, StopSignals
from fusionx_jax.training.metric_log import MetricLog
from fusionx_jax.training.objective import Objective, make_objective
from fusionx_jax.training.optimizer import Optimizer, make_optimizer
from fusionx_jax.training.state import TrainState, abstract_batch, abstract_state, fresh_state, layout
from fusionx_jax.training.step import jit_step


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything a run is made of, checked before anything is written."""

    config: ConfigDict
    prepared: sets.Readable
    contract: Contract  # bands and statistics that the weights are trained with
    init_from: checkpoint.Saved | None
    mesh: jax.sharding.Mesh
    model: Any  # a network of models.build
    objectives: dict[int, Objective]  # by the step from which each applies
    optimizer: Optimizer


def run(config: ConfigDict, workdir: str) -> int:
    """Trains until `num_steps`, from the newest checkpoint in `workdir` on. Returns an exit status.

    Raises:
      InputError: the config, the data set or the workdir is refused.
      RunError: training diverged or the disk is full; the newest good checkpoint is kept.
    """
    checkpoint.check_address(workdir)
    experiment = make_experiment(config)
    for objective in experiment.objectives.values():
        check_trace(experiment, objective)
    with contextlib.ExitStack() as stack:
        if distributed.is_first():
            stack.enter_context(workdir_lib.lock(workdir))
            workdir_lib.claim(workdir, config, experiment.contract)
        distributed.wait_for_all("workdir claimed")
        if not files.exists(files.join(workdir, workdir_lib.RECORD)):
            raise InputError(
                f"Process {jax.process_index()} does not see the workdir {workdir} that the first process made; all "
                "machines of a job need it on a file system that they share."
            )
        suffix = "" if distributed.is_first() else f".{jax.process_index()}"
        stack.enter_context(workdir_lib.logging_to(files.join(workdir, f"pretrain{suffix}.log")))
        checkpoint.check_writable(workdir)
        stack.enter_context(jax.set_mesh(experiment.mesh))
        stack.enter_context(step_memory(config))
        return train(experiment, workdir)


def make_experiment(config: ConfigDict) -> Experiment:
    """Builds a run from its config.

    Raises:
      InputError: a value is out of range or does not fit the data set.
    """
    if not config.dataset:
        raise InputError("No data set is given; set --config.dataset=DIR to a directory that data.prepare printed.")
    check_ranges(config)
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


def check_ranges(config: ConfigDict) -> None:
    """Refuses counts that are out of range."""
    for key, least in (("checkpoint_every", 1), ("log_every", 1), ("seed", 0)):
        if config[key] < least:
            raise InputError(f"{key} is {config[key]}; it must be at least {least}.")


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


def step_memory(config: ConfigDict) -> contextlib.AbstractContextManager[None]:
    """Names the settings that determine the memory of the train step if a device runs out of it."""
    accumulate, remat = config.optimizer.get("accumulate", 1), config.model.get("remat", "none")
    return device_memory(
        f"the train step (batch_size is {config.batch_size}, optimizer.accumulate {accumulate}, model.remat {remat!r})",
        "lower batch_size, raise optimizer.accumulate, set model.remat to 'dots' or 'full', or use more devices",
    )


def train(experiment: Experiment, workdir: str) -> int:
    """Restores or initializes the state, then runs the loop. Returns an exit status."""
    config, mesh = experiment.config, experiment.mesh
    optimizer, schedule = experiment.optimizer
    abstract = abstract_state(experiment.model, optimizer, mesh)
    metadata = config_lib.to_json(config)
    with checkpoint.Manager(workdir, metadata, experiment.contract, config.keep_checkpoints) as manager:
        start = manager.latest_step() or 0
        if start:
            state = manager.restore(start, abstract)
            progress.logger.info("Resuming at step %d of %d in %s.", start, config.num_steps, workdir)
        else:
            state = initial_state(experiment, abstract)
        log_summary(experiment, abstract)
        if not config.num_steps and manager.latest_step() is None:
            manager.save(0, state, wait=True)
        if start >= config.num_steps:
            progress.logger.info("All %d steps are done; nothing to train.", config.num_steps)
            return 0
        steps = {
            first: jit_step(config, objective, optimizer, schedule, layout(abstract), mesh)
            for first, objective in experiment.objectives.items()
        }
        batches = device_batches(experiment, start)
        with MetricLog(workdir, start) as metric_log, StopSignals() as stop:
            status = Loop(config, steps, batches, manager, metric_log).run(state, start, stop)
    if not status:
        progress.logger.info(
            "Done: %d steps. Next: fusionx evaluate --workdir=%s --dataset=DIR", config.num_steps, workdir
        )
    return status


def initial_state(experiment: Experiment, abstract: TrainState) -> TrainState:
    """A fresh state on the mesh, with the parameters of `init_from` if it is set."""
    optimizer = experiment.optimizer.transformation
    fresh = functools.partial(fresh_state, experiment.model, optimizer, experiment.config.seed)
    state = jax.jit(fresh, out_shardings=layout(abstract))()
    if experiment.init_from is not None:
        state["params"] = checkpoint.load_params(experiment.init_from, abstract["params"])
        progress.logger.info("Starting from the weights of %s.", experiment.init_from.path)
    return state


def device_batches(experiment: Experiment, start: int) -> pipeline.DeviceBatches:
    """The global batches from step `start` on, spread over the mesh."""
    config = experiment.config
    spread = sharding.batch_sharding(experiment.mesh)
    host_batches = pipeline.host_batches(
        experiment.prepared,
        "train",
        config.modalities,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start,
        stop_step=config.num_steps,
        rows=pipeline.local_rows(spread, config.batch_size),
    )
    return pipeline.DeviceBatches(host_batches, spread)


def log_summary(experiment: Experiment, abstract: TrainState) -> None:
    """Logs method, size, modalities, devices and data set in one line."""
    config, data = experiment.config, experiment.prepared
    progress.logger.info(
        "%s, %s: %.2f M parameters, %s on %d device(s), %d training pairs of %s%s.",
        config.get("method", "fusionx"),
        config.model.size,
        sum(math.prod(x.shape) for x in jax.tree.leaves(abstract["params"])) / 1e6,
        ", ".join(config.modalities),
        experiment.mesh.size,
        data.size("train"),
        data.contract.name,
        " (simulated)" if experiment.contract.simulated else "",
    )

"""Self-supervised pretraining: the run, top to bottom.

Masked autoencoding of co-registered modalities (Fus-MAE, arXiv 2401.02764; MAE, arXiv 2111.06377). The state is
parameters, optimizer state and step; order, masks and learning rate are functions of the seed and the step, so that an
interrupted run resumes bit for bit.
"""

import contextlib
import functools
import math

import jax
from ml_collections import ConfigDict

from fusionx_jax import checkpoint, distributed, files, progress, sharding
from fusionx_jax import config as config_lib
from fusionx_jax.errors import InputError, device_memory
from fusionx_jax.prepared import pipeline
from fusionx_jax.training import workdir as workdir_lib
from fusionx_jax.training.experiment import Experiment, check_trace, make_experiment
from fusionx_jax.training.loop import Loop, StopSignals
from fusionx_jax.training.metric_log import MetricLog
from fusionx_jax.training.state import TrainState, abstract_state, fresh_state, layout, training_features
from fusionx_jax.training.step import jit_step


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
        training_features(config, experiment.prepared.contract),
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
    if config.batch_size > data.size("train"):
        progress.logger.warning(
            "batch_size is %d, and there are %d training pairs: every batch holds tiles several times.",
            config.batch_size,
            data.size("train"),
        )

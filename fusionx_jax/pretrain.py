"""Self-supervised pretraining: the experiment, top to bottom.

Masked autoencoding of co-registered sensors (Fus-MAE, arXiv 2401.02764; MAE, arXiv 2111.06377): decode the wire tiles
on the device, hide most patches, predict them, descend. The state is parameters, optimizer state and step; everything
else (order, masks, learning rate) is a function of the seed and the step, so a run that stops goes on bit for bit.
"""

import contextlib
import csv
import dataclasses
import functools
import json
import math
import os
import signal
import threading
import time
from collections.abc import Mapping
from typing import IO, Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from fusionx_jax import checkpoint, distributed, files, losses, masking, preprocess, progress, sharding
from fusionx_jax import config as config_lib
from fusionx_jax.contract import Contract, check_compatible, in_band_order
from fusionx_jax.errors import InputError, RunError
from fusionx_jax.models import build, layers
from fusionx_jax.prepared import pipeline, sets


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a training step computes, fixed for a run (for a stage of it, where mask ratios are scheduled)."""

    model: Any  # one of build.FAMILIES
    normalizer: preprocess.Normalizer
    mask: Any  # one of masking.STRATEGIES
    ratios: Mapping[str, float]
    weights: Mapping[str, float]
    contrast_weight: float
    temperature: float
    target: str
    crop: int
    flip: bool
    views: Mapping[str, float] | None  # of `preprocess.random_views`; None: all sensors see the same tile

    def loss(
        self, params: Any, wire: Mapping[str, Array], key: Array
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The loss of a batch of wire tiles, and the metrics to log."""
        augment_key, mask_key = jax.random.split(key)
        wire = preprocess.augment(augment_key, wire, self.crop, self.flip)
        out, masks, patches, valid = forward(
            self.model, params, self.normalizer, wire, self.mask, self.ratios, mask_key, self.views
        )
        total, logged = jnp.zeros(()), {}
        if out.predicted:
            total, by_modality = losses.reconstruction(out.predicted, patches, masks, self.target, self.weights, valid)
            logged |= {f"loss_{m}": v for m, v in by_modality.items()}
        if out.embedded:
            present = {n: m.visible_ok.any(1) for n, m in masks.items() if m.visible_ok is not None}
            contrast, hits = losses.info_nce(out.embedded, self.temperature, present)
            total += self.contrast_weight * contrast
            logged |= {"loss_contrast": contrast, "matched": hits}
        return total, {"loss": total, **logged}


def forward(model, params, normalizer, wire, mask, ratios, key, views=None):
    """Masks a batch of wire tiles and runs the network.

    Returns its output, masks, standardized patches [B, N, P*P*C] and their validity (None: all valid), by modality.
    """
    p = model.config.patch_size
    images, valid = normalizer(preprocess.pad_to_multiple(wire, p, normalizer.nodata))
    if views:
        view_key, key = jax.random.split(key)
        images, valid = preprocess.random_views(view_key, images, valid, **views)
    grids = {m: layers.grid(x, p) for m, x in images.items()}
    visible = {m: masking.num_visible(grids[m][0] * grids[m][1], ratios[m]) for m in images}
    has_data = None if valid is None else preprocess.patch_has_data(valid, p)
    batch = next(iter(images.values())).shape[0]
    masks = mask(key, batch, grids, visible, has_data)
    out = model.apply({"params": params}, images, masks)
    patches = {m: layers.patchify(x, p) for m, x in images.items()}
    if valid is not None:
        valid = {m: layers.patchify(jnp.broadcast_to(v[..., None], images[m].shape), p) for m, v in valid.items()}
    return out, masks, patches, valid


def train_step(
    state: dict[str, Any],
    wire: Mapping[str, Array],
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    seed: int,
    accumulate: int = 1,
) -> tuple[dict[str, Any], dict[str, Array]]:
    """One step of gradient descent: a pure function of state and batch."""
    key = jax.random.fold_in(jax.random.key(seed), state["step"])
    gradients, metrics = mean_gradients(objective, state["params"], wire, key, accumulate)
    updates, opt_state = optimizer.update(gradients, state["opt_state"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    metrics |= {"grad_norm": optax.global_norm(gradients), "learning_rate": schedule(state["step"])}
    return {"params": params, "opt_state": opt_state, "step": state["step"] + 1}, metrics


def mean_gradients(
    objective: Objective, params: Any, wire: Mapping[str, Array], key: Array, parts: int
) -> tuple[Any, dict[str, Float[Array, ""]]]:
    """Gradients and metrics of a batch, the mean over `parts` of it that are computed one after the other.

    Part i holds every `parts`-th pair from i on, so that it is spread over all devices as the batch is.
    """

    def one(wire, key):
        (_, metrics), gradients = jax.value_and_grad(objective.loss, has_aux=True)(params, wire, key)
        return gradients, metrics

    if parts == 1:
        return one(wire, key)
    cut = {m: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1) for m, x in wire.items()}
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(parts))
    shapes = jax.eval_shape(one, {m: x[0] for m, x in cut.items()}, key)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(lambda sums, part: (jax.tree.map(jnp.add, sums, one(*part)), None), zero, (cut, keys))
    return jax.tree.map(lambda x: x / parts, total)


def make_optimizer(config: ConfigDict) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW with warm-up and cosine decay; weight decay on kernels only, gradients clipped by global norm.

    Raises:
      InputError: a rate, count or norm is out of range.
    """
    o = config.optimizer
    if config.num_steps < 0 or o.warmup_steps < 0 or o.learning_rate <= 0 or o.clip_norm <= 0:
        raise InputError(
            f"num_steps is {config.num_steps}, optimizer.warmup_steps {o.warmup_steps}, optimizer.learning_rate "
            f"{o.learning_rate} and optimizer.clip_norm {o.clip_norm}; steps and rates must be positive."
        )
    peak = o.learning_rate * config.batch_size / 256
    steps = max(config.num_steps, 1)  # none at all: an untrained network, the baseline that every table needs
    warmup = min(o.warmup_steps, steps - 1)
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps, peak * o.final_fraction)
    return (
        optax.chain(
            optax.clip_by_global_norm(o.clip_norm),
            optax.adamw(schedule, o.b1, o.b2, weight_decay=o.weight_decay, mask=decay_mask),
        ),
        schedule,
    )


def decay_mask(params: Any) -> Any:
    """True for kernels: biases, norms and tokens are not decayed (their rank says nothing once layers are scanned)."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def make_objective(config: ConfigDict, model: Any, normalizer: preprocess.Normalizer, step: int = 0) -> Objective:
    """The objective that holds at `step`.

    Raises:
      InputError: masking, ratios or weights do not fit the modalities.
    """
    missing = [m for m in config.modalities if m not in config.loss_weights]
    if missing:
        raise InputError(f"loss_weights gives none for {', '.join(missing)}; it must name every modality.")
    contrast, views = config.get("contrast"), config.augment.get("views")
    return Objective(
        model=model,
        normalizer=normalizer,
        mask=masking.strategy(config.masking, dict(config.get("masking_options", {}))),
        ratios=config_lib.mask_ratios(config, step),
        weights={m: float(config.loss_weights[m]) for m in config.modalities},
        contrast_weight=float(contrast.weight) if contrast else 1.0,
        temperature=float(contrast.temperature) if contrast else 1.0,
        target=config.target,
        crop=config.augment.crop,
        flip=config.augment.flip,
        views=dict(views) if views and views["least_area"] < 1 else None,
    )


def run_contract(config: ConfigDict, data: Contract) -> tuple[Contract, checkpoint.Saved | None]:
    """The contract a run's checkpoints carry, and the checkpoint it starts from, if any.

    A run that starts from other weights keeps their bands and statistics unless `statistics` says "dataset".
    """
    if config.statistics not in ("checkpoint", "dataset"):
        raise InputError(f"statistics is {config.statistics!r}; it must be 'checkpoint' or 'dataset'.")
    if not config.init_from:
        return data, None
    saved = checkpoint.find(config.init_from)
    wanted = {m: saved.contract.modalities[m] for m in config.modalities if m in saved.contract.modalities}
    check_compatible(data, wanted, have_name=config.dataset, want_name=config.init_from)
    modalities = {}
    for name, own in data.modalities.items():
        if name in wanted:
            own = in_band_order(own, wanted[name].bands)  # the weights' first layer knows no other order
            if config.statistics == "checkpoint":
                own = dataclasses.replace(own, mean=wanted[name].mean, std=wanted[name].std)
        modalities[name] = own
    return dataclasses.replace(data, modalities=modalities), saved


def run(config: ConfigDict, workdir: str) -> int:
    """Trains until `num_steps`, going on from the newest checkpoint in `workdir`. Returns an exit status.

    Raises:
      InputError, RunError: see the messages; the newest good checkpoint is kept.
    """
    if not config.dataset:
        raise InputError("No data set is given; set --config.dataset=DIR to a directory that data.prepare printed.")
    prepared = sets.open_for(config, config.dataset)
    prepared.size("train")
    contract, start_from = run_contract(config, prepared.contract)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    sharding.check_batch(config.batch_size, mesh, config.optimizer.get("accumulate", 1))
    model = build.make_model(config, contract.modalities)
    if config.num_steps and build.family(config) == "resnet":
        raise InputError("model.family 'resnet' is trained on labels only; set num_steps to 0 and fine-tune it.")
    for name in config.modalities:
        m = contract.modalities[name]
        side = config.augment.crop or min(m.height, m.width)
        if side > min(m.height, m.width):
            raise InputError(f"augment.crop is {side}, larger than the tiles of {m.height} x {m.width} pixels.")
        preprocess.check_patch((side, side), config.model.patch_size, config.dataset)
    normalizer = preprocess.make_normalizer(
        prepared.contract.modalities,
        {m: contract.modalities[m] for m in config.modalities},
        side=config.augment.crop,
        patch_size=config.model.patch_size,
    )
    stages = {start: make_objective(config, model, normalizer, start) for start in config_lib.stages(config)}
    optimizer, schedule = make_optimizer(config)
    if min(config.checkpoint_every, config.log_every) < 1:
        raise InputError("checkpoint_every and log_every must be at least 1.")
    if config.seed < 0:
        raise InputError(f"seed is {config.seed}; it must not be negative.")
    for objective in stages.values():
        _rehearse(config, model, objective, contract, start_from)
    with contextlib.ExitStack() as held:
        if distributed.is_first():
            held.enter_context(_lock(workdir))
            _claim_workdir(workdir, config, contract)
        distributed.wait_for_all("workdir claimed")
        if not os.path.isdir(workdir):
            raise InputError(
                f"Process {jax.process_index()} does not see the workdir {workdir} that the first process made; all "
                "machines of a job need it on a file system that they share."
            )
        own = "" if distributed.is_first() else f".{jax.process_index()}"
        handler = progress.log_to_file(os.path.join(workdir, f"pretrain{own}.log"))
        held.callback(handler.close)
        held.callback(progress.logger.removeHandler, handler)
        with jax.set_mesh(mesh):
            return _train(config, workdir, prepared, contract, start_from, mesh, model, stages, optimizer, schedule)


def _rehearse(config, model, objective, contract, start_from) -> None:
    """Traces a step without computing it, so that a config that cannot run is refused before the workdir is its own."""
    params = jax.eval_shape(lambda: build.init_params(model, jax.random.key(0)))
    if start_from is not None:
        checkpoint.check_params(start_from, params)
    jax.eval_shape(objective.loss, params, abstract_batch(config, contract), jax.random.key(0))


def abstract_batch(config: ConfigDict, contract: Contract) -> dict[str, jax.ShapeDtypeStruct]:
    """The wire tiles of a global batch, shapes only."""
    chosen = {name: contract.modalities[name] for name in config.modalities}
    return {
        name: jax.ShapeDtypeStruct((config.batch_size, m.height, m.width, len(m.bands)), jnp.uint16)
        for name, m in chosen.items()
    }


def own_objective(config: ConfigDict, model: Any, contract: Contract) -> Objective:
    """The first objective of a run on data normalized by their own statistics."""
    modalities = {m: contract.modalities[m] for m in config.modalities}
    normalizer = preprocess.make_normalizer(
        modalities, modalities, side=config.augment.crop, patch_size=config.model.patch_size
    )
    return make_objective(config, model, normalizer)


def fresh_state(model: Any, optimizer: optax.GradientTransformation, seed: int) -> dict[str, Any]:
    """The state before the first step: a pure function of the seed."""
    params = build.init_params(model, jax.random.key(seed))
    return {"params": params, "opt_state": optimizer.init(params), "step": jnp.zeros((), jnp.int32)}


def jit_step(
    config: ConfigDict, objective: Objective, optimizer, schedule, layout: Any, mesh: jax.sharding.Mesh
) -> Any:
    """The train step as it runs on a mesh, its state donated."""
    return jax.jit(
        functools.partial(
            train_step,
            objective=objective,
            optimizer=optimizer,
            schedule=schedule,
            seed=config.seed,
            accumulate=config.optimizer.get("accumulate", 1),
        ),
        in_shardings=(layout, sharding.batch_sharding(mesh)),
        out_shardings=(layout, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def useful_flops_per_pair(config: ConfigDict, contract: Contract) -> float:
    """FLOPs of one pair in a training step, those left out that rematerialization does again."""
    plain = config.copy_and_resolve_references()
    plain.model.remat = "none"
    return flops_per_pair(plain, build.make_model(plain, contract.modalities), contract)


def flops_per_pair(config: ConfigDict, model: Any, contract: Contract) -> float:
    """Floating-point operations of one pair in a training step, as XLA counts them before it optimizes; 0 if no step is
    taken."""
    if not config.num_steps:
        return 0.0
    objective = own_objective(config, model, contract)
    wire = abstract_batch(config, contract)
    with layers.unrolled():
        params = jax.eval_shape(lambda: build.init_params(model, jax.random.key(0)))
        step = jax.jit(lambda p, w: jax.grad(lambda q: objective.loss(q, w, jax.random.key(0))[0])(p))
        found = step.lower(params, wire).cost_analysis()
    return float(found["flops"]) / config.batch_size


def _train(config, workdir, prepared, contract, start_from, mesh, model, stages, optimizer, schedule) -> int:
    log = progress.logger

    fresh = functools.partial(fresh_state, model, optimizer, config.seed)
    shapes = jax.eval_shape(fresh)
    layout = sharding.state_shardings(shapes, mesh)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, layout)
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes["params"]))

    with checkpoint.Manager(workdir, config_lib.to_json(config), contract, config.keep_checkpoints) as manager:
        start = manager.latest_step() or 0
        if start:
            state = manager.restore(start, abstract)
            log.info("Going on from step %d of %d in %s.", start, config.num_steps, workdir)
        else:
            state = jax.jit(fresh, out_shardings=layout)()
            if start_from is not None:
                state["params"] = checkpoint.load_params(start_from, abstract["params"])
                log.info("Starting from the weights of %s.", start_from.path)
        log.info(
            "%s, %s: %.2f M parameters, %s on %d device(s), %d training pairs of %s%s.",
            config.get("method", "fusionx"),
            config.model.size,
            count / 1e6,
            ", ".join(config.modalities),
            mesh.size,
            prepared.size("train"),
            prepared.contract.name,
            " (simulated)" if contract.simulated else "",
        )
        if not config.num_steps and manager.latest_step() is None:
            manager.save(0, state, wait=True)
        if start >= config.num_steps:
            log.info("All %d steps are done; nothing to train.", config.num_steps)
            return 0
        compiled = {
            begin: jit_step(config, objective, optimizer, schedule, layout, mesh) for begin, objective in stages.items()
        }
        batches = pipeline.DeviceBatches(
            pipeline.host_batches(
                prepared,
                "train",
                config.modalities,
                batch_size=config.batch_size,
                seed=config.seed,
                start_step=start,
                stop_step=config.num_steps,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            ),
            sharding.batch_sharding(mesh),
        )
        with MetricLog(workdir, start) as metrics_log, _StopSignals() as stop:
            return _loop(config, state, compiled, batches, start, manager, metrics_log, stop, workdir)


def _loop(config, state, compiled, batches, start, manager, metrics_log, stop, workdir) -> int:
    log = progress.logger
    late = None  # (step, metrics) of the step before: read one step late, so that the device never waits for us
    clock = _Clock(config.batch_size, batches)

    def read(entry) -> str:
        step, metrics = entry
        values = {k: float(v) for k, v in metrics.items()}
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            kept = manager.latest_step()
            raise RunError(
                f"Training diverged at step {step}: loss {values['loss']}, gradient norm {values['grad_norm']}. "
                + (f"The checkpoint of step {kept} is kept; " if kept else "No checkpoint was made yet; ")
                + "lower optimizer.learning_rate or check the data, and use a new workdir."
            )
        if step % config.log_every == 0 or step == config.num_steps:
            metrics_log.write(step, values | clock.lap(step))
        return f"loss {values['loss']:.4f}"

    note = ""
    with progress.Progress(config.num_steps, "pretraining", "step", start) as bar:
        for step in range(start + 1, config.num_steps + 1):
            batch = next(batches)
            stage = max(begin for begin in compiled if begin < step)  # step counts from 1, stages from 0
            state, metrics = compiled[stage](state, batch)
            if late is not None:
                note = read(late)
            late = (step, metrics)
            bar.advance(1, note)
            stopping = stop.now(step)
            if stopping or step % config.checkpoint_every == 0 or step == config.num_steps:
                note = read(late)  # a checkpoint is saved only after its own loss and gradient proved finite
                late = None
                began = time.perf_counter()
                manager.save(step, state, wait=stopping or step == config.num_steps)
                log.info("Checkpoint of step %d: training stood still for %.2f s.", step, time.perf_counter() - began)
            if stopping:
                log.info(
                    "Stopped by %s at step %d of %d; run the same command to go on.",
                    stop.received,
                    step,
                    config.num_steps,
                )
                return 128 + int(stop.received)
    share = clock.wait_share()
    if share > 0.05:
        log.warning(
            "Training waited %.0f %% of its time for input; put the prepared set on a local disk, leave memory free "
            "for the page cache, and compare with `fusionx bench input`.",
            100 * share,
        )
    log.info("Done: %d steps. Next: fusionx evaluate --workdir=%s --dataset=DIR", config.num_steps, workdir)
    return 0


class _Clock:
    """Pairs per second and share of time waited for input since the last lap."""

    def __init__(self, batch_size: int, batches: pipeline.DeviceBatches):
        self._batch_size, self._batches = batch_size, batches
        self._began = self._at = time.perf_counter()
        self._waited_at_start = self._waited = batches.waited_s
        self._step = None

    def lap(self, step: int) -> dict[str, float]:
        now, waited = time.perf_counter(), self._batches.waited_s
        seconds = max(now - self._at, 1e-9)
        steps = step - self._step if self._step is not None else None
        out = {
            # The first lap holds compilation: its rate would mislead.
            "pairs_per_s": steps * self._batch_size / seconds if steps else float("nan"),
            "input_wait_share": (waited - self._waited) / seconds,
        }
        self._at, self._waited, self._step = now, waited, step
        return out

    def wait_share(self) -> float:
        spent = time.perf_counter() - self._began
        return (self._batches.waited_s - self._waited_at_start) / max(spent, 1e-9)


class _StopSignals:
    """Turns SIGTERM (a scheduler's preemption) and Ctrl-C into a flag read between steps."""

    def __init__(self):
        self.received: signal.Signals | None = None
        self._asked = False
        self._several = jax.process_count() > 1
        self._old = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            # Among several processes the coordinator takes SIGTERM, to stop all of them after the same step.
            for number in (signal.SIGINT,) if self._several else (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._note)
        return self

    def now(self, step: int) -> bool:
        """Whether to stop after `step`."""
        if self._several and distributed.asked_to_stop(step):
            self.received = signal.SIGTERM
        return self.received is not None

    def _note(self, number, frame) -> None:
        if self._asked:  # asked twice: stop now
            raise KeyboardInterrupt
        self._asked = True
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.received = signal.Signals(number)

    def __exit__(self, *unused) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)


class MetricLog:
    """Metrics to `metrics.csv`, and to TensorBoard where TensorFlow is installed. Rows past `start` are dropped.

    Of several processes the first writes.
    """

    def __init__(self, workdir: str, start: int):
        self._board = self._file = None
        if not distributed.is_first():
            return
        self._path = os.path.join(workdir, "metrics.csv")
        self._fields: list[str] | None = None
        if os.path.exists(self._path):
            with open(self._path, newline="", encoding="utf-8") as f:
                rows = list(csv.DictReader(f))
            kept = [r for r in rows if (r.get("step") or "").isdigit() and int(r["step"]) <= start]
            kept = [r for r in kept if None not in r.values()]  # a line cut short by a kill
            self._fields = list(kept[0]) if kept else None
            with files.replacing(self._path, newline="") as f:
                if kept:
                    writer = csv.DictWriter(f, self._fields)
                    writer.writeheader()
                    writer.writerows(kept)
        self._file = open(self._path, "a", newline="", encoding="utf-8")  # noqa: SIM115 (closed in __exit__)
        try:
            from clu import metric_writers

            self._board = metric_writers.SummaryWriter(os.path.join(workdir, "tensorboard"))
        except ImportError:
            progress.logger.info("TensorFlow is not installed: metrics go to %s only.", self._path)

    def __enter__(self):
        return self

    def __exit__(self, *unused) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.flush()
            self._board.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self._file is None:
            return
        row = {"step": step, **values}
        writer = csv.DictWriter(self._file, list(row))
        if self._fields is None:
            self._fields = list(row)
            writer.writeheader()
        writer.writerow(row)
        self._file.flush()
        if self._board is not None:
            self._board.write_scalars(step, {k: v for k, v in values.items() if math.isfinite(v)})


def _lock(workdir: str) -> IO:
    """Makes the workdir and keeps other runs out of it until the file returned is closed, or refuses one in use."""
    try:
        os.makedirs(workdir, exist_ok=True)
        held = files.lock(os.path.join(workdir, "lock"))
    except OSError as error:
        raise _cannot_write(workdir, error) from error
    if held is None:
        raise InputError(f"Another run trains in the workdir {workdir}; wait for it, or give another --workdir.")
    return held


def _cannot_write(workdir: str, error: OSError) -> InputError:
    return InputError(f"Cannot write to the workdir {workdir} ({error.strerror}); give another one.")


def _claim_workdir(workdir: str, config: ConfigDict, contract: Contract) -> None:
    """Records what a workdir is for, or refuses one that belongs to another configuration or data set."""
    now = {"config": config_lib.to_json(config), "contract": contract.to_dict()}
    path = os.path.join(workdir, "run.json")
    try:
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                before = json.load(f)
            different = _differences(before["config"], now["config"])
            if different:
                raise InputError(
                    f"The workdir {workdir} belongs to another config ({'; '.join(different)}); give another "
                    "--workdir, or the values it was started with."
                )
            if before["contract"]["source_version"] != contract.source_version:
                raise InputError(
                    f"The workdir {workdir} was started on {before['contract']['source_version']}, but the data set is "
                    f"now {contract.source_version}; give another --workdir or the same data set."
                )
        with files.replacing(path) as f:
            json.dump(now, f, indent=1, sort_keys=True)
    except (json.JSONDecodeError, KeyError) as error:
        raise InputError(f"{path} is damaged ({error}); give another --workdir.") from error
    except OSError as error:
        raise _cannot_write(workdir, error) from error


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    out = []
    for key in sorted(set(before) | set(now)):
        if not prefix and key in config_lib.FREE_SETTINGS:
            continue
        a, b = before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            out += _differences(a, b, f"{prefix}{key}.")
        elif a != b and (a is not None or b):  # a key that older runs did not have, left at nothing
            out.append(f"{prefix}{key}: was {a!r}, now {b!r}")
    return out

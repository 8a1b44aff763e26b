"""`fusionx bench train`: the train step against the device's own matrix products and PyTorch, eager or compiled.

Tiles start as uint16 in host memory (or in a prepared set); the transfer to the device is part of the measured time.
"""

import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from fusionx_jax import chips, masking, progress, sharding
from fusionx_jax import config as config_lib
from fusionx_jax.bench import profile as profile_lib
from fusionx_jax.bench.rates import Turn, rates
from fusionx_jax.contract import Contract, assumed
from fusionx_jax.errors import InputError
from fusionx_jax.models import build
from fusionx_jax.prepared import pipeline, sets
from fusionx_jax.training.flops import useful_flops_per_pair
from fusionx_jax.training.objective import Objective, first_objective
from fusionx_jax.training.optimizer import make_optimizer
from fusionx_jax.training.state import TrainState, abstract_batch, fresh_state
from fusionx_jax.training.step import jit_step
from fusionx_jax.types import JsonObject, Untyped

_PROFILED_STEPS = 10
PEERS = {"torch": False, "torch.compile": True}  # by name, whether the step is compiled


def run(
    configs: Mapping[str, ConfigDict],
    dataset: str,
    tile_size: int,
    peers: Sequence[str],
    rounds: int,
    seconds: float,
    profile: str,
) -> JsonObject:
    """Measures each config's train step; see `fusionx bench train --help`.

    Raises:
      InputError: a config that does not fit the data, or that the peer does not support.
    """
    device = jax.devices()[0]
    found = {}
    for name, config in configs.items():
        progress.logger.info("Measuring %s …", name)
        contract = (
            sets.open_for(config, dataset).contract
            if dataset
            else assumed(
                config.modalities, config.augment.crop or tile_size, groups=dict(config.get("band_groups", {}))
            )
        )
        place = os.path.join(profile, name.replace(":", "-")) if profile else ""
        found[name] = _measure(config, contract, dataset, peers, rounds, seconds, place)
    return {
        "device": device.device_kind, "devices": jax.device_count(), "cores": len(os.sched_getaffinity(0)),
        "input": dataset or "random tiles in host memory", "sizes": found,
    }  # fmt: skip


def _measure(
    config: ConfigDict,
    contract: Contract,
    dataset: str,
    peers: Sequence[str],
    rounds: int,
    seconds: float,
    profile: str,
) -> JsonObject:
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    sharding.check_batch(config.batch_size, mesh, config.optimizer.get("accumulate", 1))
    model = build.make_model(config, contract.modalities)
    objective = first_objective(config, model, contract)
    optimizer, schedule = make_optimizer(config)
    fresh = functools.partial(fresh_state, model, optimizer, config.seed)
    layout = sharding.state_shardings(jax.eval_shape(fresh), mesh)
    spread = sharding.batch_sharding(mesh)
    host = functools.partial(host_batches, config, contract, dataset)
    with jax.set_mesh(mesh):
        state = jax.jit(fresh, out_shardings=layout)()
        program = jit_step(config, objective, optimizer, schedule, layout, mesh)
        contestants: dict[str, Turn] = {}
        for peer in peers:  # before the first step: they start from the same parameters, which the step donates
            twin = torch_twin(config, contract, objective, state["params"], PEERS[peer])
            contestants[peer] = _torch_turn(twin, host(), config.batch_size, seconds)
        began = time.perf_counter()
        compiled = program.lower(state, abstract_batch(config, contract)).compile()
        compile_s = time.perf_counter() - began
        ours = _Ours(compiled, state, pipeline.DeviceBatches(host(), spread), config.batch_size, seconds)
        contestants = {"ours": ours, "matmul": _matmul_turn(config.model.dtype, mesh.size, seconds), **contestants}
        measured = rates(contestants, rounds)
        rows = profile_lib.record(profile, compiled.as_text() or "", ours.steps, _PROFILED_STEPS) if profile else []
    per_pair = useful_flops_per_pair(config, contract)
    speed = measured["ours"] * per_pair
    chip = chips.find(jax.devices()[0].device_kind)
    out = {
        "model": config.model.size, "patch_size": config.model.patch_size, "batch_size": config.batch_size,
        "dtype": config.model.dtype, "pairs_per_s": measured["ours"], "flops_per_pair": per_pair,
        "model_flops_per_s": speed, "matmul_flops_per_s": measured["matmul"],
        "share_of_matmul": speed / measured["matmul"],
        "mfu": speed / mesh.size / chip.flops[config.model.dtype] if chip else None,
        **_against_torch(measured), "waited_for_input": ours.waiting(), "compile_s": compile_s,
        "peak_memory_bytes": _peak_bytes(compiled),
    }  # fmt: skip
    if rows:
        out["profile"] = profile_lib.by_part(rows)
    return out


def _against_torch(measured: Mapping[str, float]) -> JsonObject:
    """Our speed as a multiple of each peer's, and the peers' own; None for those that were not measured."""
    out: JsonObject = {}
    for peer in PEERS:
        name, speed = peer.replace(".", "_"), measured.get(peer)
        out |= {f"vs_{name}": measured["ours"] / speed if speed else None, f"{name}_pairs_per_s": speed}
    return out


class _Ours:
    """Turns of our train step, the loss read one step late as in training."""

    def __init__(
        self,
        compiled: jax.stages.Compiled,
        state: TrainState,
        batches: pipeline.DeviceBatches,
        batch_size: int,
        seconds: float,
    ):
        self._compiled, self._state, self._batches = compiled, state, batches
        self._batch_size, self._seconds = batch_size, seconds
        self._late: jax.Array | None = None  # loss of the last step
        self._spent = 0.0

    def _step(self) -> None:
        self._state, metrics = self._compiled(self._state, next(self._batches))
        self._late, late = metrics["loss"], self._late
        if late is not None:
            late.block_until_ready()

    def steps(self, count: int) -> None:
        for _ in range(count):
            self._step()
        jax.block_until_ready(self._late)

    def __call__(self) -> float:
        began, count = time.perf_counter(), 0.0
        while time.perf_counter() - began < self._seconds:
            self._step()
            count += self._batch_size
        jax.block_until_ready(self._late)
        self._spent += time.perf_counter() - began
        return count

    def waiting(self) -> float:
        """Share of the time that the next batch was waited for."""
        return self._batches.waited_s / self._spent


def _matmul_turn(dtype: str, devices: int, seconds: float) -> Turn:
    """Turns of square matrix products on one device, counted in FLOPs of all devices."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((side, side), dtype)
    product = jax.jit(lambda x: x @ x)

    def turn() -> float:
        began, count, late = time.perf_counter(), 0, None
        while time.perf_counter() - began < seconds:
            now = product(a)
            if late is not None:
                late.block_until_ready()
            late, count = now, count + 1
        jax.block_until_ready(late)
        return count * 2.0 * side**3 * devices

    return turn


def torch_twin(
    config: ConfigDict, contract: Contract, objective: Objective, params: PyTree, compiled: bool = False
) -> Untyped:
    """The PyTorch twin of our train step, with the same parameters; `compiled`: by torch.compile.

    Raises:
      InputError: PyTorch is not installed, or the twin does not know what the config asks for.
    """
    try:
        from fusionx_jax.interop import torch_step
    except ImportError as error:
        raise InputError("PyTorch is not installed; `pip install fusionx-jax[torch]`, or leave --peer out.") from error
    modalities = {m: contract.modalities[m] for m in config.modalities}
    refused = {
        f"model.family {config.model.family!r}": config.model.family != "fusionx",
        f"masking {config.masking!r}": config.masking != "independent",
        "tiles with pixels that lack data": objective.normalizer.masked,
        "random crops": any(config.augment.crop not in (0, m.height) for m in modalities.values()),
        "views": objective.views is not None,
        "optimizer.accumulate": config.optimizer.get("accumulate", 1) > 1,
    }
    for what, requested in refused.items():
        if requested:
            raise InputError(f"The PyTorch twin does not know {what}; leave --peer out, or change the config.")
    p, o = config.model.patch_size, config.optimizer
    return torch_step.Step(
        dataclasses.asdict(objective.model.config),
        modalities,
        flat(params),
        {n: masking.num_visible(m.height * m.width // p**2, objective.ratios[n]) for n, m in modalities.items()},
        objective.weights,
        {"weight": objective.contrast_weight, "temperature": objective.temperature},
        {
            **{k: o[k] for k in ("warmup_steps", "weight_decay", "b1", "b2", "clip_norm")},
            "peak": o.learning_rate * config.batch_size / 256, "num_steps": config.num_steps,
        },
        objective.flip,
        compiled,
    )  # fmt: skip


def flat(params: PyTree) -> dict[str, np.ndarray]:
    """Parameters by their path."""
    return {"/".join(k.key for k in path): np.array(x) for path, x in jax.tree_util.tree_leaves_with_path(params)}


def _torch_turn(step: Callable, host: Iterator, batch_size: int, seconds: float) -> Callable[[], float]:
    def turn() -> float:
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            loss = step(next(host))
            count += batch_size
        loss.item()  # waits for a GPU
        return count

    return turn


def host_batches(config: ConfigDict, contract: Contract, dataset: str) -> Iterator[dict[str, np.ndarray]]:
    if dataset:
        return pipeline.host_batches(
            sets.open_for(config, dataset), "train", config.modalities, batch_size=config.batch_size, seed=config.seed,
            start_step=0, stop_step=1 << 40,
        )  # fmt: skip
    rng = np.random.default_rng(0)
    shapes = abstract_batch(config, contract)
    batches = [{m: rng.integers(0, 10_000, x.shape, np.uint16) for m, x in shapes.items()} for _ in range(4)]
    return itertools.cycle(batches)


def _peak_bytes(compiled: Untyped) -> int:
    """Peak memory as the device reports it; on a CPU the memory that the compiled step needs."""
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    m = compiled.memory_analysis()
    return peak or m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes - m.alias_size_in_bytes


def load_configs(paths: list[str], overrides: list[str]) -> dict[str, ConfigDict]:
    """Config files by a short name (`speed:demo`), all with the same overrides."""
    return {
        os.path.basename(p).replace(".py", ""): config_lib.override(config_lib.load_file(p), overrides) for p in paths
    }

"""`fusionx plan`: memory, FLOPs, communication and time of a training step, before the job is queued.

The train step is compiled ahead of time: for a TPU slice by its own compiler without the hardware (libtpu), for GPUs
by the CPU compiler on as many simulated devices. Memory is that of the compiled program; FLOPs are those of the traced
step with all loops unrolled; collectives are those of the partitioned program, multiplied by the trip counts of their
loops. The estimated time is a roofline (Williams et al., CACM 52(4), 2009): the largest of compute, memory, network and
input time at published rates. It is a lower bound.
"""

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jaxtyping import PyTree
from ml_collections import ConfigDict

from fusionx_jax import progress, sharding
from fusionx_jax.contract import Contract
from fusionx_jax.errors import InputError, RunError
from fusionx_jax.models import build, network
from fusionx_jax.plan import hlo
from fusionx_jax.plan.machine import Machine
from fusionx_jax.training import flops as flops_lib
from fusionx_jax.training import step
from fusionx_jax.training.objective import first_objective
from fusionx_jax.training.optimizer import make_optimizer
from fusionx_jax.training.state import TrainState, abstract_batch, abstract_state, layout
from fusionx_jax.types import JsonObject

_USABLE = 0.92  # share of the memory; the rest goes to the runtime and fragmentation
# How often a ring passes the bytes of a collective around.
_RING_PASSES = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1, "all-to-all": 1, "collective-permute": 1}


class DoesNotFit(Exception):
    """The compiler refused the step for lack of device memory. TPU compilers do; others compile any size."""


class CompiledStep(NamedTuple):
    """A train step compiled for a mesh; all sizes are bytes per device."""

    state: TrainState  # shapes and shardings
    params: int
    opt_state: int
    batch: int
    temporaries: int
    peak: int
    collectives: list[hlo.Collective]
    compile_s: float


def plan(config: ConfigDict, contract: Contract, machine: Machine, input_rate: float = 2e9) -> JsonObject:
    """Compiles the train step of `config` and returns its requirements as one JSON object.

    A batch that the compiler refuses is halved until it fits; the plan is that of the smaller batch, with
    `fits: false` and the refused sizes.

    Args:
      input_rate: bytes/s that a host reads.

    Raises:
      InputError: the config does not match the machine or the contract.
      RunError: not even the smallest batch fits.
    """
    refused: list[int] = []
    config = config.copy_and_resolve_references()
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, machine.devices)
    smallest = mesh.size * config.optimizer.get("accumulate", 1)
    while True:
        try:
            compiled = compile_step(config, contract, mesh)
            break
        except DoesNotFit as error:
            progress.logger.warning("A batch of %d does not fit (%s).", config.batch_size, error)
            batch_size = config.batch_size // 2 // smallest * smallest
            if not batch_size:
                raise RunError(
                    f"Not even a batch of {config.batch_size} fits: {error}. Shard the state with "
                    "--config.mesh.fsdp=-1, rematerialize with --config.model.remat=full, or use more or larger chips."
                ) from error
            refused.append(config.batch_size)
            config.batch_size = batch_size
            progress.logger.info("Compiling for a batch of %d to find the largest …", batch_size)
    found = _account(config, contract, machine, mesh, compiled, input_rate)
    return {**found, "fits": False, "refused_batch_sizes": refused} if refused else found


def compile_step(config: ConfigDict, contract: Contract, mesh: jax.sharding.Mesh) -> CompiledStep:
    """Compiles the train step for a mesh and reads its memory and collectives.

    Raises:
      DoesNotFit: the compiler refused the step for lack of device memory.
    """
    sharding.check_batch(config.batch_size, mesh, config.optimizer.get("accumulate", 1))
    model = build.make_model(config, contract.modalities)
    objective = first_objective(config, network.unrolled(model, 1), contract)
    optimizer, schedule = make_optimizer(config)
    state = abstract_state(model, optimizer, mesh)
    spread = sharding.batch_sharding(mesh)
    wire = {
        m: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spread) for m, x in abstract_batch(config, contract).items()
    }
    began = time.perf_counter()
    program = step.jit_step(config, objective, optimizer, schedule, layout(state), mesh)
    with jax.set_mesh(mesh):
        lowered = program.lower(state, wire)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(next(line for line in str(error).splitlines() if "RESOURCE_EXHAUSTED" in line)) from error
    seconds = time.perf_counter() - began
    memory, text = compiled.memory_analysis(), compiled.as_text()
    if memory is None or text is None:
        raise InputError("This backend's compiler reports no memory analysis; plan for a TPU slice or for GPUs.")
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return CompiledStep(
        state=state,
        params=_bytes_per_device(state["params"]),
        opt_state=_bytes_per_device(state["opt_state"]),
        batch=sum(math.prod(x.shape) * 2 for x in wire.values()) // mesh.size,
        temporaries=memory.temp_size_in_bytes,
        peak=peak + memory.temp_size_in_bytes,
        collectives=hlo.collectives(text, sharding.AXES, [mesh.shape[a] for a in sharding.AXES]),
        compile_s=seconds,
    )


def _account(
    config: ConfigDict,
    contract: Contract,
    machine: Machine,
    mesh: jax.sharding.Mesh,
    compiled: CompiledStep,
    input_rate: float,
) -> JsonObject:
    """The plan of a compiled step: its roofline, and whether its memory fits."""
    flops = flops_lib.flops_per_pair(config, build.make_model(config, contract.modalities), contract)
    useful = flops if config.model.get("remat", "none") == "none" else flops_lib.useful_flops_per_pair(config, contract)
    share = machine.chips / mesh.size  # of a chip, per device
    pair_bytes = compiled.batch * mesh.size // config.batch_size
    rate = machine.chip.flops[config.model.dtype] * share * mesh.size
    bounds = {
        "compute": flops * config.batch_size / rate,
        "memory": _memory_traffic(compiled, config.optimizer.get("accumulate", 1)) / machine.chip.memory_rate / share,
        "network": sum(_ring_seconds(c, mesh, machine) for c in compiled.collectives),
        "input": config.batch_size * pair_bytes / machine.hosts / input_rate,
    }
    bound, step_s = max(bounds.items(), key=lambda item: item[1])
    available = machine.chip.memory * share * _USABLE
    pairs_per_s = config.batch_size / step_s
    return {
        "devices": mesh.size,
        "chips": machine.chips,
        "hosts": machine.hosts,
        "mesh": dict(mesh.shape),
        "batch_size": config.batch_size,
        "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(compiled.state["params"])),
        "compile_s": compiled.compile_s,
        "memory_per_device": {
            "params": compiled.params,
            "opt_state": compiled.opt_state,
            "batch": compiled.batch,
            "activations_and_temporaries": compiled.temporaries,
            "peak": compiled.peak,
            "available": available,
        },
        "fits": compiled.peak <= available,
        "largest_batch_size": _largest_batch_size(config, mesh, compiled, available),
        "flops_per_pair": useful,
        "flops_per_step": useful * config.batch_size,
        "flops_per_step_with_remat": flops * config.batch_size,
        "collectives": [
            {"kind": c.kind, "axes": list(c.axes), "per_step": c.per_step, "bytes_per_step": c.bytes}
            for c in compiled.collectives
        ],
        "roofline_s": bounds,
        "bound": bound,
        "step_s": step_s,
        "pairs_per_s": pairs_per_s,
        "mfu_at_roofline": useful * config.batch_size / rate / step_s,
        "input_bytes_per_s_per_host": pairs_per_s * pair_bytes / machine.hosts,
    }


def _memory_traffic(compiled: CompiledStep, accumulate: int) -> int:
    """Least bytes that a device reads and writes in a step.

    The optimizer reads and writes the state once. Every part of an accumulated batch reads the parameters in both
    passes and writes and reads its activations; buffers that are reused count once.
    """
    per_part = 4 * compiled.params + 2 * compiled.temporaries
    return 2 * (compiled.params + compiled.opt_state) + accumulate * per_part + 2 * compiled.batch


def _largest_batch_size(config: ConfigDict, mesh: jax.sharding.Mesh, compiled: CompiledStep, available: float) -> int:
    """The largest batch that fits, if memory other than the state grows in proportion to the batch."""
    state = compiled.params + compiled.opt_state
    per_pair = max(compiled.peak - state, 1) / (config.batch_size / mesh.size)
    multiple = mesh.size * config.optimizer.get("accumulate", 1)
    return int(max(0, (available - state) / per_pair) * mesh.size // multiple * multiple)


def _bytes_per_device(abstract: PyTree) -> int:
    leaves: Sequence[jax.ShapeDtypeStruct] = jax.tree.leaves(abstract)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def _ring_seconds(c: hlo.Collective, mesh: jax.sharding.Mesh, machine: Machine) -> float:
    """Time of a collective on a ring of n devices: (n - 1) / n of the bytes, twice for an all-reduce."""
    n = math.prod(mesh.shape[a] for a in c.axes)
    # Neighbors in a group are this many devices apart at most; groups that span hosts use the rate between hosts.
    span = math.prod(mesh.shape[a] for a in mesh.axis_names[mesh.axis_names.index(c.axes[0]) :])
    spans_hosts = span > machine.chip.per_host
    rate = machine.chip.network_rate * machine.chips / mesh.size
    if machine.host_to_host_rate and spans_hosts:
        rate = machine.host_to_host_rate
    # The result of a reduce-scatter is one device's part of the bytes that travel.
    size = c.bytes * (n if c.kind == "reduce-scatter" else 1)
    return _RING_PASSES[c.kind] * (n - 1) / n * size / rate

"""`fusionx plan`: what a run needs and how long it takes, before it is queued.

The real train step is compiled ahead of time: for a TPU slice by its own compiler without the hardware (libtpu), for
GPUs by the CPU compiler on as many simulated devices ("by rule"). Memory comes from the compiled program; FLOPs from
the traced step with every loop unrolled; collectives from the partitioned program, times the turns of their loops. The
roofline is the slowest of computing, memory and network at the chip's published rates and of reading at a given one: a
bound, not a promise.
"""

import math
import os
import time
from collections.abc import Mapping
from typing import Any

from fusionx_jax import progress
from fusionx_jax.chips import BETWEEN_GPU_MACHINES, CHIPS, Chip
from fusionx_jax.contract import Contract
from fusionx_jax.errors import InputError, RunError

_USABLE = 0.92  # of the memory; the rest goes to the runtime and fragments
# How often a ring sends its bytes round.
_TURNS = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1, "all-to-all": 1, "collective-permute": 1}


def plan(
    config: Any, contract: Contract, devices: Any, chip: Chip, chips: int, hosts: int, between: float = 0.0,
    input_rate: float = 2e9,
) -> dict[str, Any]:  # fmt: skip
    """Compiles the train step of `config` for `devices` and returns what it needs.

    `chips` may be fewer than devices (two cores a chip). `between` is the rate between machines where it differs,
    `input_rate` what a host reads; bytes/s.
    """
    import functools

    import jax

    from fusionx_jax import sharding
    from fusionx_jax.models import build, network
    from fusionx_jax.plan import hlo
    from fusionx_jax.training import flops as flops_lib
    from fusionx_jax.training import step
    from fusionx_jax.training.objective import first_objective
    from fusionx_jax.training.optimizer import make_optimizer
    from fusionx_jax.training.state import abstract_batch, fresh_state

    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, devices)
    accumulate = config.optimizer.get("accumulate", 1)
    sharding.check_batch(config.batch_size, mesh, accumulate)
    model = build.make_model(config, contract.modalities)
    objective = first_objective(config, network.unrolled(model, 1), contract)
    optimizer, schedule = make_optimizer(config)

    shapes = jax.eval_shape(functools.partial(fresh_state, model, optimizer, config.seed))
    layout = sharding.state_shardings(shapes, mesh)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, layout)
    spread = sharding.batch_sharding(mesh)
    wire = {
        m: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spread) for m, x in abstract_batch(config, contract).items()
    }
    began = time.perf_counter()
    program = step.jit_step(config, objective, optimizer, schedule, layout, mesh)
    with jax.set_mesh(mesh):
        lowered = program.lower(state, wire)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:  # the TPU's compiler knows its memory and refuses more
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        words = next(line for line in str(error).splitlines() if "RESOURCE_EXHAUSTED" in line)
        return _of_less(config, contract, devices, chip, chips, hosts, between, input_rate, words)
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    flops = useful = flops_lib.flops_per_pair(config, model, contract) * config.batch_size
    if config.model.get("remat", "none") != "none":
        useful = flops_lib.useful_flops_per_pair(config, contract) * config.batch_size
    moved = hlo.collectives(compiled.as_text(), sharding.AXES, [mesh.shape[a] for a in sharding.AXES])

    held = {part: _bytes_per_device(shapes[part], layout[part]) for part in ("params", "opt_state")}
    batch = sum(math.prod(x.shape) * 2 for x in wire.values()) // mesh.size
    share = chips / mesh.size  # of a chip that one device is
    rate = chip.flops[config.model.dtype] * share
    # State is read and written by the optimizer, once; parameters by both passes, and activations written and read, in
    # every part of an accumulated batch. Buffers that are used again count once, so this is the least.
    each_part = 4 * held["params"] + 2 * memory.temp_size_in_bytes
    traffic = 2 * (held["params"] + held["opt_state"]) + accumulate * each_part + 2 * batch
    network = sum(_seconds(c, mesh, chip, share, between) for c in moved)
    pair_bytes = sum(math.prod(x.shape[1:]) * 2 for x in wire.values())
    bounds = {
        "compute": flops / mesh.size / rate,
        "memory": traffic / (chip.memory_rate * share),
        "network": network,
        "input": config.batch_size * pair_bytes / hosts / input_rate,
    }
    slowest = max(bounds, key=bounds.get)
    step_s = bounds[slowest]
    limit = chip.memory * share * _USABLE
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak += memory.temp_size_in_bytes
    fixed = sum(held.values())
    per_pair = max(peak - fixed, 1) / (config.batch_size / mesh.size)
    unit = mesh.size * accumulate
    return {
        "devices": mesh.size, "chips": chips, "hosts": hosts, "mesh": dict(mesh.shape), "batch_size": config.batch_size,
        "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(shapes["params"])),
        "compile_s": seconds,
        "memory_per_device": {
            **held, "batch": batch, "activations_and_temporaries": memory.temp_size_in_bytes, "peak": peak,
            "available": limit,
        },
        "fits": bool(peak <= limit),
        "largest_batch_size": int(max(0, (limit - fixed) / per_pair) * mesh.size // unit * unit),
        "flops_per_pair": useful / config.batch_size, "flops_per_step": useful, "flops_per_step_with_remat": flops,
        "collectives": [
            {"kind": c.kind, "axes": list(c.axes), "per_step": c.per_step, "bytes_per_step": c.bytes} for c in moved
        ],
        "roofline_s": bounds, "bound": slowest, "step_s": step_s, "pairs_per_s": config.batch_size / step_s,
        "mfu_at_roofline": useful / mesh.size / rate / step_s,
        "input_bytes_per_s_per_host": config.batch_size / step_s * pair_bytes / hosts,
    }  # fmt: skip


def _of_less(config, contract, devices, chip, chips, hosts, between, input_rate, words) -> dict[str, Any]:
    """The plan of half the batch, or less, marked as not fitting: a step whose compiler refused to go on has none."""
    least = len(devices) * config.optimizer.get("accumulate", 1)
    batch = config.batch_size // 2 // least * least
    progress.logger.warning("A batch of %d does not fit (%s).", config.batch_size, words)
    if not batch:
        raise RunError(
            f"Not even a batch of {config.batch_size} fits: {words}. Spread the state with --config.mesh.fsdp=-1, "
            "compute again with --config.model.remat=full, or take more or larger chips."
        )
    progress.logger.info("Compiling for a batch of %d to find the largest …", batch)
    less = config.copy_and_resolve_references()
    less.batch_size = batch
    found = plan(less, contract, devices, chip, chips, hosts, between, input_rate)
    refused = found.get("refused_batch_sizes", [])
    return {**found, "fits": False, "refused_batch_sizes": [config.batch_size, *refused]}


def _bytes_per_device(shapes: Any, layout: Any) -> int:
    import jax

    sizes = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, shapes, layout)
    return sum(jax.tree.leaves(sizes))


def _seconds(c: Any, mesh: Any, chip: Chip, share: float, between: float) -> float:
    """A ring's time for a collective: (n - 1) / n of the bytes, twice for a sum that all receive."""
    count = math.prod(mesh.shape[a] for a in c.axes)
    # Groups that reach beyond a machine go at the rate between machines.
    inner = math.prod(mesh.shape[a] for a in mesh.axis_names[mesh.axis_names.index(c.axes[0]) :])
    rate = between if between and inner > chip.per_host else chip.network_rate * share
    size = c.bytes * (count if c.kind == "reduce-scatter" else 1)  # its result is a part of what travels
    return _TURNS[c.kind] * (count - 1) / count * size / rate


def machine(topology: str, devices: int, kind: str) -> tuple[Any, Chip, int, int, float]:
    """Devices to compile for, their chip, chips, hosts, and the rate between machines.

    Raises:
      InputError: an unknown chip or slice, or no compiler for it.
    """
    if topology:
        kind, _, grid = topology.partition(":")
        sides = grid.split("x")
        if kind not in ("v4", "v5e", "v5p", "v6e") or not all(s.isdigit() and int(s) for s in sides):
            raise InputError(f"--topology is {topology!r}; give GENERATION:GRID of chips, e.g. v5e:16x16 or v4:4x4x4.")
        chips = math.prod(int(s) for s in sides)
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # it would ask a cloud machine's metadata
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # its lock guards a chip, and there is none
        # A third of the compiler's work (ViT-B on v5e:16x16), memory and collectives within 1 % of its usual effort.
        os.environ.setdefault("JAX_EXEC_TIME_OPTIMIZATION_EFFORT", "-1.0")
        from jax.experimental import topologies

        bounds = [int(s) for s in sides] + [1] * (3 - len(sides))
        # A slice smaller than a host's must be said to be the whole host.
        small = {"chips_per_host_bounds": bounds} if chips < CHIPS[kind].per_host else {}
        try:
            found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **small).devices
        except Exception as error:  # libtpu is absent, or does not know the slice: many types, from C++
            raise InputError(
                f"No TPU compiler for {topology} ({str(error).splitlines()[0]}); install it with `pip install "
                "fusionx-jax[tpu]`, and name a slice that exists."
            ) from error
        return list(found), CHIPS[kind], chips, max(1, chips // CHIPS[kind].per_host), 0.0
    if kind not in CHIPS or devices < 1:
        raise InputError(f"--kind is {kind!r} and --devices {devices}; known are {', '.join(CHIPS)}, from 1 on.")
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}".strip()
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    if jax.device_count() != devices:
        raise InputError(f"{jax.device_count()} devices were there before {devices} could be simulated; run it anew.")
    hosts = -(-devices // CHIPS[kind].per_host)
    return jax.devices(), CHIPS[kind], devices, hosts, BETWEEN_GPU_MACHINES


def show(found: Mapping[str, Any], epochs: float) -> str:
    """The plan for people."""
    m = {k: v / 2**30 for k, v in found["memory_per_device"].items()}
    mesh = " x ".join(f"{k} {v}" for k, v in found["mesh"].items())
    moved = [
        f"{c['per_step']} {c['kind']} over {' x '.join(c['axes'])}, {c['bytes_per_step'] / 1e6:.1f} MB"
        for c in found["collectives"]
    ]
    bounds = ", ".join(f"{k} {1e3 * v:.2f} ms" for k, v in found["roofline_s"].items())
    again = ""
    if found["flops_per_step_with_remat"] > 1.001 * found["flops_per_step"]:
        again = f" ({found['flops_per_step_with_remat'] / 1e12:.2f} T with what is computed again)"
    refused = found.get("refused_batch_sizes", [])
    lines = [
        f"{found['of']}: {found['chips']} chips, {found['devices']} devices, {found['hosts']} hosts; mesh {mesh}",
        f"network       {found['parameters'] / 1e6:.1f} M parameters, batch {found['batch_size']}; compiled in "
        f"{found['compile_s']:.0f} s",
        f"memory        a device: parameters {m['params']:.2f} GiB, optimizer {m['opt_state']:.2f}, activations and "
        f"temporaries {m['activations_and_temporaries']:.2f}",
        f"              peak {m['peak']:.2f} of {m['available']:.1f} GiB usable: "
        f"{'fits' if found['fits'] or refused else 'DOES NOT FIT'}; largest batch about {found['largest_batch_size']}",
        f"FLOPs         {found['flops_per_pair'] / 1e9:.2f} G a pair, {found['flops_per_step'] / 1e12:.2f} T a step"
        + again,
        f"collectives   {'; '.join(moved) or 'none'}",
        f"roofline      {bounds}; bound by {found['bound']}",
        f"at best       {1e3 * found['step_s']:.2f} ms a step, {found['pairs_per_s']:.0f} pairs/s, MFU "
        f"{100 * found['mfu_at_roofline']:.0f} %; input {found['input_bytes_per_s_per_host'] / 1e6:.0f} MB/s a host",
    ]
    if refused:
        told = f"batch {refused[0]} DOES NOT FIT: the compiler refuses it; what follows is of {found['batch_size']}"
        lines.insert(0, told)
    if found.get("days"):
        hours = found["days"] * found["chips"] * 24
        long = f"{found['days']:.1f} days" if found["days"] >= 1 else f"{24 * found['days']:.2f} hours"
        lines.append(f"{epochs:g} epochs    {long} at best, {hours:.0f} chip hours")
    return "\n".join(lines)

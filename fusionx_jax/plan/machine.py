"""The devices that a plan compiles for: a TPU slice through its own compiler, or GPUs through the CPU compiler."""

import math
import os
from typing import NamedTuple

from fusionx_jax.chips import BETWEEN_GPU_MACHINES, CHIPS, Chip
from fusionx_jax.errors import InputError
from fusionx_jax.types import Untyped


class Machine(NamedTuple):
    """Devices to compile for.

    Attributes:
      devices: JAX devices; a chip of two cores is two devices.
      chip: published rates of one chip.
      chips, hosts: their numbers.
      host_to_host_rate: bytes/s of one chip to other hosts, where this is less than to chips of its own host; else 0.
    """

    devices: list[Untyped]  # jax.Device, or the compile-only devices of a topology
    chip: Chip
    chips: int
    hosts: int
    host_to_host_rate: float = 0.0


def find(topology: str, devices: int, kind: str) -> Machine:
    """The TPU slice `topology` if it is given, else `devices` GPUs of a kind.

    Raises:
      InputError: an unknown chip or slice, or no compiler for it.
    """
    return _tpu_slice(topology) if topology else _gpus(devices, kind)


def _tpu_slice(topology: str) -> Machine:
    kind, _, grid = topology.partition(":")
    sides = grid.split("x")
    if kind not in ("v4", "v5e", "v5p", "v6e") or not all(s.isdigit() and int(s) for s in sides):
        raise InputError(f"--topology is {topology!r}; give GENERATION:GRID of chips, e.g. v5e:16x16 or v4:4x4x4.")
    chip, chips = CHIPS[kind], math.prod(int(s) for s in sides)
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu would query a cloud machine's metadata
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # libtpu's lock guards a chip; none is used here
    # A third of the compile time (ViT-B on v5e:16x16), with memory and collectives within 1 % of the default effort's.
    os.environ.setdefault("JAX_EXEC_TIME_OPTIMIZATION_EFFORT", "-1.0")
    from jax.experimental import topologies

    bounds = [int(s) for s in sides] + [1] * (3 - len(sides))
    # For slices of less than a host, libtpu needs the slice's grid as the host's.
    less_than_a_host = {"chips_per_host_bounds": bounds} if chips < chip.per_host else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **less_than_a_host).devices
    except Exception as error:  # libtpu raises many types, from C++
        raise InputError(
            f"There is no TPU compiler for {topology} ({str(error).splitlines()[0]}); install it with `pip install "
            "fusionx-jax[tpu]`, and name a slice that exists."
        ) from error
    return Machine(list(found), chip, chips, max(1, chips // chip.per_host))


def _gpus(devices: int, kind: str) -> Machine:
    if kind not in CHIPS or devices < 1:
        raise InputError(f"--kind is {kind!r} and --devices {devices}; known are {', '.join(CHIPS)}, from 1 on.")
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}".strip()
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    if jax.device_count() != devices:
        raise InputError(
            f"JAX was initialized with {jax.device_count()} device(s) before {devices} could be simulated; run "
            "`fusionx plan` in a process of its own."
        )
    hosts = -(-devices // CHIPS[kind].per_host)
    return Machine(jax.devices(), CHIPS[kind], devices, hosts, BETWEEN_GPU_MACHINES)

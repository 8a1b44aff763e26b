"""Mesh and partition rules: `jit` + `Mesh` + `NamedSharding`, one table for parameters and optimizer state.

Axes: `data` splits the batch, `fsdp` splits the batch and the parameters. The rule for a parameter (after big_vision's
fsdp inference): its largest dimension that the fsdp axis divides; small arrays are replicated.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fusionx_jax.errors import InputError

AXES = ("data", "fsdp")
_REPLICATE_BELOW = 1 << 14  # elements: gathering a smaller array costs more than holding it


def make_mesh(data: int = -1, fsdp: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """A data x fsdp mesh over the given devices (default all); -1 for one axis takes what is left.

    Raises:
      InputError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    shape = [data, fsdp]
    if shape.count(-1) == 1:
        known = shape[1 - shape.index(-1)]
        shape[shape.index(-1)] = count // known if known > 0 and count % known == 0 else 0
    if shape[0] * shape[1] != count or min(shape) < 1:
        raise InputError(
            f"mesh is data={data}, fsdp={fsdp}, which does not fit {count} device(s); their product must be {count} "
            "(-1 for one of them takes what is left)."
        )
    # Auto axes: Linen modules do not know explicit ones.
    return Mesh(np.array(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples spread over all devices."""
    return NamedSharding(mesh, P(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def state_shardings(tree: Any, mesh: Mesh) -> Any:
    """Sharding of every array of a (possibly abstract) state by the rule above."""
    size = mesh.shape["fsdp"]

    def rule(leaf):
        spec = [None] * len(leaf.shape)
        if size > 1 and np.prod(leaf.shape, dtype=np.int64) >= _REPLICATE_BELOW:
            for axis in sorted(range(len(leaf.shape)), key=lambda a: -leaf.shape[a]):
                if leaf.shape[axis] % size == 0:
                    spec[axis] = "fsdp"
                    break
        return NamedSharding(mesh, P(*spec))

    return jax.tree.map(rule, tree)


def check_batch(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Refuses a batch that does not divide among the devices and the parts in which it is accumulated."""
    if accumulate < 1:
        raise InputError(f"optimizer.accumulate is {accumulate}; it must be at least 1.")
    if batch_size < 1 or batch_size % (mesh.size * accumulate):
        parts = f" times the {accumulate} parts of optimizer.accumulate" if accumulate > 1 else ""
        raise InputError(
            f"batch_size is {batch_size}; it must be a positive multiple of the {mesh.size} device(s){parts}."
        )

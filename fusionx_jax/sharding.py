"""Mesh and partition rules: `jit` + `Mesh` + `NamedSharding`, one rule for parameters and optimizer state.

Axes: `data` splits the batch, `fsdp` splits the batch and the parameters. The rule for a parameter is that of
big_vision's `fsdp` strategy (big_vision/sharding.py): the largest dimension that the size of the fsdp axis divides is
split, and small arrays are replicated.
"""

import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from fusionx_jax.errors import InputError

AXES = ("data", "fsdp")
REPLICATED_BYTES = 4 << 20  # arrays of at most 4 MB are replicated (big_vision: min_size_to_shard_mb=4)


def make_mesh(data: int = -1, fsdp: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """A data x fsdp mesh over the given devices (default: all); -1 for one axis takes the remaining devices.

    `mesh_utils` arranges the devices so that neighbors in the mesh are neighbors in the network of a TPU slice.

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
            "(-1 for one of them takes the remaining devices)."
        )
    arranged = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    # Linen modules do not support Explicit axes.
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The examples of a batch split over all devices."""
    return NamedSharding(mesh, P(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, P())


def state_shardings(tree: PyTree, mesh: Mesh, replicated_bytes: int | None = None) -> PyTree:
    """The sharding of every array of a (possibly abstract) state; arrays of at most `replicated_bytes` (default 4 MB)
    are replicated."""
    limit = REPLICATED_BYTES if replicated_bytes is None else replicated_bytes
    size = mesh.shape["fsdp"]

    def rule(leaf: jax.Array | jax.ShapeDtypeStruct) -> NamedSharding:
        spec: list[str | None] = [None] * len(leaf.shape)
        if size > 1 and math.prod(leaf.shape) * leaf.dtype.itemsize > limit:
            for axis in sorted(range(len(leaf.shape)), key=lambda a: -leaf.shape[a]):
                if leaf.shape[axis] % size == 0:
                    spec[axis] = "fsdp"
                    break
        return NamedSharding(mesh, P(*spec))

    return jax.tree.map(rule, tree)


def check_batch(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Refuses a batch size that is not divisible by the number of devices times `accumulate`.

    Raises:
      InputError: it is not, or `accumulate` is below 1.
    """
    if accumulate < 1:
        raise InputError(f"optimizer.accumulate is {accumulate}; it must be at least 1.")
    if batch_size < 1 or batch_size % (mesh.size * accumulate):
        parts = f" times the {accumulate} parts of optimizer.accumulate" if accumulate > 1 else ""
        raise InputError(
            f"batch_size is {batch_size}; it must be a positive multiple of the {mesh.size} device(s){parts}."
        )

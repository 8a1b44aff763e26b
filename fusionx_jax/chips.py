"""Published rates of accelerators, for rooflines and for the share of the peak that a run reaches (MFU)."""

from collections.abc import Mapping
from typing import NamedTuple


class Chip(NamedTuple):
    """Published rates of one chip: dense FLOP/s by dtype, memory, and bytes/s to memory and to the other chips."""

    flops: Mapping[str, float]
    memory: float
    memory_rate: float
    network_rate: float
    per_host: int


def _chip(bf16: int, f32: int, gib: int, gb_s: int, net_gb_s: int, per_host: int) -> Chip:
    return Chip({"bfloat16": bf16 * 1e12, "float32": f32 * 1e12}, gib * 2**30, gb_s * 1e9, net_gb_s * 1e9, per_host)


# TPU: docs.cloud.google.com/tpu/docs (system architecture pages of v4, v5e, v5p, v6e): peak bf16, HBM, HBM bandwidth,
# ICI bandwidth per chip in one direction (half of the bidirectional figure); float32 products run as bf16 by default.
# GPU: NVIDIA's data sheets of A100, H100, H200 (SXM), dense rates; float32 as TF32; NVLink in one direction.
CHIPS = {
    "v4": _chip(275, 275, 32, 1228, 150, 4),
    "v5e": _chip(197, 197, 16, 819, 100, 4),
    "v5p": _chip(459, 459, 95, 2765, 300, 4),
    "v6e": _chip(918, 918, 32, 1640, 224, 4),
    "a100": _chip(312, 156, 80, 2039, 300, 8),
    "h100": _chip(989, 494, 80, 3350, 450, 8),
    "h200": _chip(989, 494, 141, 4800, 450, 8),
}
# Between machines: 400 Gb/s a GPU (NVIDIA DGX H100 reference architecture).
BETWEEN_GPU_MACHINES = 50e9


# A JAX device's device_kind begins with or contains one of these; the first match counts.
_KINDS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e", "A100": "a100", "H100": "h100",
          "H200": "h200"}  # fmt: skip


def find(device_kind: str) -> Chip | None:
    """The chip of a JAX device by its device_kind; None if it is not listed (a CPU)."""
    return next((CHIPS[name] for kind, name in _KINDS.items() if kind in device_kind), None)

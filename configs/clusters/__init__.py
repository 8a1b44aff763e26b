"""Environment variables of launched jobs, by kind of accelerator. `experiments.launch` reads it.

Sources: JAX's GPU performance tips (docs.jax.dev/en/latest/gpu_performance_tips.html) for the latency-hiding scheduler,
which overlaps collectives with computing; MaxText's documentation of XLA flags (github.com/AI-Hypercomputer/maxtext)
for asynchronous collective fusion on TPU. None of them changes what is computed.
"""

from typing import NamedTuple

ENVIRONMENT = {
    "cpu": {"JAX_PLATFORMS": "cpu"},
    "gpu": {"XLA_FLAGS": "--xla_gpu_enable_latency_hiding_scheduler=true"},
    "tpu": {
        "LIBTPU_INIT_ARGS": "--xla_tpu_enable_async_collective_fusion=true "
        "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true "
        "--xla_tpu_enable_async_collective_fusion_multiple_steps=true --xla_tpu_overlap_compute_collective_tc=true",
    },
}

# Seconds from the scheduler's warning to the end of a job: enough for a step and a checkpoint.
WARNING_S = 120
# Seconds without a heartbeat after which a process counts as dead.
HEARTBEAT_S = 60
COORDINATOR_PORT = 12421


class Tpu(NamedTuple):
    """A TPU generation.

    Attributes:
      type, runtime: names of accelerator and runtime image (docs.cloud.google.com/tpu/docs/runtimes).
      gke: name in Kubernetes (docs.cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus).
      counted_cores: cores per chip as the accelerator type counts them (v5e and v6e count chips).
    """

    type: str
    runtime: str
    gke: str
    counted_cores: int


# Chips of a host in slices of several hosts, for all generations below.
TPU_CHIPS_PER_HOST = 4
TPU = {
    "v4": Tpu("v4", "tpu-ubuntu2204-base", "tpu-v4-podslice", 2),
    "v5e": Tpu("v5litepod", "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", 1),
    "v5p": Tpu("v5p", "v2-alpha-tpuv5", "tpu-v5p-slice", 2),
    "v6e": Tpu("v6e", "v2-alpha-tpuv6e", "tpu-v6e-slice", 1),
}

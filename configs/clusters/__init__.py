"""What launched jobs set in their environment, by kind of accelerator. `experiments.launch` reads it.

Sources: JAX's GPU performance tips (docs.jax.dev/en/latest/gpu_performance_tips.html) for the latency-hiding scheduler,
which overlaps collectives with computing; MaxText's documentation of XLA flags (github.com/AI-Hypercomputer/maxtext)
for asynchronous collective fusion on TPU. None of them changes what is computed.
"""

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
# Seconds a process may be silent before the others take it for dead.
HEARTBEAT_S = 60
COORDINATOR_PORT = 12421

# TPU: runtime images of the generations (cloud.google.com/tpu/docs/runtimes), and what GKE calls them
# (cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus); chips a host holds in multi-host slices.
TPU = {
    "v4": {"type": "v4", "runtime": "tpu-ubuntu2204-base", "gke": "tpu-v4-podslice", "chips": 4, "cores": 2},
    "v5e": {
        "type": "v5litepod",
        "runtime": "v2-alpha-tpuv5-lite",
        "gke": "tpu-v5-lite-podslice",
        "chips": 4,
        "cores": 1,
    },
    "v5p": {"type": "v5p", "runtime": "v2-alpha-tpuv5", "gke": "tpu-v5p-slice", "chips": 4, "cores": 2},
    "v6e": {"type": "v6e", "runtime": "v2-alpha-tpuv6e", "gke": "tpu-v6e-slice", "chips": 4, "cores": 1},
}

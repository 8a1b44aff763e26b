#!/bin/bash
# The same command again waits for the same slice and goes on from the newest checkpoint.
set -euo pipefail
name=fusionx-ssl4eo zone=us-west4-a
describe() {
  gcloud compute tpus queued-resources describe "$name" --zone="$zone" --format="value(state.state)"
}
if ! state=$(describe 2>/dev/null); then
  gcloud compute tpus queued-resources create "$name" --node-id="$name" --zone="$zone" \
    --accelerator-type=v5litepod-256 --runtime-version=v2-alpha-tpuv5-lite --spot
fi
until [ "$(describe)" = ACTIVE ]; do echo "$(date) $(describe)"; sleep 30; done
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command='cd /home/me/fusionx && export LIBTPU_INIT_ARGS='"'"'--xla_tpu_enable_async_collective_fusion=true --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true --xla_tpu_enable_async_collective_fusion_multiple_steps=true --xla_tpu_overlap_compute_collective_tc=true'"'"' JAX_COMPILATION_CACHE_DIR=/scratch/ssl4eo/launch/compiled && python -m fusionx_jax pretrain --config=configs/ssl4eo_s12.py --workdir=/scratch/ssl4eo/seed=0 --config.dataset=/data/ssl4eo --config.seed=0 --distributed && python -m fusionx_jax pretrain --config=configs/ssl4eo_s12.py --workdir=/scratch/ssl4eo/seed=1 --config.dataset=/data/ssl4eo --config.seed=1 --distributed'

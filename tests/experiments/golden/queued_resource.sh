#!/bin/bash
# The same command again waits for the same slice and resumes from the newest checkpoint.
set -euo pipefail
name=fusionx-ssl4eo zone=us-west4-a
describe() {
  gcloud compute tpus queued-resources describe "$name" --zone="$zone" --format="value(state.state)"
}
state=$(describe 2>/dev/null) || state=NONE
if [ "$state" = SUSPENDED ] || [ "$state" = FAILED ]; then  # preempted: it never comes back by itself
  gcloud compute tpus queued-resources delete "$name" --zone="$zone" --force --quiet
  state=NONE
fi
if [ "$state" = NONE ]; then
  gcloud compute tpus queued-resources create "$name" --node-id="$name" --zone="$zone" \
    --accelerator-type=v5litepod-256 --runtime-version=v2-alpha-tpuv5-lite --spot
fi
until state=$(describe) && [ "$state" = ACTIVE ]; do
  case "$state" in SUSPENDED|FAILED) echo "$name is $state; run this again." >&2; exit 1 ;; esac
  echo "$(date) $state"; sleep 30
done
tar -C /home/me/fusionx --exclude=./.git --exclude='./.venv*' --exclude=./runs -czf /scratch/ssl4eo/launch/fusionx-ssl4eo.tgz .
gcloud compute tpus tpu-vm scp /scratch/ssl4eo/launch/fusionx-ssl4eo.tgz "$name": \
  --zone="$zone" --worker=all
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command='sudo mkdir -p /scratch && sudo chmod 777 /scratch && (mountpoint -q /scratch || gcsfuse --implicit-dirs mine /scratch) && mkdir -p fusionx-ssl4eo && tar -xzf fusionx-ssl4eo.tgz -C fusionx-ssl4eo && cd fusionx-ssl4eo && python3 -m pip install --quiet -e '"'"'.[tpu,input]'"'"' && export LIBTPU_INIT_ARGS='"'"'--xla_tpu_enable_async_collective_fusion=true --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true --xla_tpu_enable_async_collective_fusion_multiple_steps=true --xla_tpu_overlap_compute_collective_tc=true'"'"' JAX_COMPILATION_CACHE_DIR=/scratch/ssl4eo/launch/compiled && python3 -m fusionx_jax pretrain --config=configs/ssl4eo_s12.py --workdir=/scratch/ssl4eo/seed=0 --config.dataset=/data/ssl4eo --config.seed=0 --distributed && python3 -m fusionx_jax pretrain --config=configs/ssl4eo_s12.py --workdir=/scratch/ssl4eo/seed=1 --config.dataset=/data/ssl4eo --config.seed=1 --distributed'

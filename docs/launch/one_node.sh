#!/usr/bin/env bash
# Trains on this machine's GPUs, one process each, and goes on where the run stopped; from the repository's root:
#   bash docs/launch/one_node.sh --config pathmoe_0.9b --config path_b4 --config bf16 --config ddp
# PROCESSES: other than one for each GPU. RESTARTS: how often a crash starts all processes again.
# SHUTDOWN_SECONDS: what they have for the checkpoint after SIGTERM.
set -euo pipefail

# With the store that torchrun shares out (torch 2.13), processes that are started again may not find each other.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

exec torchrun \
  --standalone \
  --nproc-per-node="${PROCESSES:-gpu}" \
  --max-restarts="${RESTARTS:-3}" \
  --shutdown-timeout="${SHUTDOWN_SECONDS:-300}" \
  train.py fit --ckpt_path last "$@"

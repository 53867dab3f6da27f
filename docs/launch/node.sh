#!/usr/bin/env bash
# Train on all GPUs of one machine: GPUS=8 node.sh mm1_3b parallel.activation_checkpointing=selective --to runs/3b
set -euo pipefail
exec torchrun --standalone --nproc-per-node "${GPUS:-8}" -m mm1 train "$@"

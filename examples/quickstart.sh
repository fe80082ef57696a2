#!/usr/bin/env bash
# Train a small model with RAPO on two CPU processes; everything it needs is set up first, in .venv.
#
#   examples/quickstart.sh [--set section.field=value ...]     replaces an earlier runs/quickstart
#   examples/quickstart.sh --resume                            goes on with it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tools/cpu_env.sh

export OMP_NUM_THREADS=1              # two processes share the cores
export CUDA_VISIBLE_DEVICES=            # this example is the CPU one, also on a machine with a GPU
export VLLM_ENABLE_V1_MULTIPROCESSING=0 # the engine lives in the training process
export VLLM_LOGGING_LEVEL="${VLLM_LOGGING_LEVEL:-ERROR}"
export TORCH_CPP_LOG_LEVEL="${TORCH_CPP_LOG_LEVEL:-ERROR}"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

EARLIER_RUN=(--overwrite)
if [[ " $* " == *" --resume "* ]]; then EARLIER_RUN=(); fi

exec .venv/bin/python -m megatron_rapo launch --nproc-per-node 2 \
    train examples/quickstart.toml "${EARLIER_RUN[@]}" "$@"

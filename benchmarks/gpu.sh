#!/usr/bin/env bash
# Everything that only a GPU shows: tests/gpu, and the benchmarks of the loss, training steps and resharding on it.
#
#   benchmarks/gpu.sh [FOLDER] [--only PART ...]     results in FOLDER, benchmarks/results/gpu by default
#
# Exit status: 0 all passed and every target was met; 1 some were not; 2 there is no GPU, and nothing was run.
# PYTHON is the Python with the packages, .venv's or the PATH's by default.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON="${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "$PYTHON" -m benchmarks.gpu.run_all "$@"

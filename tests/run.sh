#!/usr/bin/env bash
# Everything that can be checked without a GPU: style, types, scripts, documentation, tests.
#
#   tests/run.sh                        all of it
#   tests/run.sh tests/algo -k loss     with arguments only pytest runs, and gets them
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

tools/cpu_env.sh --dev || exit 1

export PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS=1              # processes share the cores
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-}"
export VLLM_ENABLE_V1_MULTIPROCESSING=0 # the engine lives in the test's own process
export VLLM_LOGGING_LEVEL="${VLLM_LOGGING_LEVEL:-ERROR}"
export TORCH_CPP_LOG_LEVEL="${TORCH_CPP_LOG_LEVEL:-ERROR}"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if [[ ! -t 1 ]]; then export NO_COLOR=1; fi

if (($#)); then
    echo "tests/run.sh: arguments given, so only pytest runs"
    exec python -m pytest "$@"
fi

FAILED=()

check() { # NAME COMMAND...
    local name="$1" start=$SECONDS
    shift
    echo "== $name"
    "$@" || FAILED+=("$name")
    echo "   ($((SECONDS - start)) s)"
}

check "ruff check" ruff check --quiet .
check "ruff format" ruff format --check --quiet .
check "mypy" mypy --no-error-summary
mapfile -t SCRIPTS < <(git ls-files --cached --others --exclude-standard -- '*.sh' .ci/run)
check "shellcheck" shellcheck "${SCRIPTS[@]}"
check "docs" python -m sphinx -q -W --keep-going docs build/docs
check "pytest" python -m pytest --numprocesses 2

if ((${#FAILED[@]})); then
    echo "tests/run.sh: FAILED: $(printf '%s; ' "${FAILED[@]}")"
    exit 1
fi
echo "tests/run.sh: all passed"

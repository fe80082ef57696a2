#!/usr/bin/env bash
# What the job scripts beside this file share: checks, srun with one process for each GPU, and going on after Slurm has
# taken the nodes away.
#
#   [VARIABLE=value ...] sbatch [options that win over the #SBATCH lines] slurm/rapo_7b.sh
#
# Paths must be the same on all nodes; relative ones start at RAPO_HOME.
#
#   RAPO_HOME       this repository; default: where sbatch was called
#   RAPO_MODEL      Hugging Face model folder; default: models/Qwen2.5-7B or -3B, as the script's name says
#   RAPO_TRAIN      training problems, JSONL or Parquet; default: data/simplerl-zero-8k.parquet
#   RAPO_EVAL       held-out problems; default: data/aime24.parquet; docs/data.md has the commands that make both
#   RAPO_RUNS       folder of all runs; default: runs
#   RAPO_RUN        folder of this run, to go on with that of another job; default: RAPO_RUNS/JOBNAME-JOBID
#   RAPO_CONFIG     settings; default: examples/simplerl/, as the script's name says
#   RAPO_SET        more settings, with spaces between: "run.steps=20 optimizer.lr=1e-6"
#   RAPO_PYTHON     Python with the packages; default: .venv/bin/python, in a container python3
#   RAPO_CONTAINER  image for pyxis: a .sqsh file or an address; default: none, the nodes' own environment
#   RAPO_MOUNTS     more mounts for the container, as pyxis takes them: "/scratch,/a:/b:ro"; those named above are mounted
#
# Exit status 2: something is wrong with what was given, and a line says what. 75: stopped and could go on, but was not
# requeued. Any other is that of the processes.
set -uo pipefail

REQUEUE_STATUS=75 # of a run that stopped because it was told to, and can go on (megatron_rapo/commands/train.py)
LAST_PROCESS_S=60 # from the end of the first process: where that one failed, others wait for it until run.timeout_s
TOLD='' SIGNALLED='' SRUN=''

fail() {
    echo "error: $*" >&2
    exit 2
}

main() { # CONFIG MODEL
    trap on_usr1 USR1
    trap on_term TERM
    check_job
    read_variables "$@"
    check_paths
    if [[ -n "$CONTAINER" ]]; then check_container; else check_python; fi
    meeting_place
    go_on_arguments
    run
    requeue_or_end "$?"
}

check_job() {
    if [[ -z "${SLURM_JOB_ID:-}" ]]; then
        fail "SLURM_JOB_ID: not set, so this is no Slurm job; start the script with sbatch."
    fi
    local gpus="${SLURM_GPUS_ON_NODE:-0}" tasks="${SLURM_NTASKS_PER_NODE:-1}"
    if ((gpus > 0 && gpus != tasks)); then
        fail "SLURM_NTASKS_PER_NODE=$tasks: each process takes one GPU, and the job has $gpus on a node;" \
            "pass sbatch --ntasks-per-node=N --gpus-per-node=N with the same N."
    fi
}

read_variables() { # CONFIG MODEL
    cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
    HOME_FOLDER="$PWD"
    CONFIG="$(realpath -m "${RAPO_CONFIG:-$1}")"
    MODEL="$(realpath -m "${RAPO_MODEL:-$2}")"
    TRAIN="$(realpath -m "${RAPO_TRAIN:-data/simplerl-zero-8k.parquet}")"
    EVAL="$(realpath -m "${RAPO_EVAL:-data/aime24.parquet}")"
    RUNS="$(realpath -m "${RAPO_RUNS:-runs}")"
    RUN="$(realpath -m "${RAPO_RUN:-$RUNS/$SLURM_JOB_NAME-$SLURM_JOB_ID}")"
    CONTAINER="${RAPO_CONTAINER:-}"
    PYTHON="${RAPO_PYTHON:-$HOME_FOLDER/.venv/bin/python}"
    if [[ -n "$CONTAINER" ]]; then PYTHON="${RAPO_PYTHON:-python3}"; fi
    read -ra SETTINGS <<<"${RAPO_SET:-}"
}

check_paths() {
    local what name path
    [[ -f "$MODEL/config.json" ]] ||
        fail "RAPO_MODEL=$MODEL: no such folder with a config.json; export RAPO_MODEL=FOLDER of a Hugging Face model."
    for what in CONFIG TRAIN EVAL; do
        name="RAPO_$what" path="${!what}"
        [[ -f "$path" ]] || fail "$name=$path: no such file; export $name=FILE."
        [[ -r "$path" ]] || fail "$name=$path: cannot be read; let $(id -un) read it."
    done
    path="$(dirname "$RUN")"
    what="$(mkdir -p "$path" 2>&1)" || fail "RAPO_RUNS=$path: cannot be made (${what##*: }); export RAPO_RUNS=FOLDER."
    [[ -w "$path" ]] || fail "RAPO_RUNS=$path: cannot be written to; export RAPO_RUNS=FOLDER."
}

check_python() {
    local executable problem
    executable="$(command -v "$PYTHON")" ||
        fail "RAPO_PYTHON=$PYTHON: no such program; export RAPO_PYTHON=/path/to/python or RAPO_CONTAINER=IMAGE."
    problem="$("$executable" - "${SLURM_GPUS_ON_NODE:-0}" 2>&1 <<'END'
import sys
from importlib.util import find_spec

missing = [name for name in ("torch", "megatron", "vllm", "transformers", "math_verify") if find_spec(name) is None]
if missing:
    sys.exit(f"has no {', '.join(missing)}; name the Python that the package was installed for (docs/gpus.md)")
wanted = int(sys.argv[1])
if wanted:
    import torch

    if torch.cuda.device_count() != wanted:
        sys.exit(
            f"torch {torch.__version__} finds {torch.cuda.device_count()} of the node's {wanted} GPUs; "
            "install a build for them, or ask for another node"
        )
END
    )" || fail "RAPO_PYTHON=$PYTHON: $problem."
}

check_container() {
    if [[ "$CONTAINER" == [./]* && ! -e "$CONTAINER" ]]; then
        fail "RAPO_CONTAINER=$CONTAINER: no such file; make it with: enroot import -o $CONTAINER docker://ADDRESS"
    fi
    if ! srun --help 2>&1 | grep -q -- --container-image; then
        fail "RAPO_CONTAINER=$CONTAINER: this cluster's srun has no --container-image (the pyxis plugin);" \
            "unset RAPO_CONTAINER and export RAPO_PYTHON."
    fi
}

# By which the processes find each other. Slurm's own address of the first node, where this script runs: a node's name
# need not be one that its neighbours can look up.
meeting_place() {
    local first
    first="$(ask show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
    MASTER_ADDR="$(ask show node --oneliner "$first" | grep -oP '\bNodeAddr=\K\S+')"
    MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
    while (: >"/dev/tcp/$MASTER_ADDR/$MASTER_PORT") 2>/dev/null; do ((MASTER_PORT++)); done
    export MASTER_ADDR MASTER_PORT
}

# A restarted job goes on where it can. One that was stopped before its first checkpoint starts anew, in the folder that
# it has left; any other folder that is there already is the program's to refuse.
go_on_arguments() {
    GO_ON=()
    if [[ -e "$RUN/checkpoints/latest" ]]; then
        GO_ON=(--resume)
    elif ((${SLURM_RESTART_COUNT:-0} > 0)); then
        GO_ON=(--overwrite)
    fi
}

run() {
    local container=() settings=() setting status
    if [[ -n "$CONTAINER" ]]; then
        container=(--container-image="$CONTAINER" --container-workdir="$HOME_FOLDER")
        container+=(--container-mounts="$(mounts)${RAPO_MOUNTS:+,$RAPO_MOUNTS}")
    fi
    for setting in "model.path=$MODEL" "data.train=$TRAIN" "evaluation.data=$EVAL" "run.folder=$RUN" "${SETTINGS[@]}"; do
        settings+=(--set "$setting")
    done
    export PYTHONUNBUFFERED=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # which srun no longer takes over from sbatch (22.05)
    if [[ -n "$TOLD" ]]; then return "$REQUEUE_STATUS"; fi # it was too early
    echo "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, start $((${SLURM_RESTART_COUNT:-0} + 1)): $RUN ${GO_ON[*]}"
    # The first process that ends with 75 must not have the others killed, which may still be writing.
    srun --kill-on-bad-exit=0 --wait="$LAST_PROCESS_S" "${container[@]}" \
        "$PYTHON" -m megatron_rapo train "$CONFIG" "${settings[@]}" "${GO_ON[@]}" &
    SRUN=$!
    while true; do # a signal ends bash's waiting, not srun
        SIGNALLED=''
        wait "$SRUN"
        status=$?
        [[ -n "$SIGNALLED" ]] || return "$status"
    done
}

mounts() { # each thing where it is, with commas between
    printf '%s\n' "$HOME_FOLDER" "$MODEL" "$CONFIG" "$TRAIN" "$EVAL" "$(dirname "$RUN")" | sort -u | paste -sd ,
}

# Soon before the time limit, or at once where a preempting cluster sends this signal: srun passes it on.
# shellcheck disable=SC2329 # trap calls it
on_usr1() {
    echo "told by Slurm to end soon (SIGUSR1)"
    TOLD=1 SIGNALLED=1
    if [[ -n "$SRUN" ]]; then kill -USR1 "$SRUN"; fi
}

# Slurm sends it to the processes and to srun too, which then have KillWait seconds. The script can only wait for them.
# It remembers the signal: once Slurm has requeued the job, it no longer says that the job was preempted.
# shellcheck disable=SC2329 # trap calls it
on_term() {
    TOLD=1 SIGNALLED=1
    if [[ -z "$SRUN" ]]; then exit 143; fi
}

requeue_or_end() { # STATUS
    local status="$1" state
    may_go_on "$status" || return "$status"
    state="$(job_says JobState)"
    if [[ "$state" == RUNNING ]] && ask requeue "$SLURM_JOB_ID"; then
        echo "stopped with status $status, and requeued to go on"
    else # cancelled, or pre-empted without notice, which Slurm requeues by itself
        echo "stopped with status $status, and Slurm is ending the job (${state:-it does not answer}); what does not" \
            "start again goes on with: RAPO_RUN=$RUN sbatch ..."
    fi
    return "$REQUEUE_STATUS"
}

# Succeed if the run stopped because it was told to. Then its status is 75 most often. But processes that were starting
# or that needed too long are ended by the signal, so are srun itself and processes that miss the others. So after a
# signal by Slurm every status counts but those of success and of bad input. Without a signal it is a failure, which would
# only come again.
may_go_on() { # STATUS
    if (($1 == REQUEUE_STATUS)); then return; fi
    (($1 != 0 && $1 != 2)) && [[ -n "$TOLD" || "$(job_says PreemptTime)" == [0-9]* ]]
}

job_says() { # FIELD
    ask show job --oneliner "$SLURM_JOB_ID" | grep -oP "\b$1=\K\S+" | head -n 1
}

# A busy controller does not answer at once. And what ends or requeues this job sends SIGTERM to scontrol as well, which
# may come before the answer.
ask() ( # SCONTROL-ARGUMENTS...
    trap '' TERM
    for pause_s in 1 2 0; do
        scontrol "$@" && exit
        sleep "$pause_s"
    done
    exit 1
)

main "$@"; exit # on one line, so that bash reads nothing more: an update of the repository may have changed the file

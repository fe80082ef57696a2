#!/bin/bash
# RAPO on Qwen2.5-7B, two nodes of eight GPUs. What can be set: slurm/launch.sh.
#SBATCH --job-name=rapo_7b
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
LAUNCH="${RAPO_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}/slurm/launch.sh" # sbatch has copied this file to somewhere else
if [[ ! -f "$LAUNCH" ]]; then
    echo "error: RAPO_HOME: $LAUNCH is not there; call sbatch in the repository, or export RAPO_HOME=/path/to/it." >&2
    exit 2
fi
exec bash "$LAUNCH" examples/simplerl/rapo_7b.toml models/Qwen2.5-7B

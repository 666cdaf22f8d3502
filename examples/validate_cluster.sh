#!/usr/bin/env bash
# A new cluster: does it keep what its graph promises? One rank a GPU, under Slurm.
#
#   sbatch --nodes 4 --gpus-per-node 8 --ntasks-per-node 1 examples/validate_cluster.sh plan.json trace.npz
#
# Calibrates on probes, predicts the plan and the baselines, runs them, and lays both side by side; links that do not
# keep their rate are named. Without Slurm it takes the GPUs of this machine, and without GPUs its cores.
set -euo pipefail
plan=$1 trace=$2

if [[ -n ${SLURM_NNODES:-} ]]; then
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -1)
    srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node gpu --rdzv-backend c10d --rdzv-endpoint "$first:29500" \
        -m app.main validate "$plan" --routing "$trace" -o report.json --page report.html
else
    epplan validate "$plan" --routing "$trace" -o report.json --page report.html
fi

#!/usr/bin/env bash
# Draw bootstrap replicates of a vdj model, a share of them in each task of an array:
#
#   sbatch --array=1-20 slurm/bootstrap_array.sh CONFIG [REPLICATES]
#
# Task N has the seed N and draws REPLICATES (default 50), so that 20 tasks make 1,000. The fit itself does not depend
# on the seed. Replicates are the lines of OUT/N/bootstraps/bootstrap_coefs*.tsv, by default build/vdj/bootstrap-JOB/N.
# Tasks are stopped, requeued and resumed as by train_gpu.sh. DATA and DEVICE (default: auto) may be set.
#SBATCH --job-name=seqfoundry-bootstrap
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@180
set -euo pipefail

usage='usage: sbatch --array=1-N slurm/bootstrap_array.sh CONFIG [REPLICATES]'
config=${1:?$usage}
replicates=${2:-50}
task=${SLURM_ARRAY_TASK_ID:?$usage}
if [[ ! $replicates =~ ^[1-9][0-9]*$ ]]; then
    echo "replicates: must be a whole number from 1 on, got $replicates; $usage" >&2
    exit 2
fi
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"

export OUT=${OUT:-build/vdj/bootstrap-${SLURM_ARRAY_JOB_ID:-local}}/$task
export SETTINGS="seed=$task fit.bootstrap=$replicates"
export DEVICE=${DEVICE:-auto}
exec bash slurm/train_gpu.sh "$config" vdj

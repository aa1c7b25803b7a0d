#!/usr/bin/env bash
# Train on a GPU node: sbatch slurm/train_gpu.sh CONFIG [FAMILY]
#
# Before the time is up, or when the node is wanted elsewhere, SLURM sends SIGTERM: the trainer saves a checkpoint and
# ends with status 143, the job goes back to the queue, and goes on from there; a cancelled job ends. Where OUT holds a
# finished training there is nothing to do. OUT, DATA, DEVICE and SETTINGS (what would stand after --set) may be set.
#SBATCH --job-name=seqfoundry-train
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@180
set -euo pipefail

config=${1:?usage: sbatch slurm/train_gpu.sh CONFIG [FAMILY]}
family=${2:-copynumber}
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
out=${OUT:-build/$family/slurm-${SLURM_JOB_ID:-local}}

# shellcheck source=slurm/environment.sh
source slurm/environment.sh

if [[ -f $out/run.json && -f $out/metrics.json ]]; then
    echo "$out: finished already (run.json and metrics.json are there): nothing to do" >&2
    exit 0
fi

resume=()
if [[ -f $out/run.json ]]; then
    resume=(--resume "$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["run_id"])' "$out/run.json")")
fi

more=()
[[ -z ${DATA:-} ]] || more+=(--data "$DATA")
[[ -z ${SETTINGS:-} ]] || more+=(--set "$SETTINGS")

PYTHONPATH=src python -m seqfoundry train "$family" --params "$config" --out "$out" --device "${DEVICE:-gpu}" \
    "${more[@]}" "${resume[@]}" &
trainer=$!
trap 'kill -TERM "$trainer" 2>/dev/null || true' TERM
while kill -0 "$trainer" 2>/dev/null; do # a signal ends the wait before the trainer has saved
    wait "$trainer" || true
done
status=0
wait "$trainer" || status=$? # its own: that of a wait which a signal ended is the signal's

if [[ $status -eq 143 && -n ${SLURM_JOB_ID:-} ]]; then
    job=$SLURM_JOB_ID
    # one task of an array has the number of the whole array, and would requeue the others too
    [[ -z ${SLURM_ARRAY_TASK_ID:-} ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    case $(squeue --noheader --jobs="$job" --format='%T %r') in
    RUNNING* | *TimeLimit) scontrol requeue "$job" || true ;; # where that is not allowed, the status shows it
    *) ;;                                                     # SLURM requeued it itself, or it was cancelled
    esac
fi
exit "$status"

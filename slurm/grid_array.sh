#!/usr/bin/env bash
# Train the points of a grid, each as one task of an array, on a GPU node:
#
#   sbatch --array=0-8 slurm/grid_array.sh CONFIG [FAMILY] [LINES]
#
# Task N takes line N (from 0) of the file LINES: what would stand after --set, such as "seed=2 train.epochs=5". Without
# LINES the family must be reads, and task N trains point N of the network's entry in training_params.yaml, where lists
# are the axes (the order is that of grid.tsv of a training without an array). Results are in OUT/N, by default
# build/FAMILY/grid-JOB/N. Tasks are stopped, requeued and resumed as by train_gpu.sh. DATA and DEVICE may be set.
#SBATCH --job-name=seqfoundry-grid
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@180
set -euo pipefail

usage='usage: sbatch --array=0-N slurm/grid_array.sh CONFIG [FAMILY] [LINES]'
config=${1:?$usage}
family=${2:-reads}
lines=${3:-}
task=${SLURM_ARRAY_TASK_ID:?$usage}
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
top=${OUT:-build/$family/grid-${SLURM_ARRAY_JOB_ID:-local}}

if [[ -n $lines ]]; then
    settings=$(sed -n "$((task + 1))p" "$lines")
    if [[ -z $settings ]]; then
        echo "$lines: must have settings in line $((task + 1)), got none; $usage" >&2
        exit 2
    fi
elif [[ $family == reads ]]; then
    # shellcheck source=slurm/environment.sh
    source slurm/environment.sh
    mkdir -p "$top"
    point=$top/$task.training_params.yaml
    PYTHONPATH=src python - "$config" "$task" "$point" <<'END'
import json, sys
from dataclasses import asdict
from pathlib import Path

from seqfoundry.core.errors import SeqfoundryError
from seqfoundry.families.reads.config import read_grid
from seqfoundry.core.family import find_family

config, task, point = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
try:
    found = find_family("reads").settings(Path(config))
    points = read_grid(found)
except SeqfoundryError as error:
    sys.exit(f"grid_array.sh: {error}")
if task >= len(points):
    sys.exit(f"{config}: --array must be within 0-{len(points) - 1}, the points of {found.network}, got {task}")
point.write_text(json.dumps({found.network: asdict(points[task].network)}) + "\n", encoding="utf-8")  # JSON is YAML
END
    settings="training_params='$point'"
else
    echo "$family: must have a file of settings, got none; $usage" >&2
    exit 2
fi

OUT=$top/$task SETTINGS=$settings exec bash slurm/train_gpu.sh "$config" "$family"

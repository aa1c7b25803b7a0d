# shellcheck shell=bash
# The project's environment, for the scripts beside this one: .venv, else the conda environment seqfoundry.
if [[ -f .venv/bin/activate ]]; then
    # shellcheck source=/dev/null
    source .venv/bin/activate
elif [[ -n ${CONDA_EXE:-} ]]; then
    eval "$("$CONDA_EXE" shell.bash hook)"
    conda activate seqfoundry
fi

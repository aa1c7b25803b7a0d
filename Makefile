.DEFAULT_GOAL := help
.PHONY: help setup demo test check data bench ui mlproject zoo
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
# the commands of an MLproject run whatever `python` comes first
export PATH := $(CURDIR)/$(BIN):$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true

help:    ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "%-8s %s\n", $$1, $$2}'

.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

setup: .venv/.installed  ## Make .venv with everything that is needed

demo: setup  ## All families from data to a registered champion and its first answers
	mlflow run . --env-manager local --experiment-name seqfoundry

test: setup  ## The tests, without those that are run by hand
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder  # a file's tests share what they made

check: setup  ## Format, lint, types, layers
	ruff format --check .
	ruff check .
	mypy
	PYTHONPATH=src lint-imports

data: setup  ## Build data/ and compare it with data.dvc
	python -m seqfoundry data build

zoo: setup  ## Train the models of zoo/ anew
	python -m seqfoundry zoo --build

mlproject: setup  ## Write MLproject from the commands
	PYTHONPATH=src python -m seqfoundry.mlproject > MLproject

bench: setup  ## Timings, one JSON line each
	for script in benchmarks/*.py benchmarks/*/*.py; do python $$script; done

ui: setup  ## The tracking store in a browser, on this machine only
	mlflow ui --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1

# `make` lists the targets.
PYTHON ?= python3.11
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
# uv only: which build of torch to take from PyTorch's own index (cpu, cu130, auto). Empty: the package index's.
TORCH_BACKEND ?=
CORES ?= all
CONFIG ?= config/config.yaml
# The results folder of the study that `watch`, `track` and `ui` show.
RESULTS ?= results
export PATH := $(BIN):$(PATH)
# uv does not read pip's setting for folders with wheels.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
# Without byte code every process would compile torch and MONAI again.
unexport PYTHONDONTWRITEBYTECODE
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true

.PHONY: help setup run watch test test-slow lint fmt types schema lock ui track pull push check clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.installed ## make .venv from constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	@PYTHON="$(PYTHON)" TORCH_BACKEND="$(TORCH_BACKEND)" sh workflow/envs/install.sh "$(VENV)" test
	@touch "$@"

run: setup ## the main job: the default study, from scans to report
	snakemake --cores $(CORES) --configfile $(CONFIG)

watch: setup ## what the running study is doing
	voxprior watch --results $(RESULTS)

test: setup ## unit and workflow tests
	OMP_NUM_THREADS=1 python -m pytest

test-slow: setup ## the slow ones too
	python -m pytest -m "not gpu and not slurm and not nnunet"

lint: setup ## ruff, snakefmt, snakemake --lint
	ruff check . && ruff format --check . && snakefmt --check Snakefile workflow && snakemake --lint

fmt: setup ## format everything
	ruff check --fix . && ruff format . && snakefmt Snakefile workflow

types: setup ## mypy
	mypy

schema: setup ## write config/schema.json from the models
	voxprior schema

lock: setup ## write constraints.txt anew: universal, without hosts
	env -u UV_FIND_LINKS uv pip compile pyproject.toml --extra test --extra conda --extra remote --extra gpu --extra schemas --universal --python-version 3.11 \
	  --no-header --no-annotate --upgrade -o constraints.txt

track: setup ## publish the runs so far to MLflow, those at work too
	voxprior track --config $(RESULTS)/config.json --results $(RESULTS) --output $(RESULTS)/tracked.json

ui: export MLFLOW_TRACKING_URI := sqlite:///mlflow.db
ui: track ## open the MLflow UI on http://127.0.0.1:5000
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --backend-store-uri sqlite:///mlflow.db --workers 1

pull: setup ## bring data and results from the DVC remote; nothing is recomputed
	dvc pull
	snakemake --touch --cores 1
	snakemake -n

push: setup ## send data and results to the DVC remote
	dvc push

check: lint types test ## what CI runs

clean: ## remove results and working state; keeps downloaded data
	rm -rf results work

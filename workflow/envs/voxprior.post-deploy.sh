#!/usr/bin/env bash
# Runs once inside the new environment. VOXPRIOR_HOME is set by workflow/rules/common.smk: Snakemake copies the
# environment file elsewhere, so a relative path would not find the project.
set -euo pipefail
python -m pip install --quiet -c "$VOXPRIOR_HOME/constraints.txt" "$VOXPRIOR_HOME"

#!/usr/bin/env bash
# Runs once inside the new environment. VOXPRIOR_HOME is set by workflow/Snakefile, also where that is used as a module
# from another folder: Snakemake copies this file elsewhere, so a relative path would not find the project.
set -euo pipefail
sh "${VOXPRIOR_HOME:?start Snakemake with the Snakefile of voxprior, which says where the project is}/workflow/envs/install.sh" "$CONDA_PREFIX"

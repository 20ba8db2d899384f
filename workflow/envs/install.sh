#!/bin/sh
# install.sh ENVIRONMENT [EXTRA]: puts this project and exactly the versions of constraints.txt into a virtual or conda
# environment; a virtual one is made where there is none. uv when it can be had, else pip. Used by `make setup` (EXTRA is
# test), by `--use-conda` (voxprior.post-deploy.sh) and by the container recipes, so that all of them install alike.
set -eu
environment=$1
extra=${2:+[$2]}
project=$(cd "$(dirname "$0")/../.." && pwd)
[ -x "$environment/bin/python" ] || "${PYTHON:-python3.11}" -m venv "$environment"
python="$environment/bin/python"

failed() {
    cat >&2 <<END
voxprior: the packages of $project/constraints.txt could not be installed into $environment.
See above what is missing. Without a network, set UV_FIND_LINKS and PIP_FIND_LINKS to a folder with their wheels,
or UV_DEFAULT_INDEX and PIP_INDEX_URL to a package index that can be reached: docs/environments.md, "offline machines".
END
    exit 1
}

# An editable installation writes beside the sources. Where that is not allowed, a copy of the project is installed.
if [ ! -w "$project/src" ] || [ ! -w "$project" ]; then
    copy="$environment/share/voxprior"
    rm -rf "$copy" && mkdir -p "$copy"
    (cd "$project" && cp -R pyproject.toml constraints.txt README.md LICENSE config src "$copy") && chmod -R u+w "$copy"
    project=$copy
fi

# uv does not read pip's settings.
pip_setting() { "$python" -m pip config get "global.$1" 2>/dev/null || true; }
links=${PIP_FIND_LINKS:-$(pip_setting find-links)}
UV_FIND_LINKS=${UV_FIND_LINKS:-$(echo $links)} # one line
UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-$(pip_setting index-url)}}
# An empty variable would be read as a folder, or as an address.
if [ -n "$UV_FIND_LINKS" ]; then export UV_FIND_LINKS; else unset UV_FIND_LINKS; fi
if [ -n "$UV_DEFAULT_INDEX" ]; then export UV_DEFAULT_INDEX; else unset UV_DEFAULT_INDEX; fi

uv=$(command -v uv || true)
if [ -z "$uv" ] && "$python" -m pip install --quiet -c "$project/constraints.txt" uv; then
    uv="$environment/bin/uv"
fi
if [ -n "$uv" ]; then
    "$uv" pip install --python "$python" --compile-bytecode ${TORCH_BACKEND:+--torch-backend "$TORCH_BACKEND"} \
        -c "$project/constraints.txt" -e "$project$extra" || failed
else
    "$python" -m pip install -c "$project/constraints.txt" -e "$project$extra" || failed
fi

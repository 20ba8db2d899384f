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
See above what is missing. Without a network, set PIP_FIND_LINKS to a folder with their wheels and PIP_NO_INDEX to 1,
or PIP_INDEX_URL to a package index that can be reached: docs/environments.md, "offline machines".
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

# uv does not read pip's settings. `pip config get` would look into the user's file alone.
pip_settings=$("$python" -m pip config list 2>/dev/null || true)
pip_setting() { printf '%b' "$(printf '%s\n' "$pip_settings" | sed -n "s/^global\.$1='\(.*\)'$/\1/p")"; }
links=${PIP_FIND_LINKS:-$(pip_setting find-links)}
UV_FIND_LINKS=${UV_FIND_LINKS:-$(echo $links)} # one line
UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-$(pip_setting index-url)}}
SSL_CERT_FILE=${SSL_CERT_FILE:-${PIP_CERT:-$(pip_setting cert)}}
# An empty variable would be read as a folder, or as an address.
if [ -n "$UV_FIND_LINKS" ]; then export UV_FIND_LINKS; else unset UV_FIND_LINKS; fi
if [ -n "$UV_DEFAULT_INDEX" ]; then export UV_DEFAULT_INDEX; else unset UV_DEFAULT_INDEX; fi
if [ -n "$SSL_CERT_FILE" ]; then export SSL_CERT_FILE; else unset SSL_CERT_FILE; fi

uv=$(command -v uv || true)
if [ -z "$uv" ] && "$python" -m pip install --quiet -c "$project/constraints.txt" uv; then
    uv="$environment/bin/uv"
fi
if [ -n "$uv" ]; then
    "$uv" pip install --python "$python" --compile-bytecode ${TORCH_BACKEND:+--torch-backend "$TORCH_BACKEND"} \
        ${PIP_NO_INDEX:+--no-index} -c "$project/constraints.txt" -e "$project$extra" || failed
else
    "$python" -m pip install -c "$project/constraints.txt" -e "$project$extra" || failed
fi; exit # on one line: a shell reads on after an installation of minutes, from a file that may be another by then

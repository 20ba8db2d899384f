#!/bin/sh
# install.sh VENV: a virtual environment with exactly the versions of constraints.txt. uv when it can be had, else pip.
set -eu
venv=$1
[ -x "$venv/bin/python" ] || "${PYTHON:-python3.11}" -m venv "$venv"
python="$venv/bin/python"
uv=$(command -v uv || true)
if [ -z "$uv" ] && "$python" -m pip install --quiet -c constraints.txt uv; then
    uv="$venv/bin/uv"
fi
if [ -n "$uv" ]; then
    # An empty variable would be read as a folder.
    [ -n "${UV_FIND_LINKS:-}" ] || unset UV_FIND_LINKS
    "$uv" pip install --python "$python" --compile-bytecode ${TORCH_BACKEND:+--torch-backend "$TORCH_BACKEND"} \
        -c constraints.txt -e '.[test]'
else
    "$python" -m pip install -c constraints.txt -e '.[test]'
fi

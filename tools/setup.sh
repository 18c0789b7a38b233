#!/usr/bin/env bash
# Makes $VENV: first torch (without an NVIDIA GPU its CPU build, a tenth of the download), then the package itself,
# compiled against that torch. Run through `make setup`.
set -euo pipefail

python=${PYTHON:-python3}
venv=${VENV:-.venv}
torch=$(grep -E '^torch==' constraints.txt)

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "setup: $("$python" --version) is too old, Python 3.10 or later is needed; name one with PYTHON=..." >&2
    exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check --quiet)
# The pins are those of CI. Several of them do not support Python 3.10; there pip chooses the versions.
pins=(-c constraints.txt)
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || pins=()

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; }

install_torch() {
    if has_gpu; then
        "${pip[@]}" install "$torch"
    # If pip is configured for CPU builds, they have this label; otherwise uv finds them.
    elif ! "${pip[@]}" install "$torch+cpu" 2>/dev/null; then
        { "${pip[@]}" install uv && "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" \
            --torch-backend=cpu "$torch"; } || {
            echo "setup: no CPU build of torch found; installing the default one (several gigabytes)"
            "${pip[@]}" install "$torch"
        }
    fi
}

"${pip[@]}" install --upgrade pip
"$venv/bin/python" -c 'import torch' 2>/dev/null || { echo "setup: installing $torch"; install_torch; }
echo "setup: building and installing argus-kernels"
"${pip[@]}" install ${pins[@]+"${pins[@]}"} setuptools ninja pybind11
"${pip[@]}" install ${pins[@]+"${pins[@]}"} --no-build-isolation -e '.[model,dev]'
"$venv/bin/python" -c 'from argus_kernels.core.native import build_info
for name, record in build_info()["libraries"].items():
    print("setup:", name, "built:" if record["built"] else "not built:", record["reason"])'

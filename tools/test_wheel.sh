#!/usr/bin/env bash
# Installs a wheel into a fresh environment without a compiler, and runs the tests of the CPU kernels on what arrived.
#
#   tools/test_wheel.sh WHEEL [PYTHON] [TORCH]
#
# PYTHON: a program, default python3. TORCH: a version (default the newest), whose CPU build is taken where pip or uv finds
# it, or a folder of site-packages that has torch, numpy, pytest, pytest-timeout and hypothesis already.
# The last line printed is the row of the table in docs/install.md.
set -euo pipefail

[ $# -ge 1 ] && [ $# -le 3 ] || { echo "usage: tools/test_wheel.sh WHEEL [PYTHON] [TORCH]" >&2; exit 2; }
wheel=$(realpath "$1")
python=$(command -v "${2:-python3}") || { echo "test_wheel: no program ${2:-python3}" >&2; exit 2; }
torch=${3:-}
[ -f "$wheel" ] || { echo "test_wheel: no file $1" >&2; exit 2; }
repository=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
began=$(date +%s)

"$python" -m venv "$folder/venv"
venv=$folder/venv/bin
pip=("$venv/python" -m pip --disable-pip-version-check --quiet)
install=(install)
if [ -d "$torch" ]; then
    # A .pth file adds the folder, but not what .pth files in it add, such as an editable install of this package. What
    # torch itself depends on is not looked at: a CUDA build runs on the CPU without most of it.
    install+=(--no-deps)
    realpath "$torch" > "$("$venv/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/torch.pth"
else
    "${pip[@]}" install "torch${torch:+==$torch+cpu}" 2>/dev/null || {
        "${pip[@]}" install uv
        "$venv/uv" pip install --quiet --python "$venv/python" --torch-backend=cpu "torch${torch:+==$torch}"
    }
    "${pip[@]}" install numpy pytest pytest-timeout hypothesis expecttest
fi

# From here on there is nothing on PATH but the environment: no compiler, no linker, no nvcc.
pip_began=$(date +%s)
PATH=$venv "${pip[@]}" "${install[@]}" "$wheel"
installed=$(($(date +%s) - pip_began))

# The tests without the sources: argus_kernels can only come from the wheel.
mkdir "$folder/tree"
cp -r "$repository/tests" "$repository/pyproject.toml" "$folder/tree"
cd "$folder/tree"
export OMP_NUM_THREADS=1
environment=(env -u PYTHONPATH PATH="$venv" HOME="$folder")
"${environment[@]}" "$venv/python" "$repository/tools/wheel_check.py" "$folder/venv"
# What a wheel can spoil, and not all that the kernels are held to: the error rule in every dtype, torch.compile, export.
others="gradcheck opcheck drawn fresh_memory non_contiguous padding inductor reference triton cuda"
"${environment[@]}" "$venv/python" -m pytest -q -p no:cacheprovider --hypothesis-profile=quick \
    -m "not slow and not sanitizer and not gpu" -k "not ${others// / and not }" \
    tests/core/test_ops.py tests/ops/test_decode_linear.py tests/host/test_hash_ids.py 2>&1 | tee "$folder/log" | tail -n 15
passed=$(grep -oE '[0-9]+ passed' "$folder/log" | tail -n 1)
[ -n "$passed" ]
"${environment[@]}" "$venv/python" - "$passed" "$installed" "$(($(date +%s) - began))" <<'PRINT'
import platform, sys
import torch
from argus_kernels import host
passed, installed, seconds = sys.argv[1:]
print(f"| {platform.python_version()} | {torch.__version__} | {host.backend()} | {installed} | {passed} | {seconds} |")
PRINT

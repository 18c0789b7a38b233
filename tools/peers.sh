#!/usr/bin/env bash
# Installs what the benchmarks compare with, extra `peers`, each by itself: one that cannot be had leaves the others.
# PYTHON: the environment's. The installed torch stays.
set -euo pipefail
python=${1:-.venv/bin/python}
"$python" - <<'EOF' | while IFS=$'\t' read -r requirement torch; do
from importlib.metadata import requires, version

from packaging.requirements import Requirement

for line in requires("argus-kernels") or ():
    asked = Requirement(line)
    if asked.marker is not None and "peers" in str(asked.marker) and asked.marker.evaluate({"extra": "peers"}):
        print(f"{asked.name}{asked.specifier}", f"torch=={version('torch')}", sep="\t")
EOF
    "$python" -m pip install -q --disable-pip-version-check "$requirement" "$torch" </dev/null 2>/dev/null ||
        echo "peers: $requirement cannot be installed beside $torch: it is left out"
done

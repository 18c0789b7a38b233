#!/usr/bin/env bash
# Installs what compiling a wheel needs beside a compiler into the active Python: torch's CPU build, pybind11, ninja.
set -euo pipefail
cd "$(dirname "$0")/.."
pip install "setuptools>=77" pybind11 ninja uv
uv pip install --system --torch-backend=cpu "$(grep -E '^torch==' constraints.txt)"

"""Benchmarks and model are imported without the packages that only some commands need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
OPTIONAL = ("polars", "faiss", "ray", "expecttest")
PROGRAM = f"""
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocked())
import benchmarks.cli
assert not any(name.startswith("python_model") for name in sys.modules), "benchmarks.cli imports the model"
import python_model
for package in (benchmarks, python_model):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
for name in {OPTIONAL!r}:
    assert name not in sys.modules, name
"""


def test_no_module_imports_an_optional_package_at_its_top_and_the_front_door_no_model() -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

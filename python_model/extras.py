"""Says which extra of the package a command needs, before it imports what may not be installed."""

from __future__ import annotations

import importlib.util
import sys

_MODEL = ("pyarrow", "polars", "typer", "rich", "safetensors", "tensorboard", "matplotlib")
EXTRAS: dict[str, tuple[str, ...]] = {
    "model": _MODEL,
    "bench": _MODEL,
}
"""The modules of the extras in pyproject.toml that a whole program needs; a test compares the two."""


def missing(extra: str) -> list[str]:
    """The modules of an extra that are not installed."""
    return [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]


def require(program: str, extra: str) -> None:
    """Ends the process with exit code 2 and one sentence where modules of the extra are not installed."""
    absent = missing(extra)
    if absent:
        listed = ", ".join(absent)
        print(f"{program}: {listed} not installed: pip install 'argus-kernels[{extra}]'", file=sys.stderr)
        raise SystemExit(2)

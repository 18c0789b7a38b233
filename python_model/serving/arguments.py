"""Checks numbers and flags of a request or an option for exact type and range, with one clear error."""

from __future__ import annotations

from typing import Any

import numpy as np


def whole_number(value: Any, what: str, least: int, most: int | None = None) -> int:
    """An integer in [least, most], also numpy's; ValueError that begins with `what` for others, even true and 1.0."""
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_integer or value < least or (most is not None and value > most):
        expected = f"of at least {least}" if most is None else f"in [{least}, {most}]"
        raise ValueError(f"{what} is {value!r}, expected a whole number {expected}")
    return int(value)


def flag(value: Any, what: str) -> bool:
    """True or false, also numpy's; ValueError that begins with `what` for all others."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{what} is {value!r}, expected true or false")
    return bool(value)

"""Numbers and flags as they come in a request or an option: of the exact type and in range, or one sentence."""

from __future__ import annotations

from typing import Any

import numpy as np


def whole_number(value: Any, what: str, least: int, most: int | None = None) -> int:
    """An integer in [least, most], numpy's too; ValueError that begins with `what` for any other, true and 1.0 too."""
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_integer or value < least or (most is not None and value > most):
        expected = f"of at least {least}" if most is None else f"in [{least}, {most}]"
        raise ValueError(f"{what} is {value!r}, expected a whole number {expected}")
    return int(value)


def flag(value: Any, what: str) -> bool:
    """True or false, numpy's too; ValueError that begins with `what` for any other."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{what} is {value!r}, expected true or false")
    return bool(value)
